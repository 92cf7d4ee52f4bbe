"""Lines of text that fit into a terminal, whatever names they hold."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

MAX_NAME = 60
"""Cells of a label or a file name, also where lines may be of any length."""
MIN_NAME = 12
SEPARATOR = "  "
ELLIPSIS = "…"
Row = tuple[str, ...]


def table_lines(rows: Sequence[Row], width: int) -> Iterator[str]:
    """The first column to the left, and as wide as the others leave room; numbers to the right."""
    names = [cut(row[0], name_width(rows, width)) for row in rows]
    widths = [max(map(cell_len, names)), *_widths(rows)]
    for name, row in zip(names, rows, strict=True):
        cells = (cell.rjust(cell_width) for cell, cell_width in zip(row[1:], widths[1:], strict=True))
        yield SEPARATOR.join([set_cell_size(name, widths[0]), *cells])


def name_width(rows: Sequence[Row], width: int) -> int:
    """What the other columns leave for the first one."""
    widths = _widths(rows)
    return min(MAX_NAME, max(MIN_NAME, width - sum(widths) - len(SEPARATOR) * len(widths)))


def cut(text: str, width: int) -> str:
    """At most `width` cells of a text."""
    shown = plain(text)
    return shown if cell_len(shown) <= width else set_cell_size(shown, width - 1).rstrip() + ELLIPSIS


def cut_start(text: str, width: int) -> str:
    """The end of it: of a path that says most."""
    shown = plain(text)
    if cell_len(shown) <= width:
        return shown
    while cell_len(shown) >= width:
        shown = shown[1:]
    return ELLIPSIS + shown


def plain(text: str) -> str:
    """Line breaks and what a terminal would obey, made visible."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of a sentence; `indent` is for all but the first."""
    return textwrap.wrap(text, max(width, 2 * MIN_NAME), subsequent_indent=indent, break_on_hyphens=False)


def _widths(rows: Sequence[Row]) -> list[int]:
    return [max(map(len, column)) for column in list(zip(*rows, strict=True))[1:]]
