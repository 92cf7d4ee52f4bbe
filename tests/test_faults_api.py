"""An API that fails in every way that one does, and what must be left of a run then.

The faults are numbered. Where it can be, a test is a whole run of one question about one image, followed by another run
without the fault: it must ask again what failed, and only that. What the emulator cannot say is said by a `Front`,
which stands between the run and the network.
"""

import asyncio
import base64
import hashlib
import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import httpx
import orjson
import pyarrow.parquet as pq
import pytest
import tenacity
from PIL import Image

from pixscribe.asking import Answer, Asker
from pixscribe.breaker import Breaker
from pixscribe.config import LimitsConfig, ModelConfig, RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import (
    AuthenticationError,
    ConfigError,
    ModelUnknown,
    PermissionRefused,
    QuotaExhausted,
    RunError,
    ServerUnavailable,
)
from pixscribe.gemini import CHUNK_BYTES, SLICE_BYTES, GeminiClient, ImagePart, Upload, open_transport, upload_file
from pixscribe.limits import MIDNIGHT_MARGIN_S
from pixscribe.progress import Tally
from pixscribe.prompts import make_question
from pixscribe.retry import RetryPolicy
from pixscribe.run import list_runs
from pixscribe.uploads import delete_files
from tests.clock import Time
from tests.conftest import SAMPLES, MakeConfig, annotate
from tests.invariants import KEY, check_output, check_rerun_is_free
from tests.test_end_to_end import FILES, digests

SCENE = "formats/scene.jpg"
SCENE_OBJECTS = 4
THREE = (SCENE, "large/tall.jpg", "orientation/exif-3.jpg")
DETECT = {"name": "objects", "kind": "detect"}
SEGMENT = {"name": "outlines", "kind": "segment"}
SEGMENT_ONE = {**SEGMENT, "text": "Segment the star."}
LASTING = ("blocked", "request_refused")
TWO_DAYS_S = 48 * 3600 + 1

Outcome = tuple[str, str | None, int]
"""Status, error code and attempts of a row of `responses`."""


# --- what stands between a run and the network


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it went out, with its body unless that is large.

    `what` is `ask`, `start`, `bytes`, `query` or `<METHOD> <collection>`.
    """

    what: str
    at_s: float
    body: bytes


@dataclass(slots=True)
class Front:
    """Answers calls with what is scripted for their kind, then with what stands for it; passes all others on.

    In a script, None passes one call on.
    """

    clock: Callable[[], float] = time.monotonic
    calls: list[Call] = field(default_factory=list)
    _scripts: dict[str, deque[httpx.Response | None]] = field(default_factory=lambda: defaultdict(deque))
    _standing: dict[str, httpx.Response] = field(default_factory=dict)

    def script(self, what: str, *responses: httpx.Response | None) -> None:
        self._scripts[what].extend(responses)

    def always(self, what: str, response: httpx.Response) -> None:
        self._standing[what] = response

    def clear(self) -> None:
        self._scripts.clear()
        self._standing.clear()
        self.calls.clear()

    def count(self, what: str) -> int:
        return sum(call.what == what for call in self.calls)

    def answer(self, request: httpx.Request, body: bytes) -> httpx.Response | None:
        what = _kind_of(request)
        self.calls.append(Call(what, self.clock(), body))
        found = self._scripts[what].popleft() if self._scripts[what] else self._standing.get(what)
        if found is None:
            return None
        # a stream of its own each time: what stands is sent more than once
        return httpx.Response(found.status_code, headers=found.headers, stream=httpx.ByteStream(found.content))

    def open(self, base_url: str, *, concurrency: int) -> httpx.AsyncBaseTransport:
        return _Fronted(self, open_transport(base_url, concurrency=concurrency))


class _Fronted(httpx.AsyncBaseTransport):
    def __init__(self, front: Front, inner: httpx.AsyncBaseTransport) -> None:
        self._front, self._inner = front, inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # what is read here is sent in one piece, of which large ones are warned about
        is_small = int(request.headers["content-length"]) <= SLICE_BYTES
        body = await request.aread() if is_small else b""
        return self._front.answer(request, body) or await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _kind_of(request: httpx.Request) -> str:
    command = request.headers.get("x-goog-upload-command")
    if command is not None:
        return {"start": "start", "query": "query"}.get(command, "bytes")
    collection = request.url.path.split("/")[2]
    return "ask" if collection == "interactions" else f"{request.method} {collection}"


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Front:
    """In front of every run of the test."""
    opened = Front()
    monkeypatch.setattr("pixscribe.run.open_transport", opened.open)
    return opened


def said(text: str | None, **others: Any) -> httpx.Response:
    """An answer of the model, in these words."""
    content = [] if text is None else [{"type": "text", "text": text}]
    steps = [{"type": "model_output", "content": content}]
    usage = {"total_input_tokens": 1100, "total_output_tokens": 7}
    return httpx.Response(200, json={"status": "completed", "steps": steps, "usage": usage, **others})


def refused(status: int, code: str, message: str = "m") -> httpx.Response:
    """An error in the form of Interactions."""
    return httpx.Response(status, json={"error": {"code": code, "message": message}})


def retry_info(delay: str) -> httpx.Response:
    """A 429 of Google's own form."""
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
    return httpx.Response(429, json={"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": details}})


def retry_after(value: str) -> httpx.Response:
    return httpx.Response(429, headers={"retry-after": value}, json={"error": {"code": "rate_limit_exceeded"}})


# --- runs


def rows(config: RunConfig, run_id: str, table: str = "responses") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(
        f"{config.output.uri}/{table}/run={run_id}", partitioning=None
    ).to_pylist()
    return found


def outcome(row: Mapping[str, Any]) -> Outcome:
    return row["status"], row["error_code"], row["attempts"]


