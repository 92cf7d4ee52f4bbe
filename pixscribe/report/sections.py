"""The numbers of a run as sections of its page."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pixscribe.config import EMULATOR, RunConfig
from pixscribe.errors import ConfigError
from pixscribe.report.blocks import (
    Block,
    Cell,
    Code,
    Column,
    Columns,
    Figure,
    Link,
    Note,
    Section,
    Stack,
    Stat,
    Stats,
    Table,
)
from pixscribe.report.charts import Bin, Series, histogram, over_time
from pixscribe.report.findings import SHARED, SIZE_BINS, Findings, PromptFindings
from pixscribe.report.pace import Step
from pixscribe.report.page import Share
from pixscribe.report.wording import ERROR_HELP, FLAG_HELP, duration, milliseconds, moment, plural, short_count, usd
from pixscribe.run import make_questions

MAX_ROWS = 300
"""Rows of a table of labels; the rest is in the tables."""
STEPS = 60
"""Points of a chart over time."""
SHORT_QUESTION = 160
"""Letters of a prompt that fit under its heading; a longer one has a place of its own."""
BOX_KINDS = ("detect", "segment")

COUNT_EDGES = (*range(11), 20, 50, 100, 200, SHARED)
"""Objects per image: one by one up to 10, then up to and including each of these."""


def verdict(findings: Findings) -> str:
    """What came out, in one sentence."""
    images, failed, partial = findings.images.total(), findings.images["failed"], findings.images["partial"]
    if not images:
        return "No image has been labelled"
    if not failed and not partial:
        return "The one image was labelled" if images == 1 else f"All {images:,} images were labelled"
    in_full = " in full" if partial else ""
    parts = [f"{findings.images['ok']:,} of {plural(images, 'image')} labelled{in_full}"]
    if partial:
        parts.append(f"{partial:,} in part: {_by_code(findings.partial_errors)}")
    if failed:
        parts.append(f"{failed:,} failed: {_by_code(findings.image_errors)}")
    return "; ".join(parts)


def shares(findings: Findings) -> tuple[Share, ...]:
    """The band below the verdict."""
    return (
        Share("ok", findings.images["ok"], "ok"),
        Share("partial", findings.images["partial"], "partial"),
        Share("failed", findings.images["failed"], "failed"),
    )


def overview(findings: Findings, summary: Mapping[str, Any], config: RunConfig | None) -> Section:
    """The totals, and what failed."""
    blocks: list[Block] = [Stats(tuple(_stats(findings, summary, config)))]
    if findings.errors:
        blocks.append(_failures(findings))
    return Section("Overview", blocks)


def prompt_section(name: str, found: PromptFindings, question: str | None) -> Section:
    """What came of one prompt: its labels, objects per image and box sizes."""
    is_short = question is not None and len(question) <= SHORT_QUESTION
    about = f"{found.kind}: {question}" if is_short else found.kind
    blocks: list[Block] = [Note(question)] if question and not is_short else []
    blocks.append(Stats(tuple(_prompt_stats(name, found))))
    labels = None if found.is_text else _labels(name, found)
    figures = [_per_image(found)] if found.per_image and not found.is_text else []
    if found.sizes.any():
        figures.append(_sizes(found))
    if labels and figures:
        blocks.append(Columns((labels, Stack(figures))))
    elif labels:
        blocks.append(labels)
    return Section(f"Prompt {name}", blocks, about)


def flag_section(findings: Findings) -> Section:
    """What had to be repaired."""
    rows = [
        (Link(flag, filters={"flag": flag}), count, FLAG_HELP.get(flag, "")) for flag, count in _ranked(findings.flags)
    ]
    table = Table((Column("flag"), Column("objects", "bar"), Column("what it means")), rows)
    return Section("Flags", (table,), "What was repaired in objects; each repair leaves its name.")


def time_section(findings: Findings) -> Section:
    """Throughput and latency."""
    steps = findings.pace.steps(STEPS)
    if not steps:
        return Section("Time", (Note(_why_no_times(findings)),))
    width_s = findings.pace.width_s
    times = _times(steps)
    answers = Series("answers per minute", [step.answers * 60 / width_s for step in steps])
    latencies = (
        Series("median, ms", [step.median_ms for step in steps]),
        Series("95th percentile, ms", [step.p95_ms for step in steps], "second"),
    )
    overall = findings.pace.overall()
    about = f"{plural(overall.answers, 'answer')} in steps of {duration(width_s).replace('.0 s', ' s')}, in UTC."
    return Section(
        "Time",
        (
            Columns(
                (
                    over_time("Throughput", times, (answers,), y_title="answers per minute"),
                    over_time(
                        "Latency",
                        times,
                        latencies,
                        y_title="ms",
                        note="Of one attempt, from the first byte sent to the last received. "
                        "Line: median; dashed: 95th percentile.",
                    ),
                )
            ),
        ),
        about,
    )


def _why_no_times(findings: Findings) -> str:
    answered = findings.responses["ok"] + findings.responses["repaired"] - findings.reused
    if findings.requests:
        return "It is not known when the answers came." if answered > 0 else "No question was answered."
    return "No question was asked" + (": all answers came from earlier runs." if findings.reused else ".")


def run_section(
    run_id: str, summary: Mapping[str, Any], config: RunConfig | None, tables: Mapping[str, str]
) -> Section:
    """Where everything is, and what was asked."""
    facts: list[tuple[str, Cell]] = [("run", Code(run_id))]
    facts += [(name, Code(uri)) for name, uri in tables.items()]
    for key in ("status", "model", "started_at", "finished_at", "config_digest", "version"):
        if isinstance(summary.get(key), str):
            facts.append((key.replace("_", " "), moment(summary[key])))
    if config:
        facts += [("source", Code(config.source.uri)), ("service tier", config.model.service_tier)]
    return Section("Run", (Table((Column("name"), Column("value")), facts, open_rows=40),))


def question_texts(config: RunConfig | None) -> dict[str, str]:
    """The words that were sent, by the prompt's name, as far as the config can be read."""
    try:
        return {question.name: question.text for question in make_questions(config)} if config else {}
    except ConfigError:
        return {}


