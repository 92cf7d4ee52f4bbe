"""What changed between two runs as a page, with the objects of both drawn over the images."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pixscribe.diff.gallery import changed_images
from pixscribe.diff.result import MAX_LISTED, Counts, Label, LabelCounts, LoneImages, PromptDiff, RunDiff, Side, percent
from pixscribe.report.blocks import Block, Cell, Code, Column, Link, Section, Stat, Stats, Table
from pixscribe.report.page import Page, Share, render_page
from pixscribe.report.wording import plural, usd
from pixscribe.results import RunResults

MAX_ROWS = 300
"""Of a table of labels; the rest is in the JSON."""
NUMBERS = tuple(Column(name, "number") for name in ("before", "after", "same", "moved"))


def render_diff(diff: RunDiff, before: RunResults, after: RunResults) -> bytes:
    """One HTML file. Pictures are those of the second run, or, where they cannot be had, of the first.

    Raises `OutputError` if the tables cannot be read.
    """
    gallery = (changed_images(diff, before, after),) if diff.changed else ()
    return render_page(
        Page(
            title=f"{before.run_id} → {after.run_id}",
            kind="run diff",
            verdict=_verdict(diff),
            facts=tuple(_facts(diff)),
            warning=" ".join(_warnings(diff)),
            shares=_shares(diff.counts),
            parts=(_overview(diff), *_settings(diff), *gallery, *map(_prompt, diff.prompts.values()), *_images(diff)),
        )
    )


def _verdict(diff: RunDiff) -> str:
    if diff.is_empty:
        return f"No difference in {plural(diff.images.compared, 'image')}"
    parts = [f"{diff.images.changed:,} of {plural(diff.images.compared, 'image')} changed"]
    lone = ((diff.added, "added"), (diff.removed, "removed"))
    return ", ".join([*parts, *(f"{side.images:,} {name}" for side, name in lone if side.images)])


def _facts(diff: RunDiff) -> Iterator[str]:
    yield f"{percent(diff.counts.changed_share)} of the objects changed"
    yield f"{plural(diff.counts.before, 'object')} before, {diff.counts.after:,} after"
    yield f"{usd(diff.before.totals.cost_usd)} → {usd(diff.after.totals.cost_usd)} USD"


def _warnings(diff: RunDiff) -> Iterator[str]:
    for side in (diff.before, diff.after):
        if not side.is_complete:
            yield f"{side.name} is not finished: compared are the {side.images:,} of its images that it has come to."
    if not diff.prompts:
        yield "The runs have no prompt in common, so that only their images are compared."
    for which, prompts in (("first", diff.prompts_before), ("second", diff.prompts_after)):
        if prompts:
            yield f"Only the {which} run asked {', '.join(prompts)}, which is not compared."


def _shares(counts: Counts) -> tuple[Share, ...]:
    if not counts.before and not counts.after:
        return ()
    return (
        Share("same", counts.same, "ok"),
        Share("moved or relabelled", counts.moved + counts.relabelled, "partial"),
        Share("new or gone", counts.new + counts.gone, "failed"),
    )


def _overview(diff: RunDiff) -> Section:
    counts, images = diff.counts, diff.images
    about = (
        f"Boxes of one label that overlap (IoU 0.5) are a pair: the same from {diff.same_iou:.10g} on, else moved. "
        "Those of two labels are relabelled, as are texts with other words. What is left is new or gone."
    )
    stats = [
        Stat("images compared", f"{images.compared:,}", f"{images.changed:,} changed"),
        Stat("same objects", f"{counts.same:,}", f"of {counts.before:,} before"),
        *(_stat(name, getattr(counts, name)) for name in ("moved", "relabelled", "new", "gone")),
    ]
    kinds = (("status", images.status_changed), ("file", images.content_changed), ("size", images.size_changed))
    stats += [Stat(f"another {name}", f"{count:,}", "images", "partial") for name, count in kinds if count]
    return Section("Overview", (Stats(stats), _runs((diff.before, diff.after))), about)


def _stat(name: str, count: int) -> Stat:
    return Stat(name, f"{count:,}", "", "partial" if count else "")


def _runs(sides: Sequence[Side]) -> Table:
    columns = ("run", "name", "images", "answers", "failed", "input tokens", "output tokens", "USD")
    rows: list[Sequence[Cell]] = []
    for name, side in zip(("before", "after"), sides, strict=True):
        totals = side.totals
        said = totals.output_tokens + totals.thought_tokens
        numbers = (side.images, totals.responses, totals.responses_failed, totals.input_tokens, said)
        rows.append((name, Code(side.name), *numbers, usd(totals.cost_usd)))
    return Table([Column(title, "text" if number < 2 else "number") for number, title in enumerate(columns)], rows)


def _settings(diff: RunDiff) -> Iterator[Section]:
    if diff.config:
        rows = [(Code(change.key), Code(_value(change.before)), Code(_value(change.after))) for change in diff.config]
        table = Table((Column("key"), Column("before"), Column("after")), rows)
        yield Section("Config", (table,), "What the runs were told differently.")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _prompt(prompt: PromptDiff) -> Section:
    counts = prompt.counts
    stats = [
        Stat("objects", f"{counts.before:,} → {counts.after:,}", f"{percent(counts.changed_share)} changed"),
        *(_stat(name, getattr(counts, name)) for name in ("moved", "relabelled", "new", "gone")),
    ]
    for name, count in (("answers lost", prompt.answers_lost), ("answers gained", prompt.answers_gained)):
        if count:
            stats.append(Stat(name, f"{count:,}", "", "failed" if name == "answers lost" else "ok"))
    blocks: list[Block] = [Stats(stats)]
    if prompt.labels:
        blocks.append(_labels(prompt))
    if prompt.relabellings:
        blocks.append(_relabellings(prompt))
    return Section(f"Prompt {prompt.prompt}", blocks, prompt.kind)


def _labels(prompt: PromptDiff) -> Table:
    lines = prompt.labels_by_change()
    rows = [_label_row(prompt, label, counts) for label, counts in lines[:MAX_ROWS]]
    left = len(lines) - len(rows)
    note = f"{plural(left, 'label')} more in the JSON that `pixscribe diff --json` prints." if left else ""
    columns = (
        *(Column("label"), *NUMBERS, Column("became another", "number"), Column("was another", "number")),
        *(Column("new", "number"), Column("gone", "number"), Column("changed", "share")),
    )
    return Table(columns, rows, caption=f"Labels, {len(lines):,} in all", note=note)


def _label_row(prompt: PromptDiff, label: Label, counts: LabelCounts) -> Sequence[Cell]:
    numbers = (counts.before, counts.after, counts.same, counts.moved, counts.relabelled_from, counts.relabelled_to)
    return (_label(prompt, label), *numbers, counts.new, counts.gone, counts.changed_share)


def _label(prompt: PromptDiff, label: Label) -> Cell:
    if label is None:
        return "no label"
    return Link(label, filters={"label": label, "prompt": prompt.prompt})


def _relabellings(prompt: PromptDiff) -> Table:
    ranked = prompt.relabellings.most_common(MAX_ROWS)
    rows = [(_label(prompt, before), _label(prompt, after), objects) for (before, after), objects in ranked]
    columns = (Column("before"), Column("after"), Column("objects", "bar"))
    return Table(columns, rows, caption="What became something else")


def _images(diff: RunDiff) -> Iterator[Section]:
    blocks: list[Block] = []
    if diff.statuses:
        rows = [(str(before), str(after), images) for (before, after), images in diff.statuses.most_common(MAX_ROWS)]
        columns = (Column("status before"), Column("status after"), Column("images", "bar"))
        blocks.append(Table(columns, rows, caption="Images with another status"))
    for name, lone in (("Added", diff.added), ("Removed", diff.removed)):
        if lone.images:
            blocks.append(_lone(name, lone))
    if blocks:
        yield Section("Images", blocks)


def _lone(name: str, lone: LoneImages) -> Table:
    cut = f", the first {MAX_LISTED:,} of them" if lone.images > len(lone.names) else ""
    caption = f"{name}: {plural(lone.images, 'image')} with {plural(lone.objects, 'object')}{cut}"
    return Table((Column("image"),), [(each,) for each in lone.names], caption=caption, open_rows=6)