@dataclass(frozen=True, slots=True)
class Case:
    """What stands, what is met once, and what must come of one question about one image.

    `error` is a part of the row's error, which of a repaired answer is what was repaired. With `uploads` 0 nothing was
    stored, and without an upload nothing was asked.
    """

    outcome: Outcome
    objects: int = SCENE_OBJECTS
    error: str | None = None
    flags: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    prompt: Mapping[str, str] = field(default_factory=lambda: DETECT)
    model: Mapping[str, object] = field(default_factory=dict)
    uploads: int = 1
    next_run: Outcome | None = None
    """Of the row of another run without the fault, where it is not a first good answer, or the same row again."""


def case_of(name: str, *values: Any, **named: Any) -> Any:
    return pytest.param(Case(*values, **named), id=name)


OK: Outcome = ("ok", None, 1)
REPAIRED: Outcome = ("repaired", None, 1)
NO_USE: Outcome = ("failed", "invalid_answer", 2)
CUT: Outcome = ("failed", "truncated", 2)
NO_UPLOAD: Outcome = ("failed", "upload_failed", 0)
WIDE = {"max_output_tokens": 65_536}

CASES = [
    case_of("A2-text", ("ok", None, 2), once=("429_text",)),
    case_of("A2-bare", ("ok", None, 2), once=("429_bare",)),
    case_of("A2-bare-for-ever", ("failed", "rate_limited", 6), 0, "HTTP 429", always=("429_bare",)),
    case_of("A2-interactions", ("ok", None, 2), once=("429_interactions",)),
    case_of("A4-list", ("ok", None, 2), once=("429_list",)),
    case_of("A4-list-for-ever", ("failed", "rate_limited", 6), 0, "HTTP 429", always=("429_list",)),
    case_of("A5-292-years", ("ok", None, 2), once=("429_huge",)),
    case_of("A5-292-years-for-ever", ("failed", "rate_limited", 6), 0, "HTTP 429", always=("429_huge",)),
    case_of("A5-retry-after", ("ok", None, 2), once=("429_retry_after",)),
    case_of("A6-processing", OK, once=("upload_processing",)),
    # the file is still being processed when the next run finds it
    case_of("A6-stuck", NO_UPLOAD, 0, "in state PROCESSING", once=("upload_stuck",), next_run=NO_UPLOAD),
    # likewise: it stays failed until it expires or is deleted
    case_of("A7-failed", NO_UPLOAD, 0, "in state FAILED", once=("upload_failed_state",)),
    case_of("A8-not-active", ("ok", None, 3), once=("not_active_400", "not_active_400")),
    case_of("A8-never-active", ("failed", "server_error", 6), 0, "not in an ACTIVE state", always=("not_active_400",)),
    case_of("A9-file-gone", ("ok", None, 2), once=("file_gone_403",)),
    case_of("A10-lost-finalize", OK, once=("upload_lost_finalize",)),
    case_of("A11-half", OK, once=("upload_half",)),
    case_of("A11-half-twice", OK, once=("upload_half", "upload_half")),
    case_of("A11-session-gone", OK, once=("upload_session_gone",)),
    case_of("A11-session-expired", OK, once=("upload_expired_session_410",)),
    case_of("A11-session-always-gone", NO_UPLOAD, 0, "session is gone", always=("upload_session_gone",), uploads=0),
    case_of("A12-wrong-hash", NO_UPLOAD, 0, "holds other bytes", once=("upload_wrong_hash",)),
    case_of("A12-no-uri", NO_UPLOAD, 0, "without its name or uri", once=("upload_no_uri",)),
    case_of("A13-full", OK, once=("upload_storage_full",)),
    case_of("A15-blocked", ("failed", "blocked", 1), 0, "content_blocked", always=("blocked",)),
    case_of("A15-failed", ("failed", "blocked", 1), 0, "safety", always=("failed_200",)),
    case_of("A16-empty-text", NO_USE, 0, "the answer is empty", always=("empty_text",)),
    case_of("A16-empty-text-once", ("ok", None, 2), once=("empty_text",)),
    case_of("A16-no-steps", NO_USE, 0, "the answer is empty", always=("no_steps",)),
    case_of("A16-thought-only", NO_USE, 0, "the answer is empty", always=("thought_only",)),
    case_of("A17-incomplete", CUT, 2, "cut off", ("truncated",), always=("incomplete",)),
    case_of("A17-incomplete-once", ("ok", None, 2), once=("incomplete",)),
    case_of("A17-incomplete-empty", CUT, 0, "cut off", always=("incomplete_empty",)),
    case_of("A17-called-completed", CUT, 2, "cut off", ("truncated",), always=("truncated_completed",)),
    case_of("A17-unknown-status", CUT, 4, "cut off", ("truncated",), always=("unknown_status",)),
    case_of("A18-fenced", REPAIRED, 4, "fenced", always=("fenced",)),
    case_of("A18-surrounded", REPAIRED, 4, "surrounded", always=("surrounded",)),
    case_of("A18-two-blocks", REPAIRED, 4, "several_blocks", ("repeated",), always=("two_blocks",)),
    case_of("A18-nan", NO_USE, 0, "nan is no number", always=("nan",)),
    case_of("A18-control-characters", REPAIRED, 4, "lenient_json", always=("control_chars",)),
    case_of("A18-deep", ("failed", "invalid_json", 2), 0, "nested too deeply", always=("deep_json",)),
    case_of("A19-repetition", CUT, 4, "cut off", ("repeated", "truncated"), always=("repetition",), model=WIDE),
    case_of("A19-huge", ("failed", "invalid_answer", 2), 0, "more than 33554432 bytes", always=("huge_answer",)),
    case_of("A20-bare-list", REPAIRED, 4, "bare_list", always=("bare_list",)),
    case_of("A20-wrapper", REPAIRED, 4, "wrapper", always=("wrapper",)),
    case_of("A21-swapped", REPAIRED, 4, None, ("corners_swapped",), always=("swapped_corners",)),
    case_of("A21-out-of-range", REPAIRED, 4, None, ("clipped",), always=("out_of_range",)),
    case_of("A21-zero-area", NO_USE, 0, "has no area", always=("zero_area",)),
    case_of("A21-three-numbers", NO_USE, 0, "has 3 numbers", always=("wrong_length",)),
    case_of("A21-five-numbers", NO_USE, 0, "has 5 numbers", always=("extra_numbers",)),
    case_of("A21-words-null-bool", NO_USE, 0, "'top' is no number", always=("non_numbers",)),
    case_of("A21-0-to-1", REPAIRED, 4, None, ("scale_0_1",), always=("scale_0_1",)),
    case_of("A21-null-label", REPAIRED, 4, None, ("no_label",), always=("null_label",)),
    case_of("A22-tokens", REPAIRED, 4, None, ("mask_tokens",), always=("seg_tokens",), prompt=SEGMENT),
    case_of("A22-no-prefix", REPAIRED, 4, None, ("mask_no_prefix",), always=("bare_base64_mask",), prompt=SEGMENT),
    case_of("A22-no-image", REPAIRED, 4, None, ("mask_not_png",), always=("mask_not_image",), prompt=SEGMENT),
    case_of("A22-bomb", REPAIRED, 1, None, ("mask_unreadable",), always=("mask_bomb",), prompt=SEGMENT_ONE, model=WIDE),
    case_of("A23-none", OK, 0, always=("empty_list",)),
    case_of("A24-hostile", REPAIRED, 4, "lenient_json", ("label_not_unicode",), always=("hostile_label",)),
    case_of("A24-long", OK, always=("long_label",), model=WIDE),
    case_of("A27-refused", ("failed", "request_refused", 1), 0, "image is not valid", always=("invalid_image_400",)),
]


