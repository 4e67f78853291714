"""In place of tqdm where it is not installed: nothing is drawn."""

from collections.abc import Iterable, Iterator
from typing import Any


class tqdm:
    def __init__(self, iterable: Iterable[Any] = (), **named: Any) -> None:
        self.iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterable)

    def __enter__(self) -> "tqdm":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None

    @staticmethod
    def write(text: str, **named: Any) -> None:
        print(text)