def _by_code(errors: Counter[str]) -> str:
    """`decode_error`, `2 decode_error, 1 blocked`, or the most frequent one: the table says the rest."""
    ranked = _ranked(errors)
    if len(ranked) == 1:
        return ranked[0][0]
    told = [f"{count:,} {code}" for code, count in ranked]
    if len(told) == 2:
        return ", ".join(told)
    return f"{told[0]}, {errors.total() - ranked[0][1]:,} for other reasons"


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _stats(findings: Findings, summary: Mapping[str, Any], config: RunConfig | None) -> Iterator[Stat]:
    images = findings.images
    yield Stat("images", f"{images.total():,}", f"{images['ok']:,} ok")
    if images["partial"]:
        yield Stat("in part", f"{images['partial']:,}", "some prompts failed", "partial")
    if images["failed"]:
        yield Stat("failed", f"{images['failed']:,}", "no prompt was answered", "failed")
    yield Stat("objects", f"{findings.objects:,}", _per(findings.objects, images.total(), "an image"))
    yield Stat("answers", f"{findings.responses.total():,}", _answer_note(findings))
    tokens = findings.tokens
    output = tokens["output_tokens"] + tokens["thought_tokens"]
    yield Stat(
        "tokens", short_count(tokens.total()), f"{short_count(tokens['input_tokens'])} in, {short_count(output)} out"
    )
    yield _cost(findings, config)
    yield from _time_stats(findings, summary)


def _answer_note(findings: Findings) -> str:
    counts = {
        "repaired": findings.responses["repaired"],
        "failed": findings.responses["failed"],
        "reused": findings.reused,
    }
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "all as asked"


def _per(count: int, total: int, of_what: str) -> str:
    return f"{count / total:.1f} {of_what}" if total else ""


def _cost(findings: Findings, config: RunConfig | None) -> Stat:
    if not findings.priced and findings.tokens.total():
        return Stat("USD", "–", "no price is known for this model")
    if config is not None and config.model.base_url == EMULATOR:
        return Stat("USD", usd(findings.cost_usd), "by list price; the emulator charges nothing")
    images = findings.images.total()
    each = f"{usd(1000 * findings.cost_usd / images)} for 1,000 images" if images and findings.cost_usd else ""
    return Stat("USD", usd(findings.cost_usd), each)


