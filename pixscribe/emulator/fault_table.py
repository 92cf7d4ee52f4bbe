"""How faults are entered into their tables: by name, with the docstring of their function as their description."""

from collections.abc import Callable
from typing import Any, TypeVar

_Fault = TypeVar("_Fault", bound=Callable[..., Any])


def enter(table: dict[str, _Fault], name: str) -> Callable[[_Fault], _Fault]:
    def put(function: _Fault) -> _Fault:
        table[name] = function
        return function

    return put
