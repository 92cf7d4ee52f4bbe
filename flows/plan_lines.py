"""A plan in words: a line for each thing, what should be known before, and one sentence that says it all."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pixscribe.config import EMULATOR, RunConfig

if TYPE_CHECKING:
    from pixscribe.plan import Plan
    from pixscribe.plan.time_and_storage import FileStorage

LIMIT_WORDS = {
    "limits.requests_per_minute": "at {value:,.10g} requests a minute",
    "limits.tokens_per_minute": "at {value:,.10g} input tokens a minute",
    "limits.requests_per_day": "at {value:,} requests a day",
    "limits.concurrency": "with {value:,} requests in flight",
    "batch.queue_tokens": "with {value:,} input tokens in jobs at a time",
}


def plan_lines(plan: "Plan") -> dict[str, str]:
    """Names of lines, and their texts."""
    lines = {**_source_lines(plan), **(_asking_lines(plan) if plan.questions.to_ask else {})}
    return {name: text for name, text in lines.items() if text}


def plan_notes(plan: "Plan", config: RunConfig) -> Iterator[str]:
    """What should be known before the run is begun."""
    if not plan.images.is_exact:
        yield (
            f"{plan.images.looked_at:,} images, spread evenly over those that are not known to be answered, were read; "
            "what says `about` is scaled up from them, and --exact reads all"
        )
    if any(prompt.to_ask and not prompt.measured_answers for prompt in plan.prompts.values()):
        yield (
            "the length of answers is assumed, and what the images show may change it several times over; "
            "--sample 50 measures it"
        )
    if plan.usd is None:
        yield f"the price of {plan.model} is not known; say it in prices.models"
    if config.model.base_url == EMULATOR:
        yield "the emulator charges nothing, and its answers are shorter than the model's"
    yield from _limit_notes(plan, config)
    if plan.unfinished_run:
        yield f"`pixscribe run` goes on with {plan.unfinished_run}, about the images that it has listed"


def verdict(plan: "Plan", config: RunConfig) -> str:
    """The whole plan in one sentence."""
    images, questions = plan.images, plan.questions
    if questions.to_ask == 0:
        return f"{_count(images.total, 'image')}, {_count(questions.total, 'question')}, none of which is to be asked."
    asked = _count(questions.total, "question")
    if questions.to_ask != questions.total:
        asked = f"{_about(plan)}{questions.to_ask:,} of {asked} to ask"
    return (
        f"{_count(images.total, 'image')}, {asked}, {_sum(plan)}, "
        f"{_time_words(plan.duration.total_s)} {_limit_words(plan, config)}."
    )


def _source_lines(plan: "Plan") -> dict[str, str]:
    return {
        "source": f"{plan.source}: {_count(plan.images.total, 'image')}, {_bytes(plan.images.size_bytes)}",
        **dict(_type_lines(plan)),
        "left out": f"{plan.images.left_out:,}, which the output answers already" if plan.images.left_out else "",
        "unreadable": ", ".join(f"{_about(plan)}{count:,} {code}" for code, count in plan.images.unreadable.items()),
        "duplicates": _duplicates(plan),
        "answered": _answered(plan),
    }


def _asking_lines(plan: "Plan") -> dict[str, str]:
    return {
        "to ask": ", ".join(f"{_about(plan)}{prompt.to_ask:,} {name}" for name, prompt in plan.prompts.items()),
        "uploads": _uploads(plan),
        "tokens": f"{plan.tokens.input:,} input, {plan.tokens.output:,} output",
        "answers": ", ".join(_answer_lengths(plan)),
        "cost": _cost(plan),
        "time": _time(plan),
        "storage": _storage(plan.storage),
    }


def _type_lines(plan: "Plan") -> Iterator[tuple[str, str]]:
    for name, counted in plan.images.by_type.items():
        sizes = f", {_bytes(counted.size_bytes)}, up to {_bytes(counted.largest_bytes)}" if counted.size_bytes else ""
        yield f"  {name}", f"{counted.images:,}{sizes}"


def _duplicates(plan: "Plan") -> str:
    images = plan.images
    if images.duplicates is not None:
        return f"{images.duplicates:,}, which are not asked about again" if images.duplicates else ""
    at_most = images.duplicates_at_most
    return f"at most {at_most:,}, by size; they are counted as to ask" if at_most else ""


def _answered(plan: "Plan") -> str:
    answered, total = plan.questions.answered, plan.questions.total
    return f"{_about(plan)}{answered:,} of {total:,} questions, by what {plan.output} holds" if answered else ""


def _uploads(plan: "Plan") -> str:
    storage = plan.storage
    return f"{_about(plan)}{storage.uploads:,} files, {_bytes(storage.uploaded_bytes)}" if storage.uploads else "none"


def _answer_lengths(plan: "Plan") -> Iterator[str]:
    for name, prompt in plan.prompts.items():
        if prompt.to_ask:
            answers = "answer" if prompt.measured_answers == 1 else "answers"
            basis = f"measured, {prompt.measured_answers:,} {answers}" if prompt.measured_answers else "assumed"
            yield f"{name} {prompt.output_tokens_each:,.0f} tokens ({basis})"


def _cost(plan: "Plan") -> str:
    if plan.usd is None:
        return f"unknown, no price for {plan.model}"
    tiers = ", ".join(f"{_usd(usd)} {tier}" for tier, usd in plan.usd.items())
    margin = plan.tokens.output_margin
    sure = f"; output tokens ± {100 * margin / plan.tokens.output:.0f} %" if margin and plan.tokens.output else ""
    return f"USD {tiers} (list prices of {plan.prices_as_of}{sure})"


def _time(plan: "Plan") -> str:
    duration = plan.duration
    others = ", ".join(
        f"{_time_words(seconds)} by {key}" for key, seconds in duration.by_limit_s.items() if key != duration.limited_by
    )
    basis = "measured" if duration.is_latency_measured else "assumed"
    return (
        f"{_time_words(duration.total_s)} by {duration.limited_by}; with no other limit, {others} "
        f"({duration.latency_s:.3g} s an answer, {basis})"
    )


def _storage(storage: "FileStorage") -> str:
    if not storage.uploads:
        return ""
    peak = f"{_bytes(storage.peak_bytes)} of 20 GB in the Files API after {_time_words(3600 * storage.peak_after_h)}"
    if storage.full_after_h is None:
        return peak
    return f"full after {_time_words(3600 * storage.full_after_h)}; from then on the run deletes what it is done with"


def _limit_notes(plan: "Plan", config: RunConfig) -> Iterator[str]:
    limits, usd = config.limits, (plan.usd or {}).get(plan.tier)
    if limits.budget_usd is not None and usd is None:
        yield "limits.budget_usd cannot be kept without a price, so `pixscribe run` will refuse to begin"
    elif limits.budget_usd is not None and usd is not None and usd + plan.unfinished_usd > limits.budget_usd:
        spent = f", of which {_usd(plan.unfinished_usd)} are spent" if plan.unfinished_usd else ""
        yield f"limits.budget_usd of {_usd(limits.budget_usd)}{spent} is less than that; the run will stop on the way"
    per_day = limits.requests_per_day if plan.tier != "batch" else None
    if per_day is not None and plan.questions.to_ask > per_day and limits.on_daily_quota == "stop":
        yield f"limits.requests_per_day of {per_day:,} ends the run each day; on_daily_quota: wait lets it go on"


def _sum(plan: "Plan") -> str:
    """What it costs on the tier of the config, and what it would on the others."""
    if plan.usd is None:
        return "at an unknown price"
    own, others = plan.usd[plan.tier], dict[str, list[str]]()
    for tier, usd in plan.usd.items():
        if tier != plan.tier:
            others.setdefault(_usd(usd), []).append(tier)
    rest = ", ".join(f"{usd} {' or '.join(tiers)}" for usd, tiers in others.items())
    tier = "" if plan.tier == "standard" else f" {plan.tier}"
    return f"about {_usd(own)} USD{tier} ({rest})"


def _limit_words(plan: "Plan", config: RunConfig) -> str:
    section, _, name = plan.duration.limited_by.partition(".")
    return LIMIT_WORDS[plan.duration.limited_by].format(value=getattr(getattr(config, section), name))


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _about(plan: "Plan") -> str:
    return "" if plan.images.is_exact else "about "


def _usd(usd: float) -> str:
    return f"{usd:,.2f}" if usd >= 1 or usd == 0 else f"{usd:.4f}"


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= 0.9995 * size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _time_words(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}" if seconds < 10 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 1 else "1 s"