@pytest.mark.parametrize("case", CASES)
async def test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help(
    make: MakeConfig, emulator: Emulator, case: Case
):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[case.prompt], model=case.model)
    emulator.always(*case.always)
    emulator.script(*case.once)
    summary = await annotate(config)
    check_output(config, summary.run)
    [row] = rows(config, summary.run)
    assert outcome(row) == case.outcome
    assert (row["annotation_count"], len(emulator.books.questions)) == (case.objects, row["attempts"])
    assert len(emulator.books.uploads) == case.uploads
    assert case.error is None or case.error in row["error"]
    assert {flag for each in rows(config, summary.run, "annotations") for flag in each["flags"]} == set(case.flags)
    # words that were paid for are kept, whatever they were worth
    assert (row["text"] is not None) == bool(row["output_tokens"] or row["input_tokens"])
    await check_next_run(config, emulator, row, case.next_run)


async def check_next_run(
    config: RunConfig, emulator: Emulator, before: Mapping[str, Any], expected: Outcome | None = None
) -> None:
    """Without the fault another run asks again what failed and may go well now, and nothing else."""
    emulator.always()
    emulator.books.reset()
    lasts = before["status"] != "failed" or before["error_code"] in LASTING
    summary = await annotate(config, run_id="next")
    check_output(config, summary.run)
    [row] = rows(config, summary.run)
    assert outcome(row) == (expected or ((before["status"], before["error_code"], 0) if lasts else OK))
    assert len(emulator.books.questions) == row["attempts"]
    assert emulator.books.by_endpoint["upload.start"] <= 1


# --- words that only a front can say

BOX = '{"box_2d":[100,200,300,400],"label":"cup"}'
OTHER = '{"box_2d":[500,500,700,700],"label":"plate"}'


def one(box: str) -> str:
    """An answer of one object with this box."""
    return f'{{"boxes":[{{"box_2d":{box},"label":"cup"}}]}}'


def two(box: str) -> str:
    """An answer of a good object and of one with this box."""
    return f'{{"boxes":[{OTHER},{{"box_2d":{box},"label":"cup"}}]}}'


def masked(mask: str) -> str:
    return f'{{"boxes":[{{"box_2d":[100,200,300,400],"mask":"{mask}","label":"cup"}}]}}'


def image_of(kind: str, side_px: int = 64, keep: int | None = None) -> str:
    """A data URL of a white picture, cut after `keep` bytes."""
    with BytesIO() as file:
        Image.new("L", (side_px, side_px), 255).save(file, kind)
        return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()[:keep]).decode()}"


NO_JSON: Outcome = ("failed", "invalid_json", 2)
OUTSIDE: Outcome = ("failed", "invalid_answer", 1)


