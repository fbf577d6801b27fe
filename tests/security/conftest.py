"""The real program's environment, as for the tests of the flows."""

from tests.flows.conftest import environment

__all__ = ["environment"]
