"""A plan: what a listing, some looks and the length of answers come to."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pixscribe.archive import Archive
from pixscribe.config import RunConfig, with_absolute_uris
from pixscribe.errors import ConfigError
from pixscribe.known import KnownImages, find_known
from pixscribe.plan.answers import ASSUMED_LATENCY_S, Length, assumed_length, measure_lengths
from pixscribe.plan.census import Census, TypeCount, take_census
from pixscribe.plan.looking import Looker, Looks
from pixscribe.plan.time_and_storage import Duration, FileStorage, Load, plan_duration, plan_storage
from pixscribe.prices import find_price, text_tokens, tier_of
from pixscribe.prompts import Question
from pixscribe.run import describe_run, find_unfinished, make_questions
from pixscribe.source import require_images, scan
from pixscribe.spread import Spread
from pixscribe.storage import open_storage
from pixscribe.types import ImageRef, Kind, Usage

EXACT_IMAGES = 2000
EXACT_BYTES = 1024**3
"""A source with no more than these is read whole, which takes seconds, or a minute if most of its images are large and
have to be encoded again; of a larger one, some images are read."""
LOOKS = 200
"""So many: a share of half of them is known to 7 % then, 19 times in 20, and better where neighbours are alike."""
TELL_EVERY_S = 10.0
TIERS = ("standard", "flex", "batch")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Images:
    """Those of the source. Where there are many, some are read, and counts are scaled up from them."""

    total: int
    size_bytes: int
    by_type: dict[str, TypeCount]
    """By what names end in; of those that the listing found readable."""
    unreadable: dict[str, int]
    """By error code."""
    duplicates: int | None
    """Whose bytes are those of another image, which is asked about once; null: not known."""
    duplicates_at_most: int
    """As many have the size of another file."""
    left_out: int
    """By `source.only_new`; they are in no other number."""
    known: int
    """Which the tables of the output tell to be answered, or beyond help, and which were not read."""
    looked_at: int
    """Of the others."""
    is_exact: bool
    """Whether those are all."""


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """What one prompt comes to."""

    kind: Kind
    to_ask: int
    input_tokens: int
    output_tokens: int
    """Thoughts included."""
    output_tokens_each: float
    measured_answers: int
    """Of which `output_tokens_each` is the mean; 0: it is assumed."""


@dataclass(frozen=True, slots=True)
class Questions:
    """One for each image and prompt."""

    total: int
    unreadable: int
    duplicate: int
    answered: int
    """By the output, for the same images, words and settings, or known to have none."""
    to_ask: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of all questions that are to be asked, each of them once."""

    input: int
    output: int
    output_margin: int | None
    """`output` is right within so many, 19 times in 20, as far as the measured answers stand for all; null: it is
    assumed, for one prompt at least."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of a config comes to."""

    source: str
    output: str
    model: str
    tier: str
    """standard, flex, priority or batch."""
    images: Images
    questions: Questions
    prompts: dict[str, PromptPlan]
    tokens: Tokens
    usd: dict[str, float] | None
    """By tier; null if the price is not known."""
    prices_as_of: str | None
    duration: Duration
    storage: FileStorage
    requests_per_minute: float
    budget_usd: float | None
    unfinished_run: str | None
    """Which `pixscribe run` would go on with, about the images that it has listed."""
    unfinished_usd: float
    """What that run has cost."""


def make_plan(config: RunConfig, *, exact: bool = False, tell: Tell = lambda _: None) -> Plan:
    """Say what a run would be, without asking the model or writing anything.

    `exact` reads every image, however many there are. `tell` is given a sentence about what is going on now and then.
    Raises `ConfigError` and `OutputError` as a run does.
    """
    questions = make_questions(config)
    require_images(config.source)
    config = with_absolute_uris(config)
    try:
        known = find_known(open_storage(config.output.uri), config, "")
    except FileNotFoundError as error:
        raise ConfigError(f"output.uri: {config.output.uri!r}: there is no such bucket") from error
    tell(f"listing {config.source.uri}")
    census = take_census(_list(config, known))
    left_out, chosen = known.skipped, _choose(config, census, known, exact)
    looks = _look(config, questions, chosen, tell)
    measured = measure_lengths(open_storage(config.output.uri), config, questions)
    return _Estimate(config, questions, census, left_out, chosen, looks, measured).plan()


