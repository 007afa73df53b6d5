"""The whole cloud on one machine: emulated stores, an HTTP front, a stream poller, the same handlers."""
