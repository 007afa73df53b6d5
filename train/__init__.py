"""Behaviour log and catalogue to a trained two-tower checkpoint."""