@pytest.mark.parametrize(
    ("text", "expected", "objects", "error"),
    [
        pytest.param("I can see a cup and a plate.", NO_JSON, 0, "is no JSON", id="A18-prose"),
        pytest.param(f'{{"boxes":[{BOX}]}}\n{{"boxes":[{{"box', REPAIRED, 1, "trailing_fragment", id="A18-fragment"),
        pytest.param(f'{{"boxes":[{BOX} {OTHER}]}}', REPAIRED, 2, "broken_json", id="A18-no-comma"),
        pytest.param(one("[1e999,0,Infinity,9]"), NO_USE, 0, "no number", id="A18-infinity"),
        pytest.param(
            f'{{"boxes":[{",".join([BOX] * 5000)}]}}', REPAIRED, 1, "repeated", id="A19-one-object-5000-times"
        ),
        pytest.param(
            f'{{"boxes":[{",".join(one(f"[0,0,9,{n}]")[10:-2] for n in range(1, 1500))}]}}',
            *(REPAIRED, 1000, "object_limit"),
            id="A19-1500-objects",
        ),
        pytest.param(masked("iVBORw0KGgo" + "A" * 5_000_000), NO_USE, 0, "longer than", id="A19-endless-base64"),
        pytest.param("null", NO_USE, 0, "another shape", id="A20-null"),
        pytest.param("5", NO_USE, 0, "another shape", id="A20-number"),
        pytest.param('"nothing"', NO_USE, 0, "another shape", id="A20-string"),
        pytest.param("{}", NO_USE, 0, "another shape", id="A20-empty-object"),
        pytest.param('{"error":"no objects"}', NO_USE, 0, "another shape", id="A20-other-keys"),
        pytest.param("[[1,2,3,4]]", NO_USE, 0, "another shape", id="A20-bare-numbers"),
        pytest.param(BOX, REPAIRED, 1, "bare_object", id="A20-bare-object"),
        pytest.param(f'{{"result":{{"boxes":[{BOX}]}}}}', REPAIRED, 1, "wrapper", id="A20-wrapped-twice"),
        pytest.param(json.dumps(f'{{"boxes":[{BOX}]}}'), REPAIRED, 1, "double_encoded", id="A20-json-in-a-string"),
        pytest.param(one("null"), NO_USE, 0, "none of 1 objects", id="A21-null"),
        pytest.param(one("[0,0,true,500]"), NO_USE, 0, "True is no number", id="A21-bool"),
        pytest.param(one('["100","200","300","400"]'), REPAIRED, 1, None, id="A21-numerals"),
        pytest.param(one("[-500,-500,-1,-1]"), OUTSIDE, 0, "inside the image", id="A21-negative"),
        pytest.param(one("[1001,0,2000,500]"), OUTSIDE, 0, "inside the image", id="A21-beyond-1000"),
        pytest.param(two("[1001,0,2000,500]"), REPAIRED, 1, "inside the image", id="A21-one-beyond-1000"),
        pytest.param(two("[1,2,3]"), REPAIRED, 1, "1 dropped: object 1", id="A21-one-of-three-numbers"),
        pytest.param(two("[NaN,2,3,4]"), REPAIRED, 1, "1 dropped: object 1", id="A21-one-nan"),
    ],
)
async def test_words_of_the_model_are_read_by_the_rule_or_kept_in_a_failed_row(
    make: MakeConfig, emulator: Emulator, front: Front, text: str, expected: Outcome, objects: int, error: str | None
):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT])
    front.always("ask", said(text))
    summary = await annotate(config)
    check_output(config, summary.run)
    [row] = rows(config, summary.run)
    assert outcome(row) == expected
    assert (row["annotation_count"], row["text"], front.count("ask")) == (objects, text, expected[2])
    assert error is None or error in row["error"]
    front.clear()
    await check_next_run(config, emulator, row)


@pytest.mark.parametrize(
    ("mask", "flags", "has_mask"),
    [
        pytest.param(image_of("JPEG"), ["mask_not_png"], False, id="A22-jpeg"),
        pytest.param(image_of("PNG", keep=40), ["mask_unreadable"], False, id="A22-cut-png"),
        pytest.param(image_of("PNG")[:-7] + "!", ["mask_unreadable"], False, id="A22-broken-base64"),
        pytest.param(image_of("PNG", side_px=1), [], True, id="A22-one-pixel"),
        pytest.param(image_of("PNG", side_px=1000), [], True, id="A22-larger-than-its-box"),
        pytest.param(image_of("PNG", side_px=5000), ["mask_unreadable"], False, id="A22-5000-px"),
    ],
)
async def test_a_mask_of_no_use_leaves_its_box(
    make: MakeConfig, front: Front, mask: str, flags: list[str], has_mask: bool
):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[SEGMENT])
    front.always("ask", said(masked(mask)))
    summary = await annotate(config)
    check_output(config, summary.run)
    assert outcome(rows(config, summary.run)[0]) == (REPAIRED if flags else OK)
    [found] = rows(config, summary.run, "annotations")
    assert found["flags"] == flags
    assert (found["xmin"], found["ymin"]) == (found["width"] / 5, found["height"] / 10)
    assert (found["rle"] is not None) == has_mask


# --- A1, A2, A4, A5: too many requests


@asynccontextmanager
async def asking(emulator: Emulator, front: Front, time: Time, **limits: Any) -> AsyncIterator[Asker]:
    """What a run asks with, but for the clock; one request at a time."""
    front.clock = lambda: time.now_s
    config = LimitsConfig(concurrency=1, requests_per_minute=1e6, **limits)
    limiter = time.limiter(config)
    policy = RetryPolicy(sleep=time.sleep, jitter=tenacity.wait_exponential(multiplier=1))
    async with front.open(emulator.url, concurrency=4) as transport:
        client = GeminiClient(transport, base_url=emulator.url, api_key=KEY, timeout_s=10)
        yield Asker(client, limiter, policy, Breaker("the model", sleep=time.sleep), ModelConfig(), None, Tally())


async def ask(asker: Asker, number: int = 0) -> Answer:
    image = ImagePart("image/jpeg", data=(SAMPLES / SCENE).read_bytes())
    return await asker.ask(
        make_question("objects", "detect", None, ()), image, f"key-{number}", _no_other_copy, lambda _: None
    )


def outcome_of(answer: Answer) -> Outcome:
    return answer.status, answer.error_code, answer.attempts


async def _no_other_copy() -> None:
    return None


