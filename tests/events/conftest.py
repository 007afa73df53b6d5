from tests.functions.conftest import account, cloud, fresh

__all__ = ["account", "cloud", "fresh"]
