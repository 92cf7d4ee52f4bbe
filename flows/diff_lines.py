"""A comparison of two runs as lines of text, none longer than the terminal is wide."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flows.text_tables import ELLIPSIS, MAX_NAME, MIN_NAME, SEPARATOR, cut, cut_start, plain, table_lines, wrapped
from pixscribe.diff.result import percent

if TYPE_CHECKING:
    from pixscribe.diff.result import Counts, ImageChange, Label, LabelCounts, PromptDiff, RunDiff, Side

MAX_IMAGES = 20
MAX_LABELS = 20
"""Of each prompt, and of those that became another."""
MAX_VALUE = 100
"""Cells of a value of a config, also where lines may be of any length."""
HEADS = ("before", "after", "same", "moved", "relabelled", "new", "gone", "changed")


def diff_lines(diff: "RunDiff", width: int) -> Iterator[str]:
    """The comparison for people; everything else is in the JSON."""
    yield from _heads(diff, width)
    if diff.config:
        yield from ("", "config")
        yield from _config(diff, width)
    yield from _statuses(diff, width)
    for prompt in diff.prompts.values():
        if prompt.counts.changed:
            yield ""
            yield from _prompt(prompt, width)
    if diff.changed:
        yield ""
        yield from _images(diff.changed, diff.images.changed, width)


def share_sentence(diff: "RunDiff") -> str:
    """How many of the objects changed, and of which prompts."""
    of_prompts = ", ".join(f"{percent(float(prompt.share))} of {name}" for name, prompt in diff.prompts.items())
    detail = f" ({of_prompts})" if len(diff.prompts) > 1 else ""
    share = diff.share
    lost = share.empty_answers_lost
    counted = f"objects and {_count(lost, 'lost answer')} without any" if lost else "objects"
    return f"{share.changed:,} of {share.total:,} {counted} changed, {percent(float(share))}{detail}"


def _heads(diff: "RunDiff", width: int) -> Iterator[str]:
    lines = {
        "before": _side(diff.before),
        "after": _side(diff.after),
        "images": "" if diff.is_empty else _image_counts(diff),
        "objects": "" if diff.is_empty else _object_counts(diff.counts),
        "compared": _no_difference(diff) if diff.is_empty else "",
        "only before": _only(diff.prompts_before),
        "only after": _only(diff.prompts_after),
        "tokens": _tokens(diff),
        "cost": _arrow(f"{diff.before.totals.cost_usd:.4f}", f"{diff.after.totals.cost_usd:.4f}", "USD"),
    }
    lines = {name: text for name, text in lines.items() if text}
    name_cells = max(map(len, lines))
    for name, text in lines.items():
        head = name.ljust(name_cells) + SEPARATOR
        yield from wrapped(head + text, width, " " * len(head))


def _no_difference(diff: "RunDiff") -> str:
    return f"no difference: {_count(diff.images.compared, 'image')}, {_count(diff.counts.before, 'object')}"


def _side(side: "Side") -> str:
    unfinished = "" if side.is_complete else ", unfinished"
    return f"{plain(side.name)} ({_count(side.images, 'image')}{unfinished})"


def _tokens(diff: "RunDiff") -> str:
    before, after = diff.before.totals, diff.after.totals
    read = _arrow(f"{before.input_tokens:,}", f"{after.input_tokens:,}", "input")
    old, new = (f"{totals.output_tokens + totals.thought_tokens:,}" for totals in (before, after))
    return f"{read}, {_arrow(old, new, 'output')}"


def _arrow(before: str, after: str, unit: str) -> str:
    return f"{before} {unit} in both" if before == after else f"{before} → {after} {unit}"


def _image_counts(diff: "RunDiff") -> str:
    images = diff.images
    kinds = {
        "changed objects": images.objects_changed,
        "changed status": images.status_changed,
        "another file": images.content_changed,
        "another size": images.size_changed,
    }
    found = ", ".join(f"{count:,} with {name}" for name, count in kinds.items() if count)
    lone = "; ".join(
        f"{side.images:,} {name} with {_count(side.objects, 'object')}"
        for name, side in (("added", diff.added), ("removed", diff.removed))
        if side.images
    )
    changed = f"{images.compared:,} compared, {images.changed:,} changed" + (f": {found}" if found else "")
    return "; ".join(filter(None, [changed, lone]))


def _object_counts(counts: "Counts") -> str:
    if not counts.before and not counts.after:
        return "none in either run"
    return f"{counts.before:,} before, {counts.after:,} after: {_words(counts)}; {_percent(counts)} changed"


def _words(counts: "Counts") -> str:
    states = ((name, getattr(counts, name)) for name in ("same", "moved", "relabelled", "new", "gone"))
    return ", ".join(f"{count:,} {name}" for name, count in states if count) or "none"


def _only(prompts: Sequence[str]) -> str:
    return f"{', '.join(prompts)}: not compared" if prompts else ""


def _config(diff: "RunDiff", width: int) -> Iterator[str]:
    for change in diff.config:
        yield f"{SEPARATOR}{change.key}"
        for sign, value in (("-", change.before), ("+", change.after)):
            yield f"{SEPARATOR * 2}{sign} {cut(_value(value), min(MAX_VALUE, max(MIN_NAME, width - 6)))}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _statuses(diff: "RunDiff", width: int) -> Iterator[str]:
    if diff.statuses:
        yield from ("", "status")
    for (before, after), images in diff.statuses.most_common(MAX_LABELS):
        yield cut(f"{SEPARATOR}{before} → {after}: {_count(images, 'image')}", max(width, MIN_NAME))


def _prompt(prompt: "PromptDiff", width: int) -> Iterator[str]:
    lines = [(label, counts) for label, counts in prompt.labels_by_change() if counts.changed]
    rows = [(prompt.prompt, *HEADS), _row("  all", prompt.counts, f"{prompt.counts.relabelled:,}")]
    rows += [_row(f"  {_label(label)}", counts, _turned(counts)) for label, counts in lines[:MAX_LABELS]]
    yield from table_lines([_fitting(row, rows, width) for row in rows], width)
    if len(lines) > MAX_LABELS:
        yield f"{SEPARATOR}{ELLIPSIS} {_count(len(lines) - MAX_LABELS, 'changed label')} more"
    if prompt.answers_lost or prompt.answers_gained:
        yield f"{SEPARATOR}answers: {prompt.answers_lost:,} lost, {prompt.answers_gained:,} gained"
    for (before, after), objects in prompt.relabellings.most_common(MAX_LABELS):
        room = max(MIN_NAME, min(MAX_NAME, (width - len(f"  {objects:,}  became ") - 1) // 2))
        yield f"{SEPARATOR}{objects:,} {cut(_label(before), room)} became {cut(_label(after), room)}"


def _row(name: str, counts: "Counts | LabelCounts", relabelled: str) -> tuple[str, ...]:
    numbers = (counts.before, counts.after, counts.same, counts.moved, relabelled, counts.new, counts.gone)
    return (name, *(number if isinstance(number, str) else f"{number:,}" for number in numbers), _percent(counts))


def _fitting(row: tuple[str, ...], rows: Sequence[tuple[str, ...]], width: int) -> tuple[str, ...]:
    """In narrow terminals without the columns that follow from the others."""
    cells = sum(max(map(len, column)) + len(SEPARATOR) for column in list(zip(*rows, strict=True))[1:])
    return row if cells + MIN_NAME <= width else (row[0], *row[4:8])


def _turned(counts: "LabelCounts") -> str:
    """How many had this label and have another one, and the reverse."""
    turned = (("-", counts.relabelled_from), ("+", counts.relabelled_to))
    return " ".join(f"{sign}{objects:,}" for sign, objects in turned if objects) or "0"


def _label(label: "Label") -> str:
    return "(no label)" if label is None else label


def _images(changes: Sequence["ImageChange"], count: int, width: int) -> Iterator[str]:
    yield f"first {MAX_IMAGES} of {count:,} changed images" if count > MAX_IMAGES else "changed images"
    for change in changes[:MAX_IMAGES]:
        words = change.words()
        name = cut_start(change.file_name, max(MIN_NAME, min(MAX_NAME, width - len(words) - 4)))
        yield cut(f"{SEPARATOR}{name}{SEPARATOR}{words}", max(width, MIN_NAME))


def _percent(counts: "Counts | LabelCounts") -> str:
    return percent(counts.changed_share)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