@pytest.mark.parametrize(
    ("response", "wait_s"),
    [
        pytest.param(retry_info("45.123s"), 45.123, id="A1-retry-info"),
        pytest.param(refused(429, "x", "Quota exceeded. Please retry in 46.7s."), 46.7, id="A2-words"),
        pytest.param(retry_after("2"), 2.0, id="A5-retry-after"),
        pytest.param(retry_after("3000000000"), 60.0, id="A5-95-years"),
        pytest.param(retry_info("9223372036854775807s"), 60.0, id="A5-292-years"),
        pytest.param(retry_after("Fri, 31 Dec 9999 23:59:59 GMT"), 60.0, id="A5-a-date-far-away"),
    ],
)
async def test_nobody_asks_before_the_delay_of_a_429_is_over(
    emulator: Emulator, front: Front, response: httpx.Response, wait_s: float
):
    time = Time()
    front.script("ask", response)
    async with asking(emulator, front, time) as asker:
        answers = await asyncio.gather(*(ask(asker, number) for number in range(6)))
    assert [answer.status for answer in answers] == ["ok"] * 6
    assert sorted(answer.attempts for answer in answers) == [1, 1, 1, 1, 1, 2]
    first, *others = [call.at_s for call in front.calls]
    assert first == 1000
    assert min(others) == pytest.approx(1000 + wait_s, abs=0.5)
    assert min(others) >= 1000 + wait_s


async def test_a1_a_run_rests_for_the_delay_and_goes_on(make: MakeConfig, emulator: Emulator, front: Front):
    front.script("ask", None, retry_info("0.7s"))
    config = make(source={"uri": str(SAMPLES), "include": THREE}, limits={"concurrency": 2}, retry={"max_wait_s": 5.0})
    summary = await annotate(config)
    assert summary.is_all_ok
    check_output(config, summary.run)
    _, limited, *others = [call.at_s for call in front.calls if call.what == "ask"]
    assert len(others) == 5
    assert min(others) - limited >= 0.7


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="A4-empty"),
        pytest.param(b"Too many requests", id="A4-words"),
        pytest.param(b"<html><h1>429</h1></html>", id="A4-html"),
        pytest.param(b"[]", id="A4-empty-list"),
        pytest.param(b"null", id="A4-null"),
        pytest.param(b'{"error":null}', id="A4-no-error"),
        pytest.param(b'{"error":"slow down"}', id="A4-error-in-words"),
        pytest.param(b'{"error":{"code":429,"details":"x","message":{}}}', id="A4-odd-members"),
        pytest.param(b'{"error":{"code":"too_many_requests"}}', id="A4-another-code"),
        pytest.param(b"\xff\xfe\x00", id="A4-bytes"),
    ],
)
async def test_a_429_is_one_whatever_its_body(make: MakeConfig, emulator: Emulator, front: Front, body: bytes):
    front.script("ask", httpx.Response(429, content=body))
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT])
    summary = await annotate(config)
    check_output(config, summary.run)
    assert outcome(rows(config, summary.run)[0]) == ("ok", None, 2)
    front.always("ask", httpx.Response(429, content=body))
    summary = await annotate(config, new=True)
    check_output(config, summary.run)
    assert outcome(rows(config, summary.run)[0]) == ("failed", "rate_limited", 6)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("0", id="A5-zero"),
        pytest.param("-5", id="A5-negative"),
        pytest.param("3000000000", id="A5-95-years"),
        pytest.param("3e9", id="A5-exponent"),
        pytest.param("inf", id="A5-inf"),
        pytest.param("Wed, 21 Oct 2015 07:28:00 GMT", id="A5-past-date"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", id="A5-date-far-away"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 -0000", id="A5-date-of-no-zone"),
        pytest.param("soon", id="A5-word"),
    ],
)
async def test_whatever_delay_a_429_names_the_waits_are_neither_none_nor_endless(
    make: MakeConfig, emulator: Emulator, front: Front, value: str
):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT])
    front.script("ask", retry_after(value))
    summary = await annotate(config)
    check_output(config, summary.run)
    assert outcome(rows(config, summary.run)[0]) == ("ok", None, 2)
    assert summary.elapsed_s < 5
    time = Time()
    front.always("ask", retry_after(value))
    async with asking(emulator, front, time) as asker:
        answer = await ask(asker)
    assert outcome_of(answer) == ("failed", "rate_limited", 6)
    # six attempts at once would use a question up in no time
    assert 1 <= time.now_s - 1000 <= 5 * 60 + 1


# --- A3, A25, A26: what ends a run


@pytest.mark.parametrize(
    ("fault", "error", "exit_code"),
    [
        pytest.param("429_daily", QuotaExhausted, 3, id="A3-daily"),
        pytest.param("429_zero", ModelUnknown, 2, id="A3-none-in-this-tier"),
        pytest.param("429_zero_unsaid", ModelUnknown, 2, id="A3-none-in-this-tier-by-words"),
        pytest.param("bad_key", AuthenticationError, 3, id="A25-400"),
        pytest.param("key_revoked_403", AuthenticationError, 3, id="A25-403"),
        pytest.param(refused(401, "authentication"), AuthenticationError, 3, id="A25-401"),
        pytest.param(refused(402, "payment_required"), AuthenticationError, 3, id="A25-402"),
        pytest.param(refused(404, "model_not_found"), ModelUnknown, 2, id="A26-model-withdrawn-in-mid-run"),
        pytest.param(refused(429, "quota_exceeded"), QuotaExhausted, 3, id="A3-daily-by-code"),
    ],
)
async def test_what_ends_a_run_fails_no_row_and_the_next_run_asks_the_rest(
    make: MakeConfig,
    emulator: Emulator,
    front: Front,
    caplog: pytest.LogCaptureFixture,
    fault: str | httpx.Response,
    error: type[RunError],
    exit_code: int,
):
    config = make(source={"uri": str(SAMPLES), "include": THREE}, prompts=[DETECT], limits={"concurrency": 1})
    if isinstance(fault, str):
        emulator.script("ok")
        emulator.always(fault)
    else:
        front.script("ask", None)
        front.always("ask", fault)
    with caplog.at_level(logging.DEBUG), pytest.raises(error) as caught:
        await annotate(config)
    assert type(caught.value) is error
    assert caught.value.exit_code == exit_code
    assert KEY not in f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"
    assert front.count("ask") <= 5  # one went well; a 403 may mean the file, so the two others may be asked twice
    assert not (Path(config.output.uri) / "images").exists()
    [run] = list_runs(config.output.uri)
    assert (run["status"], run["totals"]["images_failed"]) == ("unfinished", 0)
    emulator.always()
    front.clear()
    summary = await annotate(config)
    assert (summary.run, summary.is_all_ok) == (run["run"], True)
    check_output(config, summary.run)
    assert front.count("ask") == 2
    assert (len(emulator.books.answered()), len(emulator.books.uploads)) == (3, 3)


