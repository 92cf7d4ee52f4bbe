"""How long the answers to a question are: as the output's earlier answers were, else as is assumed."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pixscribe.asking import request_key
from pixscribe.config import ModelConfig, RunConfig
from pixscribe.errors import ConfigError, OutputError
from pixscribe.prices import OUTPUT_TOKENS, THOUGHT_TOKENS, tier_of
from pixscribe.prompts import Question
from pixscribe.results import RunResults
from pixscribe.run import make_questions
from pixscribe.storage import Storage

logger = logging.getLogger(__name__)

ENOUGH_ANSWERS = 10_000
"""To one question."""
PARTS_OF_A_RUN = 64
"""At most, spread evenly over the run."""
COLUMNS = ("prompt", "attempts", "input_tokens", "output_tokens", "thought_tokens", "latency_ms")
CONFIDENCE = 1.96
"""Standard errors within which a mean lies 19 times in 20."""
ASSUMED_LATENCY_S = {"standard": 3.0, "flex": 240.0, "priority": 3.0, "batch": 2 * 3600.0}
"""By tier. Flex aims at one to fifteen minutes; the jobs of batch at a day, of which they usually need little."""


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of the question and of its answer, thoughts included; both with all attempts that were billed."""

    output_tokens: float
    input_tokens: float | None = None
    """None: not measured."""
    output_margin: float = 0.0
    """The mean of all answers lies within so many tokens, 19 times in 20."""
    latency_s: float | None = None
    """Until the answer was there; None: not measured."""
    answers: int = 0
    """Of which this is the mean; 0: it is assumed."""


def assumed_length(question: Question, model: ModelConfig) -> Length:
    """What is assumed of an answer before there is any."""
    tokens = OUTPUT_TOKENS[question.kind] + THOUGHT_TOKENS[model.thinking_level]
    return Length(output_tokens=min(tokens, model.max_output_tokens))


def measure_lengths(storage: Storage, config: RunConfig, questions: Sequence[Question]) -> dict[str, Length]:
    """The length of answers to each question, by its name, if this output holds any that were paid for.

    Those count that the same service was asked in just the same words and settings, of the newest runs and of 10,000
    answers at most; about which images, does not matter.
    """
    samples = {_identity(config.model, question): _Sample() for question in questions}
    for name in reversed(storage.list("runs")):
        if all(sample.is_enough for sample in samples.values()):
            break
        try:
            _read_run(RunResults(storage, name), config.model, samples)
        except (ConfigError, OutputError, FileNotFoundError) as error:
            logger.info("run %s is not measured: %s", name, error)
    measured = {question.name: samples[_identity(config.model, question)].length() for question in questions}
    return {name: length for name, length in measured.items() if length is not None}


def _identity(model: ModelConfig, question: Question) -> str:
    """All that makes a question the same, but for the image."""
    return request_key(model, question, "")


@dataclass(slots=True)
class _Sample:
    """Columns of the answers to one question, a piece for each part that they stand in."""

    answers: int = 0
    input_tokens: list[NDArray[np.float64]] = field(default_factory=list)
    output_tokens: list[NDArray[np.float64]] = field(default_factory=list)
    latency_ms: list[NDArray[np.float64]] = field(default_factory=list)

    @property
    def is_enough(self) -> bool:
        return self.answers >= ENOUGH_ANSWERS

    def add(self, rows: pa.Table, *, is_timed: bool) -> None:
        if rows.num_rows == 0:
            return
        self.answers += rows.num_rows
        self.input_tokens.append(_numbers(rows["input_tokens"]))
        self.output_tokens.append(_numbers(rows["output_tokens"]) + _numbers(rows["thought_tokens"]))
        if is_timed:
            self.latency_ms.append(_numbers(rows["latency_ms"]))

    def length(self) -> Length | None:
        if self.answers == 0:
            return None
        outputs = np.concatenate(self.output_tokens)
        # one answer says nothing of how much others differ from it; they may well be twice as long
        spread = float(outputs.std(ddof=1)) if self.answers > 1 else float(outputs[0])
        latencies_ms = np.concatenate(self.latency_ms) if self.latency_ms else None
        return Length(
            output_tokens=float(outputs.mean()),
            input_tokens=float(np.concatenate(self.input_tokens).mean()),
            output_margin=CONFIDENCE * spread / math.sqrt(self.answers),
            latency_s=None if latencies_ms is None else float(latencies_ms.mean()) / 1000,
            answers=self.answers,
        )


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(column, 0).to_numpy(), np.float64)


def _read_run(results: RunResults, model: ModelConfig, samples: Mapping[str, _Sample]) -> None:
    """Add what a run was answered to these questions. Raises `ConfigError`, `OutputError`, FileNotFoundError."""
    asked = results.config
    if asked.model.base_url != model.base_url:  # another service, or the emulator, has other tokens
        return
    wanted = {question.name: samples.get(_identity(asked.model, question)) for question in make_questions(asked)}
    # a slower tier's latency says nothing of another's
    is_timed = tier_of(asked.model) == tier_of(model)
    if not any(wanted.values()):
        return
    for rows in _paid_rows(results):
        for name, sample in wanted.items():
            if sample is not None and not sample.is_enough:
                sample.add(rows.filter(pc.equal(rows["prompt"], name)), is_timed=is_timed)


def _paid_rows(results: RunResults) -> Iterator[pa.Table]:
    """Rows of `responses` that cost something in this run."""
    parts = results.parts_left
    step = -(-len(parts) // PARTS_OF_A_RUN) or 1
    for (rows,) in results.read_parts({"responses": COLUMNS}, parts[::step]):
        yield rows.filter(pc.and_(pc.greater(rows["attempts"], 0), pc.greater(rows["input_tokens"], 0)))
