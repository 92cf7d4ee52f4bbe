"""Small checks of a JSON value, composed into the strictness of a request.

A check takes the path of the value, for the message, and the value; it raises `Refused` (400 invalid_request).
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pixscribe.emulator.replies import Refused, invalid, not_emulated

Check = Callable[[str, Any], None]


def record(
    fields: Mapping[str, Check],
    required: Collection[str] = (),
    refuse: Callable[[str, str], Refused] | None = None,
) -> Check:
    """An object with these members and no other; `refuse` words what is said of another, from path and name."""

    def check(path: str, value: Any) -> None:
        members = _as_object(path, value)
        for key, member in members.items():
            if key not in fields:
                raise (refuse or unknown)(path, key)
            fields[key](join(path, key), member)
        for key in required:
            if key not in members:
                raise invalid(f"Missing required parameter '{join(path, key)}'.")

    return check


def tagged(variants: Mapping[str, Check]) -> Check:
    """An object whose `type` says which check it must pass."""

    def check(path: str, value: Any) -> None:
        tag = _as_object(path, value).get("type")
        if not isinstance(tag, str) or tag not in variants:
            raise invalid(f"Invalid value at '{join(path, 'type')}': {tag!r}. Supported values: {_listed(variants)}.")
        variants[tag](path, value)

    return check


def string(path: str, value: Any) -> None:
    if not isinstance(value, str):
        raise invalid(f"Invalid value at '{path}': expected a string.")


def text(path: str, value: Any) -> None:
    """A string that is not empty."""
    string(path, value)
    if not value:
        raise invalid(f"Invalid value at '{path}': must not be empty.")


def boolean(path: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise invalid(f"Invalid value at '{path}': expected a boolean.")


def integer(low: int, high: int) -> Check:
    def check(path: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise invalid(f"Invalid value at '{path}': expected an integer.")
        if not low <= value <= high:
            raise invalid(
                f"Unable to submit request because '{path}' is {value}; the supported range is {low} to {high}."
            )

    return check


def number(low: float, high: float) -> Check:
    def check(path: str, value: Any) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise invalid(f"Invalid value at '{path}': expected a number.")
        if not low <= value <= high:
            raise invalid(
                f"Unable to submit request because '{path}' is {value}; the supported range is {low:g} to {high:g}."
            )

    return check


def one_of(*values: str) -> Check:
    def check(path: str, value: Any) -> None:
        if not isinstance(value, str) or value not in values:
            raise invalid(f"Invalid value at '{path}': {value!r}. Supported values: {_listed(values)}.")

    return check


def each(item: Check, least: int = 0, most: int | None = None) -> Check:
    def check(path: str, value: Any) -> None:
        if not isinstance(value, list):
            raise invalid(f"Invalid value at '{path}': expected an array.")
        if len(value) < least or (most is not None and len(value) > most):
            raise invalid(f"Invalid value at '{path}': {len(value)} entries.")
        for index, member in enumerate(value):
            item(f"{path}[{index}]", member)

    return check


def absent(what: str) -> Check:
    """A member that Gemini knows and the emulator does not."""

    def check(path: str, value: Any) -> None:
        raise not_emulated(what)

    return check


def unknown(path: str, key: str) -> Refused:
    return invalid(f"Unknown parameter '{join(path, key)}'.", "parameter_unknown")


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _as_object(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"Invalid value at '{path or 'body'}': expected an object.")
    return value


def _listed(values: Collection[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)
