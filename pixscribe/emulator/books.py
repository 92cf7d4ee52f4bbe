"""What was done to the emulator, for tests and for the totals at the end of `pixscribe emulate`."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

BATCH_PRICE_SHARE = 0.5
"""Of the price outside of batches, for input and output."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was stored. `sha256` is the hex digest of its bytes."""

    name: str
    sha256: str
    size_bytes: int
    display_name: str | None
    mime_type: str


@dataclass(slots=True)
class Question:
    """One POST that asks the model, served or refused.

    `digest` is the sha256 (hex) of the request body, `images` that of each image in the order of the request. `status`
    is None when no answer was sent (faults `timeout` and `reset`) and 499 when the client left first. `at_s` is
    `time.monotonic()` when the request came in.
    """

    digest: str = ""
    images: tuple[str, ...] = ()
    text: str = ""
    status: int | None = None
    fault: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    at_s: float = 0.0


@dataclass(slots=True)
class Books:
    """Entries are made before the answer is sent, so whoever has an answer finds its entry here."""

    uploads: list[Upload] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    batch_questions: list[Question] = field(default_factory=list)
    """The requests of batches, which cost half; `digest` is that of the request as orjson writes it."""
    batch_ends: Counter[str] = field(default_factory=Counter)
    """The batches that are over, by their last state."""
    lost_answers: int = 0
    """Requests of batches that were answered, and billed, and given to nobody: their job did not succeed."""
    by_endpoint: Counter[str] = field(default_factory=Counter)
    by_status: Counter[int] = field(default_factory=Counter)
    in_flight: int = 0
    peak_in_flight: int = 0
    """The most questions that were open at once."""
    last_at_s: float = 0.0
    """When the last question was over, by the clock of `Question.at_s`."""

    def open_question(self, now_s: float) -> Question:
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        return Question(at_s=now_s)

    def close_question(self, question: Question, now_s: float) -> None:
        self.in_flight -= 1
        self.last_at_s = now_s
        self.questions.append(question)

    def reset(self) -> None:
        self.uploads.clear()
        self.questions.clear()
        self.batch_questions.clear()
        self.batch_ends.clear()
        self.lost_answers = 0
        self.by_endpoint.clear()
        self.by_status.clear()
        self.peak_in_flight = self.in_flight

    def answered(self) -> list[Question]:
        """The questions that a real service would have charged for."""
        return [question for question in self.questions if question.status == 200]

    def answered_in_batches(self) -> list[Question]:
        """The requests of batches that a real service would have charged for, at half the price."""
        return [question for question in self.batch_questions if question.status == 200]

    def summary(self) -> dict[str, Any]:
        """The numbers for a program.

        `images` counts the contents that were answered about at least once, `asking_s` is the time from the first
        question to the end of the last. What batches did is counted apart, under `batches`.
        """
        answered = self.answered()
        return {
            "uploads": len(self.uploads),
            "questions": len(self.questions),
            "answered": len(answered),
            "image_answers": sum(bool(question.images) for question in answered),
            "left_by_client": sum(question.status == 499 for question in self.questions),
            "images": len({image for question in answered for image in question.images}),
            "input_tokens": sum(question.input_tokens for question in answered),
            "output_tokens": sum(question.output_tokens for question in answered),
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "asking_s": self.last_at_s - min((q.at_s for q in self.questions), default=self.last_at_s),
            "by_status": dict(Counter(str(question.status) for question in self.questions)),
            "batches": self._batches(),
        }

    def totals(self) -> str:
        """One line for people."""
        calls = ", ".join(f"{name} {count}" for name, count in sorted(self.by_endpoint.items()))
        statuses = ", ".join(f"{status} x {count}" for status, count in sorted(self.by_status.items()))
        tokens = sum(q.input_tokens for q in self.questions), sum(q.output_tokens for q in self.questions)
        return (
            f"{len(self.uploads)} uploads, {len(self.questions)} questions ({len(self.answered())} answered, "
            f"{tokens[0]} tokens in, {tokens[1]} out){self._batch_totals()}; calls: {calls or 'none'}; "
            f"statuses: {statuses or 'none'}"
        )

    def _batches(self) -> dict[str, Any]:
        """Tokens are as they are counted: what they cost is `price_share` of that outside of batches."""
        answered = self.answered_in_batches()
        return {
            "ends": dict(self.batch_ends),
            "requests": len(self.batch_questions),
            "answered": len(answered),
            "lost_answers": self.lost_answers,
            "images": len({image for question in answered for image in question.images}),
            "input_tokens": sum(question.input_tokens for question in answered),
            "output_tokens": sum(question.output_tokens for question in answered),
            "price_share": BATCH_PRICE_SHARE,
            "by_status": dict(Counter(str(question.status) for question in self.batch_questions)),
        }

    def _batch_totals(self) -> str:
        if not self.batch_questions:
            return ""
        done = self._batches()
        return (
            f"; in batches at half the price {done['requests']} requests ({done['answered']} answered, "
            f"{done['input_tokens']} tokens in, {done['output_tokens']} out)"
        )