async def test_a3_a_run_that_waits_for_midnight_asks_again_then(emulator: Emulator, front: Front):
    time = Time()
    emulator.script("429_daily")
    async with asking(emulator, front, time, on_daily_quota="wait") as asker:
        answer = await ask(asker)
    assert outcome_of(answer) == ("ok", None, 2)
    # not after the 10 s that the RetryInfo says, but from half past nine to a little after midnight
    assert [call.at_s - 1000 for call in front.calls] == pytest.approx([0, 14.5 * 3600 + MIDNIGHT_MARGIN_S], abs=1)


@pytest.mark.parametrize("fault", ["429_zero", "429_zero_unsaid"])
async def test_a3_a_model_that_is_not_in_the_tier_is_not_waited_for(emulator: Emulator, front: Front, fault: str):
    time = Time()
    emulator.script(fault)
    async with asking(emulator, front, time, on_daily_quota="wait") as asker:
        with pytest.raises(ModelUnknown, match="tier does not have this model"):
            await ask(asker)


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(refused(403, "permission_denied", f"Consumer 'api_key:{KEY}' has been suspended."), id="A25-403"),
        pytest.param(refused(401, "authentication", f"The key {KEY} is not known."), id="A25-401"),
        pytest.param(refused(400, "invalid_request", f"Unknown parameter key={KEY}."), id="A25-400"),
        pytest.param(refused(500, "api_error", f"An internal error has occurred for {KEY}."), id="A25-500"),
        pytest.param(httpx.Response(502, content=f"<h1>GET /?key={KEY}</h1>".encode()), id="A25-html"),
    ],
)
async def test_a_service_that_repeats_the_key_in_its_error_is_not_quoted_with_it(
    make: MakeConfig, front: Front, caplog: pytest.LogCaptureFixture, response: httpx.Response
):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT])
    front.always("ask", response)
    with caplog.at_level(logging.DEBUG):
        [result] = await asyncio.gather(annotate(config), return_exceptions=True)
    if isinstance(result, BaseException):
        assert isinstance(result, AuthenticationError)
        assert KEY not in f"{result!r} {result.__cause__!r}"
    else:
        check_output(config, result.run)
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("fault", "error", "exit_code"),
    [
        pytest.param("model_404", ModelUnknown, 2, id="A26-model-404"),
        pytest.param("model_region_400", ConfigError, 2, id="A26-region-400"),
        pytest.param("model_bad_key", AuthenticationError, 3, id="A26-bad-key"),
    ],
)
async def test_a_wrong_model_place_or_key_is_found_before_anything_is_uploaded(
    make: MakeConfig, emulator: Emulator, fault: str, error: type[RunError], exit_code: int
):
    config = make(source={"uri": str(SAMPLES), "include": THREE})
    emulator.always(fault)
    with pytest.raises(error) as caught:
        await annotate(config)
    assert (type(caught.value), caught.value.exit_code) == (error, exit_code)
    assert KEY not in repr(caught.value)
    assert set(emulator.books.by_endpoint) == {"models.get"}
    emulator.always()
    summary = await annotate(config)
    assert summary.is_all_ok
    check_output(config, summary.run)


async def test_a26_a_look_at_the_model_that_fails_for_another_reason_stops_nothing(
    make: MakeConfig, emulator: Emulator
):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]})
    emulator.always("model_500")
    summary = await annotate(config)
    assert summary.is_all_ok
    check_output(config, summary.run)


# --- A6 to A14: files


async def test_a6_a_file_that_is_never_ready_is_asked_after_for_a_time_and_not_sent_again(
    make: MakeConfig, emulator: Emulator
):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]})
    emulator.always("upload_stuck")
    summary = await annotate(config)
    check_output(config, summary.run)
    assert {outcome(row) for row in rows(config, summary.run)} == {NO_UPLOAD}
    assert (emulator.books.by_endpoint["upload.start"], emulator.books.by_endpoint["files.get"]) == (1, 8)
    assert emulator.books.questions == []


async def test_a7_the_row_of_a_failed_file_says_what_the_service_said(make: MakeConfig, emulator: Emulator):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT])
    emulator.always("upload_failed_state")
    summary = await annotate(config)
    [row] = rows(config, summary.run)
    assert emulator.books.by_endpoint["upload.start"] == 1
    assert "The file could not be processed." in row["error"]


async def test_a9_a_file_that_expires_before_it_is_used_is_uploaded_once_more(make: MakeConfig):
    began_s = time.time()
    with Emulator(clock=lambda: began_s + (TWO_DAYS_S if emulator.books.uploads else 0)) as emulator:
        config = make(model={"base_url": emulator.url}, source={"uri": str(SAMPLES), "include": [SCENE]})
        summary = await annotate(config)
        assert summary.is_all_ok
        check_output(config, summary.run)
        # both questions found it gone, and one upload served both
        assert len(emulator.books.uploads) == 2
        assert len(emulator.books.answered()) == 2
        assert all(row["attempts"] == 2 for row in rows(config, summary.run))
        await check_rerun_is_free(config, emulator)


