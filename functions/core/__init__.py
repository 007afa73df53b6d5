"""The contract, pure: numpy and the standard library."""
