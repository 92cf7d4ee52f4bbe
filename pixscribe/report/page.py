"""One self-contained HTML file: its style, script, charts and pictures are in it, and it may fetch nothing.

The script reads the gallery's data from a `<script type="application/json">` and puts text into the page by
`textContent` and attributes only. The Content-Security-Policy names the two scripts and the style sheet by their
hashes, so that nothing else would run even if it got in.
"""

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files

import jinja2
from markupsafe import Markup

from pixscribe import __version__
from pixscribe.report.blocks import Block, Cell, Code, Column, Columns, Link, Section, Stack, Table, Tone
from pixscribe.report.encoding import EncodedGallery, encode_gallery, styles_of
from pixscribe.report.gallery import Gallery
from pixscribe.report.wording import cut, plural, short_label

PAGE_BYTES = 20_000_000
"""What a page takes at most."""
TEXT_BYTES = 6_000_000
"""What of it answers, names and outlines take at most; the rest is for pictures."""
SECTION_BYTES = 5_000_000
"""What the sections take at most, with style and script."""
SHORTER_ROWS = (100, 20, 5)
"""Of each table, where the sections take more."""
MAX_CELL = 1000
"""Letters in a cell of a table."""
MAX_CODE = 4000
"""The same of what a computer reads, such as the value of a config."""
MAX_TEXT = 20_000
"""Of a note, such as the words of a question."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the band below the verdict."""

    name: str
    count: int
    tone: Tone


@dataclass(frozen=True, slots=True)
class Page:
    """A page, from top to bottom. `parts` may hold one `Gallery`."""

    title: str
    """The name of the run, or of what is compared."""
    verdict: str
    """What came out, in one sentence."""
    parts: Sequence[Section | Gallery]
    kind: str = "run report"
    facts: Sequence[str] = ()
    """A few words each, in one line below the verdict."""
    warning: str = ""
    """A sentence that must not be missed, such as that a run is unfinished."""
    shares: Sequence[Share] = field(default_factory=tuple)


def render_page(page: Page) -> bytes:
    """The HTML file, at most `PAGE_BYTES` long. Long tables are cut until the sections fit into `SECTION_BYTES`."""
    gallery = next((part for part in page.parts if isinstance(part, Gallery)), None)
    empty = EncodedGallery(b"", len(gallery.images), 0) if gallery else None
    for shorter in _shorter_and_shorter(page):
        bare = _fill(shorter, gallery, empty)
        if len(bare) <= SECTION_BYTES:
            break
    if gallery is None:
        return bare
    limit_bytes = PAGE_BYTES - len(bare)
    return _fill(shorter, gallery, encode_gallery(gallery, limit_bytes, min(TEXT_BYTES, limit_bytes)))


def _shorter_and_shorter(page: Page) -> Iterator[Page]:
    """The page, then with tables of fewer and fewer rows, at last with nothing but the gallery."""
    yield page
    for rows in SHORTER_ROWS:
        yield replace(page, parts=[_with_rows(part, rows) for part in page.parts])
    about = "The sections of this page would be longer than a page may be; what they say is in the tables."
    yield replace(
        page,
        title=cut(page.title, MAX_CELL),
        verdict=cut(page.verdict, MAX_CELL),
        facts=[cut(fact, MAX_CELL) for fact in page.facts[:MAX_CELL]],
        warning=f"{about} {cut(page.warning, MAX_CELL)}",
        parts=[part for part in page.parts if isinstance(part, Gallery)],
    )


def _with_rows(part: Section | Gallery, rows: int) -> Section | Gallery:
    return part if isinstance(part, Gallery) else replace(part, blocks=[_shortened(each, rows) for each in part.blocks])


def _shortened(block: Block, rows: int) -> Block:
    """With tables of so many rows."""
    if isinstance(block, Table) and len(block.rows) > rows:
        left = f"{plural(len(block.rows) - rows, 'row')} more would not fit into the page."
        return replace(block, rows=block.rows[:rows], note=f"{block.note} {left}".strip())
    if isinstance(block, Columns | Stack):
        return replace(block, blocks=[_shortened(each, rows) for each in block.blocks])
    return block


def _fill(page: Page, gallery: Gallery | None, encoded: EncodedGallery | None) -> bytes:
    style, start, script = _asset("page.css"), _asset("theme.js"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; "
        f"script-src {_source(start)} {_source(script)}; base-uri 'none'; form-action 'none'"
    )
    text = _template().render(
        page=page,
        encoded=encoded,
        data=Markup(encoded.data.decode()) if encoded else "",
        styles=styles_of(gallery) if gallery else {},
        in_gallery=_names(gallery, encoded) if gallery and encoded else (),
        policy=policy,
        style=Markup(style),
        start=Markup(start),
        script=Markup(script),
        version=__version__,
    )
    return text.encode("utf-8", "replace")


def _names(gallery: Gallery, encoded: EncodedGallery) -> frozenset[str]:
    return frozenset(image.file_name for image in gallery.images[: encoded.images])


@lru_cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(cell=_cell_text, slug=_slug, short=_short, note=lambda text: cut(text, MAX_TEXT))
    environment.tests.update(
        gallery=lambda part: isinstance(part, Gallery),
        link=lambda cell: isinstance(cell, Link),
        code=lambda cell: isinstance(cell, Code),
    )
    environment.globals.update(largest=_largest, width=_width, shade=_shade)
    return environment.from_string(_asset("page.html.jinja"))


@lru_cache
def _asset(name: str) -> str:
    return files("pixscribe.report").joinpath("assets", name).read_text("utf-8")


def _source(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


def _slug(title: str) -> str:
    """An id for a heading."""
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _short(cell: Cell) -> Cell:
    """What a cell shows: labels as in the gallery, other words within bounds."""
    match cell:
        case Link():
            filters = {name: short_label(value) for name, value in cell.filters.items()}
            label = None if cell.label is None else short_label(cell.label)
            return replace(cell, text=short_label(cell.text), filters=filters, label=label)
        case Code():
            return Code(cut(cell.text, MAX_CODE))
        case str():
            return cut(cell, MAX_CELL)
    return cell


def _cell_text(cell: object, column: Column) -> str:
    match cell:
        case None:
            return "–"
        case Link() | Code():
            return cell.text
        case bool() | str():
            return str(cell)
        case float() if not math.isfinite(cell):
            return "–"
        case float() if column.kind == "share":
            return f"{100 * cell:.1f} %"
        case float() if column.kind == "rate":
            return f"{cell:.3f}"
        case float():
            return f"{cell:,.0f}" if abs(cell) >= 1000 or cell == int(cell) else f"{cell:.3g}"
        case int():
            return f"{cell:,}"
    return str(cell)


def _largest(table: Table, index: int) -> float:
    cells = (row[index] for row in table.rows)
    return max((cell for cell in cells if isinstance(cell, int | float)), default=0)


def _width(value: object, largest: float) -> str:
    """The length of a bar, in per cent."""
    share = value / largest if isinstance(value, int | float) and largest > 0 else 0.0
    return f"{100 * min(max(share, 0.0), 1.0):.1f}%"


def _shade(count: int, row: Sequence[int]) -> int:
    """0 (nothing) to 6 (all of the row)."""
    total = sum(row)
    return 0 if count <= 0 or total <= 0 else max(1, round(6 * count / total))