def _time_stats(findings: Findings, summary: Mapping[str, Any]) -> Iterator[Stat]:
    elapsed_s, images_per_s = _number(summary, "elapsed_s"), _number(summary, "images_per_s")
    if elapsed_s is not None:
        rate = f"{images_per_s:,.1f} images/s" if images_per_s is not None else ""
        yield Stat("time", duration(elapsed_s), rate)
    overall = findings.pace.overall()
    if overall.median_ms is not None and overall.p95_ms is not None:
        yield Stat("latency, median", milliseconds(overall.median_ms), f"95 % within {milliseconds(overall.p95_ms)}")


def _number(summary: Mapping[str, Any], key: str) -> float | None:
    value = summary.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _failures(findings: Findings) -> Table:
    ranked = sorted(findings.errors.items(), key=lambda item: (-item[1].total(), item[0]))
    rows = [
        (
            Link(code, filters={"error": code}),
            prompts.total(),
            findings.images_by_error[code],
            ", ".join(f"{name} {count:,}" for name, count in _ranked(prompts)),
            ERROR_HELP.get(code, ""),
        )
        for code, prompts in ranked
    ]
    columns = (
        *(Column("reason"), Column("answers", "number"), Column("images", "number")),
        *(Column("by prompt"), Column("what it means")),
    )
    return Table(columns, rows, caption="What failed")


def _prompt_stats(name: str, found: PromptFindings) -> Iterator[Stat]:
    answered = found.statuses["ok"] + found.statuses["repaired"]
    noun = {"caption": "captions", "classify": "classes", "ask": "answers"}.get(found.kind, "objects")
    yield Stat("answered", f"{answered:,}", f"of {found.statuses.total():,}")
    yield Stat(noun, f"{found.objects:,}", _per(found.objects, answered, "an answer"))
    if found.kind in (*BOX_KINDS, "classify"):
        nothing = found.per_image[0]
        yield Stat("found nothing", f"{nothing:,}", f"{100 * nothing / answered:.1f} %" if answered else "")
    if found.statuses["repaired"]:
        yield Stat("repaired", f"{found.statuses['repaired']:,}", "the words were not quite as asked", "partial")
    if found.statuses["failed"]:
        yield Stat("failed", f"{found.statuses['failed']:,}", "", "failed")


def _labels(name: str, found: PromptFindings) -> Table:
    ranked = _ranked(found.labels.counts)
    total = max(1, found.objects)
    rows: list[Sequence[Cell]] = [
        (Link(label, filters={"label": label, "prompt": name}, label=label), count, count / total)
        for label, count in ranked[:MAX_ROWS]
    ]
    if found.unlabelled:
        rows.append(("no label", found.unlabelled, found.unlabelled / total))
    left = sum(count for _, count in ranked[MAX_ROWS:]) + found.labels.rare
    note = f"{plural(left, 'object')} of other labels, each of them rarer." if left else ""
    columns = (Column("label"), Column("objects", "bar"), Column("share", "share"))
    return Table(columns, rows, caption=f"Labels, {len(ranked):,} in all" if ranked else "Labels", note=note)


def _per_image(found: PromptFindings) -> Figure:
    largest = max(found.per_image)
    bins = []
    for low, high in zip((-1, *COUNT_EDGES), COUNT_EDGES, strict=False):
        count = sum(found.per_image[number] for number in range(low + 1, high + 1))
        bins.append(Bin(_range(low + 1, high), count))
        if high >= largest and len(bins) > 4:
            break
    return histogram("Objects per image", bins, x_title="objects", y_title="images")


def _range(low: int, high: int) -> str:
    if high >= SHARED:
        return f"{low}+"
    return str(low) if low == high else f"{low}–{high}"


def _sizes(found: PromptFindings) -> Figure:
    step = 100 // SIZE_BINS
    bins = [Bin(f"{number * step}–{(number + 1) * step} %", int(count)) for number, count in enumerate(found.sizes)]
    edges = [f"{number * step} %" if number % 4 == 0 else "" for number in range(SIZE_BINS + 1)]
    return histogram(
        "Box sizes",
        bins,
        x_title="side",
        y_title="boxes",
        edges=edges,
        note="The side of a square as large as the box, in per cent of that of a square as large as the image.",
    )


def _times(steps: Sequence[Step]) -> list[str]:
    starts = [datetime.fromtimestamp(step.start_s, UTC) for step in steps]
    spans_days = starts[0].date() != starts[-1].date()
    form = "%m-%d %H:%M" if spans_days else "%H:%M:%S"
    return [start.strftime(form) for start in starts]