def _list(config: RunConfig, known: KnownImages) -> Iterator[ImageRef]:
    """The images that a run would be about."""
    return scan(config.source, known.new) if config.source.only_new else scan(config.source)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The images that are read: `count` of `of`. The others of the source are answered, as the tables tell."""

    refs: Iterable[ImageRef]
    count: int
    of: int

    @property
    def is_exact(self) -> bool:
        return self.count == self.of


def _choose(config: RunConfig, census: Census, known: KnownImages, exact: bool) -> _Chosen:
    if census.readable <= EXACT_IMAGES and census.size_bytes <= EXACT_BYTES and not census.unsized:
        return _Chosen(census.some.take(), census.readable, census.readable)
    if exact:  # listed once more, for they may be too many to keep
        return _Chosen(_readable(_list(config, known)), census.readable, census.readable)
    refs, count = census.some.take(LOOKS), census.readable
    if len(known) and not config.source.only_new:
        refs, count = _some(_readable(known.new(scan(config.source))))
    return _Chosen(refs, len(refs), count)


def _readable(refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
    return (ref for ref in refs if ref.error is None)


def _some(refs: Iterable[ImageRef]) -> tuple[list[ImageRef], int]:
    """Some of these, spread evenly over them, and how many they are."""
    spread, count = Spread[ImageRef](LOOKS, seed=1), 0
    for count, ref in enumerate(refs, 1):  # noqa: B007 (wanted after the loop)
        spread.add(ref)
    return spread.take(), count


def _look(config: RunConfig, questions: Sequence[Question], chosen: _Chosen, tell: Tell) -> Looks:
    archive = Archive(open_storage(config.output.uri), "")
    archive.open({}, only_this_run=False)
    tell(f"reading {chosen.count:,} images" + ("" if chosen.is_exact else f" of {chosen.of:,}"))
    looks, told_s = Looks(chosen.is_exact), time.monotonic()
    for look in Looker(config, questions, archive).look_at_all(chosen.refs):
        looks.count(look, len(questions))
        if time.monotonic() - told_s > TELL_EVERY_S:
            told_s = time.monotonic()
            tell(f"{looks.images:,} of them read")
    return looks


@dataclass(slots=True)
class _Estimate:
    config: RunConfig
    questions: Sequence[Question]
    census: Census
    left_out: int
    chosen: _Chosen
    looks: Looks
    measured: dict[str, Length]
    _scale: float = field(init=False)
    """Images for each that was looked at."""

    def __post_init__(self) -> None:
        self._scale = 1.0 if self.chosen.is_exact else self.chosen.of / max(self.looks.images, 1)

    def plan(self) -> Plan:
        config = self.config
        prompts = {question.name: self._prompt(question) for question in self.questions}
        tokens = self._tokens(prompts)
        price = find_price(config.model.name, config.prices)
        tiers = dict.fromkeys((*TIERS, tier_of(config.model)))
        usage = Usage(tokens.input, tokens.output)
        load = self._load(prompts, tokens)
        is_batch = config.model.mode == "batch"
        duration = plan_duration(load, config.limits, self._processes(), config.batch if is_batch else None)
        run = find_unfinished(open_storage(config.output.uri), config, None)
        return Plan(
            source=config.source.uri,
            output=config.output.uri,
            model=config.model.name,
            tier=tier_of(config.model),
            images=self._images(),
            questions=self._questions(prompts),
            prompts=prompts,
            tokens=tokens,
            usd={tier: price.cost_usd(usage, tier) for tier in tiers} if price else None,
            prices_as_of=price.as_of if price else None,
            duration=duration,
            storage=plan_storage(load, duration.total_s),
            requests_per_minute=config.limits.requests_per_minute,
            budget_usd=config.limits.budget_usd,
            unfinished_run=run.id if run else None,
            unfinished_usd=describe_run(run.output_uri, run.id)["totals"]["cost_usd"] if run else 0.0,
        )

    def _images(self) -> Images:
        census, looks = self.census, self.looks
        unreadable = {code: self._scaled(count) for code, count in looks.unreadable.items()}
        if census.unreadable:
            unreadable["read_error"] = unreadable.get("read_error", 0) + census.unreadable
        return Images(
            total=census.images,
            size_bytes=self._size_bytes(),
            by_type=census.by_type,
            unreadable=dict(sorted(unreadable.items())),
            duplicates=looks.duplicates if self.chosen.is_exact else None,
            duplicates_at_most=looks.duplicates if self.chosen.is_exact else census.same_size() + census.unsized,
            left_out=self.left_out,
            known=census.readable - self.chosen.of,
            looked_at=looks.images,
            is_exact=self.chosen.is_exact,
        )

    def _size_bytes(self) -> int:
        """What the listing tells; what it does not, is taken to be as large as what was looked at."""
        mean_bytes = self.looks.size_bytes / max(self.looks.images, 1)
        return self.census.size_bytes + round(self.census.unsized * mean_bytes)

    def _questions(self, prompts: dict[str, PromptPlan]) -> Questions:
        count, looks = len(self.questions), self.looks
        total = self.census.images * count
        unreadable = count * (self.census.unreadable + self._scaled(sum(looks.unreadable.values())))
        duplicate, to_ask = count * looks.duplicates, sum(prompt.to_ask for prompt in prompts.values())
        return Questions(total, unreadable, duplicate, max(0, total - unreadable - duplicate - to_ask), to_ask)

    def _prompt(self, question: Question) -> PromptPlan:
        looks, name, model = self.looks, question.name, self.config.model
        to_ask = self._scaled(looks.to_ask[name])
        length = self.measured.get(name) or assumed_length(question, model)
        input_tokens = text_tokens(question.text) * to_ask + looks.image_tokens[name] * self._scale
        if length.input_tokens is not None:
            input_tokens = length.input_tokens * to_ask
        return PromptPlan(
            kind=question.kind,
            to_ask=to_ask,
            input_tokens=round(input_tokens),
            output_tokens=round(length.output_tokens * to_ask),
            output_tokens_each=round(length.output_tokens, 1),
            measured_answers=length.answers,
        )

    def _tokens(self, prompts: dict[str, PromptPlan]) -> Tokens:
        margin = sum(
            prompt.to_ask * self.measured[name].output_margin
            for name, prompt in prompts.items()
            if name in self.measured
        )
        is_measured = all(name in self.measured for name, prompt in prompts.items() if prompt.to_ask)
        return Tokens(
            input=sum(prompt.input_tokens for prompt in prompts.values()),
            output=sum(prompt.output_tokens for prompt in prompts.values()),
            output_margin=round(margin) if is_measured else None,
        )

    def _load(self, prompts: dict[str, PromptPlan], tokens: Tokens) -> Load:
        to_ask = sum(prompt.to_ask for prompt in prompts.values())
        latency_s, is_measured = self._latency(prompts, to_ask)
        return Load(
            questions=to_ask,
            input_tokens=tokens.input,
            latency_s=latency_s,
            is_latency_measured=is_measured,
            uploads=self._scaled(self.looks.uploads),
            uploaded_bytes=self._uploaded_bytes(),
        )

    def _latency(self, prompts: dict[str, PromptPlan], to_ask: int) -> tuple[float, bool]:
        """Of a mean question, and whether it was measured for each of them."""
        assumed_s = ASSUMED_LATENCY_S[tier_of(self.config.model)]
        known_s = {name: length.latency_s for name, length in self.measured.items() if length.latency_s is not None}
        total_s = sum(prompt.to_ask * known_s.get(name, assumed_s) for name, prompt in prompts.items())
        is_measured = to_ask > 0 and all(name in known_s for name, prompt in prompts.items() if prompt.to_ask)
        return (total_s / to_ask if to_ask else assumed_s), is_measured

    def _processes(self) -> int:
        """Worker processes, as far as the config tells: those of a cluster that is there are not known."""
        execution = self.config.execution
        if execution.engine == "local" or execution.address is not None:
            return 1
        return execution.workers or os.cpu_count() or 1

    def _uploaded_bytes(self) -> int:
        """By the size of what was looked at where all sizes are known, which lessens the chance in the looks."""
        looks, census = self.looks, self.census
        if self.chosen.of < census.readable or census.unsized or not looks.size_bytes:
            return round(looks.uploaded_bytes * self._scale)
        return round(looks.uploaded_bytes * census.size_bytes / looks.size_bytes)

    def _scaled(self, count: int) -> int:
        return round(count * self._scale)