async def test_a9_a_file_of_an_earlier_run_that_has_expired_is_uploaded_again(make: MakeConfig):
    now_s = time.time()
    with Emulator(clock=lambda: now_s) as emulator:
        sections: dict[str, Any] = {
            "model": {"base_url": emulator.url},
            "source": {"uri": str(SAMPLES), "include": THREE},
        }
        await annotate(make(prompts=[DETECT], **sections))
        now_s += TWO_DAYS_S
        config = make(prompts=[DETECT, SEGMENT], **sections)
        summary = await annotate(config)
        assert summary.is_all_ok
        check_output(config, summary.run)
        assert (len(emulator.books.uploads), len(emulator.books.answered())) == (6, 6)


async def test_a10_an_upload_whose_answer_is_lost_is_sent_and_stored_once(
    make: MakeConfig, emulator: Emulator, front: Front
):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]})
    emulator.script("upload_lost_finalize")
    summary = await annotate(config)
    assert summary.is_all_ok
    check_output(config, summary.run)
    [upload] = emulator.books.uploads
    assert [(call.what, len(call.body)) for call in front.calls if call.what in ("start", "bytes", "query")][1:] == [
        ("bytes", upload.size_bytes),
        ("query", 0),
    ]
    await check_rerun_is_free(config, emulator)


async def test_a11_a_broken_upload_goes_on_where_the_service_stands(make: MakeConfig, emulator: Emulator, front: Front):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]})
    emulator.script("upload_half")
    assert (await annotate(config)).is_all_ok
    data = (SAMPLES / SCENE).read_bytes()
    sent = [call.body for call in front.calls if call.what == "bytes"]
    assert (front.count("start"), front.count("query")) == (1, 1)
    assert sent == [data, data[len(data) // 2 :]]
    assert emulator.books.uploads[0].sha256 == hashlib.sha256(data).hexdigest()


async def test_a11_a_308_is_gone_on_from(make: MakeConfig, emulator: Emulator, front: Front):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT])
    front.script("bytes", httpx.Response(308, headers={"x-goog-upload-status": "active"}))
    summary = await annotate(config)
    assert outcome(rows(config, summary.run)[0]) == OK
    assert (front.count("start"), front.count("bytes"), len(emulator.books.uploads)) == (1, 2, 1)


async def test_a11_bytes_at_a_wrong_offset_are_an_error_that_the_next_attempt_heals(emulator: Emulator, front: Front):
    data = bytes(CHUNK_BYTES) + b"the rest"
    async with front.open(emulator.url, concurrency=4) as transport:
        client = GeminiClient(transport, base_url=emulator.url, api_key=KEY, timeout_s=10)
        url = await client.start_upload(name="x", size_bytes=len(data), mime_type="image/png", display_name=None)
        with pytest.raises(ServerUnavailable, match="the offset 8388608 is not where the upload stands"):
            await client.send_bytes(url, data[CHUNK_BYTES:], offset=CHUNK_BYTES, last=True)
        upload = Upload(client, data, name="y", mime_type="image/png", display_name="y")
        # said to be there, and not: the second chunk begins at an offset that the service does not have
        front.script("bytes", httpx.Response(200))
        with pytest.raises(ServerUnavailable, match="is not where the upload stands"):
            await upload.attempt()
        file = await upload.attempt()
    assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert [upload.name for upload in emulator.books.uploads] == ["files/y"]


@pytest.mark.parametrize("fault", ["upload_no_uri", "upload_wrong_hash"])
async def test_a12_a_file_that_is_not_surely_ours_is_never_asked_about(
    make: MakeConfig, emulator: Emulator, fault: str
):
    config = make(source={"uri": str(SAMPLES), "include": THREE})
    emulator.always(fault)
    summary = await annotate(config)
    check_output(config, summary.run)
    assert {outcome(row) for row in rows(config, summary.run)} == {NO_UPLOAD}
    assert (emulator.books.questions, emulator.books.by_endpoint["upload.start"]) == ([], 3)
    await check_rerun_is_free(config, emulator)


async def test_a13_a_storage_that_stays_full_of_others_files_ends_the_run(make: MakeConfig, emulator: Emulator):
    config = make(source={"uri": str(SAMPLES), "include": THREE}, prompts=[DETECT])
    emulator.always("upload_storage_full")
    with pytest.raises(QuotaExhausted, match="storage is full"):
        await annotate(config)
    [run] = list_runs(config.output.uri)
    emulator.always()
    summary = await annotate(config)
    assert (summary.run, summary.is_all_ok) == (run["run"], True)
    check_output(config, summary.run)


async def test_a14_a_file_that_cannot_be_deleted_is_logged_and_passed_over(
    emulator: Emulator, front: Front, caplog: pytest.LogCaptureFixture
):
    async with front.open(emulator.url, concurrency=4) as transport:
        client = GeminiClient(transport, base_url=emulator.url, api_key=KEY, timeout_s=10)
        names = ["gone", "broken", "lost", "last"]
        files = [
            await upload_file(client, name.encode(), name=name, mime_type="image/png", display_name=name)
            for name in names
        ]
        await client.delete_file("gone")
        front.script("DELETE files", None, refused(500, "api_error"), refused(404, "not_found"))
        assert await delete_files(client, files) == len(b"last")
        with pytest.raises(PermissionRefused):
            await client.get_file("last")
    assert [text.split()[0] for text in caplog.messages] == ["files/gone", "files/broken", "files/lost"]
    assert all("could not be deleted" in text for text in caplog.messages)


