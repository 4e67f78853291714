"""In place of jaxtyping where it is not installed: shapes in annotations are not checked."""

from typing import Any


class _Shaped:
    def __class_getitem__(cls, parameters: Any) -> Any:
        return parameters[0]


class Bool(_Shaped):
    pass


class Float(_Shaped):
    pass


class Int(_Shaped):
    pass


def install_import_hook(modules: Any, checker: Any) -> None:
    pass
