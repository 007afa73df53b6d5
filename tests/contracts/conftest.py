"""The promises are proven on the handlers, in the account that the functions' tests use."""

from tests.functions.conftest import account, cloud, fresh

__all__ = ["account", "cloud", "fresh"]
