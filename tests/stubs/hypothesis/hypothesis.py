"""In place of hypothesis where it is not installed: tests of random examples are skipped."""

from types import SimpleNamespace
from typing import Any

import pytest


class _Anything:
    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self

    def __or__(self, other: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return self


strategies = _Anything()


def given(*strategies: Any, **named: Any) -> Any:
    return pytest.mark.skip(reason="hypothesis is not installed")


class settings(SimpleNamespace):
    def __call__(self, test: Any) -> Any:
        return test

    @staticmethod
    def register_profile(name: str, **named: Any) -> None:
        pass

    @staticmethod
    def load_profile(name: str) -> None:
        pass


example = assume = _Anything()
