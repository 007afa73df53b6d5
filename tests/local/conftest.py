"""What an operator does is tried on the account that the functions' tests use."""

from tests.functions.conftest import account, cloud, fresh

__all__ = ["account", "cloud", "fresh"]
