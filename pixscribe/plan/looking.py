"""What the images of a source turn out to be when they are read, and what is still to be asked about them."""

import os
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from pixscribe.archive import Archive
from pixscribe.asking import request_key
from pixscribe.config import RunConfig
from pixscribe.errors import DecodeError, ImageError
from pixscribe.image import ImageRules, prepare_image, read_header
from pixscribe.labelling import travels_as_url, travels_inline
from pixscribe.prices import image_tokens
from pixscribe.prompts import Question
from pixscribe.reading import read_image
from pixscribe.types import ErrorCode, ImageRef, PreparedImage

READERS = 8
"""Images that are read at a time, all of which may be in memory."""
LARGE_PX = 25_000_000
"""A larger image is decoded while no other large one is: four bytes for each pixel, and a copy."""


@dataclass(frozen=True, slots=True)
class Look:
    """One image that was read. Without an `error_code`, it can be asked about."""

    size_bytes: int = 0
    content: int = 0
    """The first 64 bits of the sha256 of its bytes."""
    to_ask: tuple[str, ...] = ()
    """The names of the questions that the output has no answer to."""
    uploaded_bytes: int | None = None
    """What is uploaded if there is anything to ask; None if it travels otherwise."""
    image_tokens: int = 0
    error_code: ErrorCode | None = None


class Seen:
    """A set of 64-bit numbers that takes 8 bytes for each of them, and holds the last ones as Python does."""

    PENDING = 65_536

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._pending: set[int] = set()

    def add(self, number: int) -> bool:
        """Whether it was not there before."""
        if number in self._pending or self._is_sorted_in(number):
            return False
        self._pending.add(number)
        if len(self._pending) == self.PENDING:
            pending = np.fromiter(self._pending, np.uint64, len(self._pending))
            self._sorted = np.sort(np.concatenate([self._sorted, pending]))
            self._pending.clear()
        return True

    def _is_sorted_in(self, number: int) -> bool:
        place = int(self._sorted.searchsorted(np.uint64(number)))
        return place < len(self._sorted) and int(self._sorted[place]) == number


@dataclass(slots=True)
class Looks:
    """What the images that were looked at come to. Unless these are all there are, each of two equal ones counts."""

    is_exact: bool
    images: int = 0
    size_bytes: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    """By error code."""
    duplicates: int = 0
    """Images whose bytes are those of another one."""
    answered: int = 0
    """Questions about the others that the output has an answer to."""
    to_ask: Counter[str] = field(default_factory=Counter)
    """Questions by their names."""
    image_tokens: Counter[str] = field(default_factory=Counter)
    """Of the images with these questions, by the names of the questions."""
    uploads: int = 0
    uploaded_bytes: int = 0
    _seen: Seen = field(default_factory=Seen)

    def count(self, look: Look, question_count: int) -> None:
        """One image more."""
        self.images += 1
        self.size_bytes += look.size_bytes
        if look.error_code is not None:
            self.unreadable[look.error_code] += 1
        elif self.is_exact and not self._seen.add(look.content):
            self.duplicates += 1
        else:
            self._count_questions(look, question_count)

    def _count_questions(self, look: Look, question_count: int) -> None:
        self.answered += question_count - len(look.to_ask)
        self.to_ask.update(look.to_ask)
        for name in look.to_ask:
            self.image_tokens[name] += look.image_tokens
        if look.to_ask and look.uploaded_bytes is not None:
            self.uploads += 1
            self.uploaded_bytes += look.uploaded_bytes


class Looker:
    """Reads images as a run would, and asks the archive what it would ask there. May be called from several threads."""

    def __init__(self, config: RunConfig, questions: Sequence[Question], archive: Archive) -> None:
        self._config = config
        self._questions = questions
        self._archive = archive
        self._rules = ImageRules(config.image.max_side_px, config.image.max_pixels)
        self._decoding = threading.Semaphore(os.cpu_count() or 1)
        self._decoding_large = threading.Lock()
        self._is_over = threading.Event()

    def look_at_all(self, refs: Iterable[ImageRef]) -> Iterator[Look]:
        """One image after the other, in their order, several of them read at a time."""
        remaining, begun = iter(refs), deque[Future[Look]]()
        with ThreadPoolExecutor(READERS, "pixscribe-plan") as readers:
            try:
                begun.extend(readers.submit(self.look, ref) for ref in islice(remaining, 2 * READERS))
                while begun:
                    yield begun.popleft().result()
                    begun.extend(readers.submit(self.look, ref) for ref in islice(remaining, 1))
            finally:
                self._is_over.set()
                readers.shutdown(wait=False, cancel_futures=True)

    def look(self, ref: ImageRef) -> Look:
        """Read one image. What is the matter with it is in the result."""
        data = b""
        try:
            data = read_image(
                ref.uri, allow_private_hosts=self._config.source.allow_private_hosts, is_over=self._is_over.is_set
            )
            return self._judge(ref, self._prepare(data))
        except ImageError as error:
            return Look(size_bytes=len(data), error_code=error.code)

    def _prepare(self, data: bytes) -> PreparedImage:
        header = read_header(data, self._rules)
        if not header.needs_pixels:
            return prepare_image(data, self._rules)
        try:
            with self._decoding_large if header.decode_px > LARGE_PX else nullcontext(), self._decoding:
                return prepare_image(data, self._rules)
        except MemoryError as error:
            raise DecodeError("needs more memory than there is", code="too_large") from error

    def _judge(self, ref: ImageRef, image: PreparedImage) -> Look:
        model, names = self._config.model, tuple(question.name for question in self._questions)
        keys = [request_key(model, question, image.sent_sha256) for question in self._questions]
        to_ask = tuple(name for name, key in zip(names, keys, strict=True) if not self._archive.has(key))
        is_uploaded = bool(to_ask) and not (
            travels_inline(image, model.transport, len(names)) or travels_as_url(ref, image, model.transport)
        )
        return Look(
            size_bytes=image.size_bytes,
            content=int(image.image_id[:16], 16),
            to_ask=to_ask,
            uploaded_bytes=len(image.data) if is_uploaded else None,
            image_tokens=image_tokens(model.name, model.resolution, (image.sent_width, image.sent_height)),
        )
