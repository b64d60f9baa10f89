"""One thread of torch for every test of this package."""

from tests.one_thread import one_thread

__all__ = ["one_thread"]
