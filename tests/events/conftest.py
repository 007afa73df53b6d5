from tests.functions.conftest import account, fresh

__all__ = ["account", "fresh"]
