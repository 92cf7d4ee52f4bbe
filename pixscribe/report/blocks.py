"""What the sections of a page are made of. Any text may hold anything: it is escaped where it is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from markupsafe import Markup

Tone = Literal["", "ok", "partial", "failed"]
"""What a number or a word stands for: nothing, good, in between, bad."""

Filters = Mapping[str, str]
"""What the gallery is filtered by: values of `label`, `prompt`, `status`, `flag`, `error` and `state`."""


@dataclass(frozen=True, slots=True)
class Link:
    """Words that lead into the gallery: to the image of a file name, or to those that `filters` let through.

    An image that is not in the gallery leaves the words without a link.
    """

    text: str
    image: str | None = None
    filters: Filters = field(default_factory=dict)
    label: str | None = None
    """Put the colour of this label in front."""


@dataclass(frozen=True, slots=True)
class Code:
    """Words that a computer reads, such as an id, a path or a prompt's text."""

    text: str


Cell = str | int | float | None | Link | Code
"""None is shown as a dash. Floats get three digits, whole numbers their thousands."""


@dataclass(frozen=True, slots=True)
class Column:
    """`text` stands left and `number` right; a `bar` is a number with its length, as long as the largest of the column
    is; a `share` is a number from 0 to 1 in per cent, and a `rate` one with three digits.
    """

    title: str
    kind: Literal["text", "number", "bar", "share", "rate"] = "text"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns. What is beyond `open_rows` is folded away."""

    block: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    note: str = ""
    """A sentence below, such as what was left out."""
    open_rows: int = 12


@dataclass(frozen=True, slots=True)
class Stat:
    """One number with its name, and a few words about it."""

    name: str
    value: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """Numbers side by side."""

    block: ClassVar[str] = "stats"
    stats: Sequence[Stat]


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart. `svg` is markup of ours; `table` says the same in numbers, folded away."""

    block: ClassVar[str] = "figure"
    title: str
    svg: Markup
    table: Table
    note: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Counts with names on both sides, such as a confusion matrix; cells are shaded by their share of the row."""

    block: ClassVar[str] = "matrix"
    row_title: str
    column_title: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[int]]
    caption: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence or two, or several lines. With a tone it stands out."""

    block: ClassVar[str] = "note"
    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Columns:
    """Blocks side by side, where there is room."""

    block: ClassVar[str] = "columns"
    blocks: Sequence["Block"]


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks below each other, as one of the columns."""

    block: ClassVar[str] = "stack"
    blocks: Sequence["Block"]


Block = Table | Stats | Figure | Matrix | Note | Columns | Stack


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page, with its heading."""

    title: str
    blocks: Sequence[Block]
    about: str = ""
    """A few words under the heading."""