async def test_a14_a_full_storage_of_which_not_all_can_be_deleted_ends_no_run(make: MakeConfig, front: Front):
    with Emulator(EmulatorOptions(storage_bytes=250_000)) as emulator:
        front.script("DELETE files", refused(500, "api_error"), refused(404, "not_found"))
        config = make(model={"base_url": emulator.url}, execution={"shard_size": 2, "shards_in_flight": 1})
        summary = await annotate(config)
        assert summary.is_all_ok
        check_output(config, summary.run)
        assert emulator.books.by_endpoint["files.delete"] > 0


# --- A15, A16: blocked, and nothing at all

BLOCK_CODES = [
    *("content_blocked", "safety", "recitation", "language", "prohibited_content", "spii", "blocklist"),
    *("image_safety", "image_prohibited_content", "image_recitation", "image_other"),
]


@pytest.mark.parametrize("code", [pytest.param(code, id=f"A15-{code}") for code in BLOCK_CODES])
async def test_what_is_blocked_is_a_row_and_not_asked_again(
    make: MakeConfig, emulator: Emulator, front: Front, code: str
):
    config = make(source={"uri": str(SAMPLES), "include": THREE[:2]}, prompts=[DETECT])
    # a refusal, and an answer that broke off; what it had said until then counts for nothing
    half = said(f'{{"boxes":[{BOX}]}}', status="failed", errors=[{"code": code, "message": "m"}])
    front.script("ask", refused(400, code), half)
    summary = await annotate(config)
    check_output(config, summary.run)
    for row in rows(config, summary.run):
        assert outcome(row) == ("failed", "blocked", 1)
        assert (code in row["error"], row["annotation_count"]) == (True, 0)
    assert front.count("ask") == 2
    await annotate(config)
    assert front.count("ask") == 2


@pytest.mark.parametrize(
    ("response", "codes"),
    [
        pytest.param(refused(400, "image_horror"), LASTING, id="A15-unknown-400"),
        pytest.param(
            said(f'{{"boxes":[{BOX}]}}', status="failed", errors=[{"code": "image_horror", "message": "m"}]),
            ("blocked",),
            id="A15-unknown-failed",
        ),
    ],
)
async def test_what_is_blocked_for_a_reason_that_nobody_knows_is_not_asked_again(
    make: MakeConfig, front: Front, response: httpx.Response, codes: tuple[str, ...]
):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT])
    front.always("ask", response)
    summary = await annotate(config)
    check_output(config, summary.run)
    [row] = rows(config, summary.run)
    assert (row["status"], row["attempts"], row["annotation_count"]) == ("failed", 1, 0)
    assert row["error_code"] in codes


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="A16-empty-object"),
        pytest.param({"status": "completed", "steps": []}, id="A16-empty-steps"),
        pytest.param({"steps": [{"type": "model_output", "content": []}]}, id="A16-empty-content"),
        pytest.param({"steps": [{"type": "model_output", "content": None}]}, id="A16-null-content"),
        pytest.param({"steps": [{"type": "model_output", "content": [{"type": "image"}]}]}, id="A16-no-text"),
        pytest.param({"steps": [{"type": "thought", "summary": [{"text": "[]"}]}]}, id="A16-thought"),
        pytest.param(
            {"steps": [{"type": "model_output", "content": [{"type": "text", "text": " \n"}]}]}, id="A16-blank"
        ),
    ],
)
async def test_nothing_said_is_not_nothing_seen(make: MakeConfig, front: Front, body: dict[str, object]):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT])
    front.always("ask", httpx.Response(200, json=body))
    summary = await annotate(config)
    check_output(config, summary.run)
    [row] = rows(config, summary.run)
    assert outcome(row) == NO_USE
    assert "the answer is empty" in row["error"]
    front.clear()
    assert (await annotate(config)).is_all_ok


# --- A24, A28


async def test_a24_hostile_labels_are_read_back_by_every_reader(make: MakeConfig, emulator: Emulator):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT])
    emulator.script("hostile_label")
    summary = await annotate(config)
    check_output(config, summary.run)
    label = "<script>alert(1)</script>\x00\n\U0001f6a6 \ufffd"
    files = f"{config.output.uri}/annotations/**/*.parquet"
    assert {row["label"] for row in rows(config, summary.run, "annotations")} == {label}
    assert {row[0] for row in duckdb.execute(f"select distinct label from '{files}'").fetchall()} == {label}
    assert set(pq.read_table(f"{config.output.uri}/annotations").to_pandas().label) == {label}
    assert "<script>" not in summary.to_markdown()
    await check_rerun_is_free(config, emulator)


async def test_a24_a_long_label_is_stored_exactly(make: MakeConfig, emulator: Emulator):
    config = make(source={"uri": str(SAMPLES), "include": [SCENE]}, prompts=[DETECT], model=WIDE)
    emulator.script("long_label")
    summary = await annotate(config)
    assert {row["label"] for row in rows(config, summary.run, "annotations")} == {"very " * 2000}
    assert orjson.loads(rows(config, summary.run)[0]["text"])["boxes"][0]["label"] == "very " * 2000


async def test_a28_answers_that_overtake_each_other_are_not_mixed_up(make: MakeConfig, tmp_path: Path):
    for name, jitter_s in (("calm", 0.0), ("jittery", 0.3)):
        with Emulator(EmulatorOptions(jitter_s=jitter_s, seed=28)) as emulator:
            config = make(model={"base_url": emulator.url}, output={"uri": str(tmp_path / name)})
            summary = await annotate(config, run_id="r")
            assert summary.is_all_ok
            check_output(config, summary.run)
            assert len(emulator.books.answered()) == 2 * (len(FILES) - 1)
    for table in ("images", "annotations"):
        assert digests(tmp_path / "calm", table) == digests(tmp_path / "jittery", table)
    texts = [
        {
            (row["file_name"], row["prompt"]): row["text"]
            for row in rows(make(output={"uri": str(tmp_path / name)}), "r")
        }
        for name in ("calm", "jittery")
    ]
    assert texts[0] == texts[1]
