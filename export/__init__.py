"""Checkpoint to a verified, immutable bundle."""
