"""The fleet of the gateway's tests."""

from tests.gateway.conftest import fleet

__all__ = ["fleet"]
