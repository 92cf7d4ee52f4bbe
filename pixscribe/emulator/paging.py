"""Lists that are given out a page at a time."""

import base64
import binascii
import re
from collections.abc import Iterable
from itertools import islice
from typing import Protocol, TypeVar

from pixscribe.emulator.call import Call
from pixscribe.emulator.replies import invalid_rpc

_DEFAULT_PAGE, _LARGEST_PAGE = 10, 100


class Numbered(Protocol):
    serial: int
    """Higher than that of whatever was there before."""


_Entry = TypeVar("_Entry", bound=Numbered)


def take_page(newest_first: Iterable[_Entry], call: Call) -> tuple[list[_Entry], dict[str, str]]:
    """The entries that are asked for, and what the answer says of the next page.

    The token names the last entry shown, so that deletions in between lose nothing. Raises `Refused`.
    """
    size, before = _page_size(call), _read_token(call.request.query.get("pageToken"))
    rest = list(islice((entry for entry in newest_first if entry.serial < before), size + 1))
    if len(rest) <= size:
        return rest, {}
    return rest[:size], {"nextPageToken": base64.urlsafe_b64encode(b"%d" % rest[size - 1].serial).decode()}


def _page_size(call: Call) -> int:
    given = call.request.query.get("pageSize", str(_DEFAULT_PAGE))
    if not re.fullmatch(r"[0-9]{1,9}", given) or not 1 <= int(given) <= _LARGEST_PAGE:
        raise invalid_rpc(f"Page size must be between 1 and {_LARGEST_PAGE}, got {given!r}.")
    return int(given)


def _read_token(token: str | None) -> float:
    if token is None:
        return float("inf")
    try:
        return int(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError) as cause:
        raise invalid_rpc("Page token is not valid.") from cause
