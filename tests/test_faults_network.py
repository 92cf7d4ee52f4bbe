"""A network that breaks in every way that one does, and what must be left of a run then.

The faults are numbered. Where it can be, a test is a whole run of one question about one image, which travels inside
the question, so that each connection that meets a fault is one attempt.
"""

import asyncio
import gzip
import hashlib
import logging
import re
import ssl
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
import trustme
from PIL import Image

from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import RunError
from pixscribe.gemini import MAX_REPLY_BYTES, GeminiClient, open_transport
from tests.conftest import SAMPLES, MakeConfig, annotate
from tests.faulty_server import (
    Behaviour,
    Connection,
    End,
    FaultyServer,
    OverTls,
    Relay,
    Say,
    closed_port,
    gzip_bomb,
    never_answer,
    never_read,
    reset,
    reset_in_handshake,
    response,
)

MIB = 1024 * 1024
PAGE = b"<html><title>Sorry</title><h1>Please log in to the network.</h1></html>"
DETECT = {"name": "objects", "kind": "detect"}
TALL = "large/tall.jpg"
"""45,016 bytes that are sent as they are."""

MOST_CALLS_TO_GIVE_UP = 30
"""Of two questions about each of the samples, three attempts each, which would be more than 100 calls."""

MakeOne = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _no_proxy_of_the_developer(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def make_one(make: MakeConfig) -> MakeOne:
    """Make a config of one question about one image; three attempts, and what else is given."""

    def make_with(
        url: str,
        *,
        source: Path = SAMPLES,
        include: str = TALL,
        limit: int = 1,
        transport: Literal["inline", "files"] = "inline",
        **retry: Any,
    ) -> RunConfig:
        return make(
            model={"base_url": url, "transport": transport},
            source={"uri": str(source), "include": [include], "limit": limit},
            prompts=[DETECT],
            retry={"max_attempts": 3, "timeout_s": 10, **retry},
        )

    return make_with


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image of 5 MB, more than a loopback connection holds on the way, and one of 15 MB."""
    folder = tmp_path_factory.mktemp("noise")
    for name, side_px in (("large.png", 1300), ("huge.png", 2300)):
        pixels = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name, compress_level=0)
    return folder


@pytest.fixture
def make_many(make: MakeConfig) -> MakeOne:
    """Make a config of two questions about all samples, four requests at a time."""

    def make_with(url: str, **retry: Any) -> RunConfig:
        return make(
            model={"base_url": url, "transport": "inline"},
            limits={"concurrency": 4},
            retry={"max_attempts": 3, "timeout_s": 10, "max_wait_s": 0.2, **retry},
        )

    return make_with


def rows(config: RunConfig, table: str = "responses") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(f"{config.output.uri}/{table}").to_pylist()
    return found


def only_row(config: RunConfig, table: str = "responses") -> dict[str, Any]:
    [row] = rows(config, table)
    return row


def outcome(row: dict[str, Any]) -> tuple[str, str | None, int]:
    return row["status"], row["error_code"], row["attempts"]


async def what_went_wrong(config: RunConfig) -> str:
    """What the user is told of a run that cannot succeed: the error that ended it, or that of its only row."""
    try:
        await annotate(config)
    except RunError as error:
        return str(error)
    row = only_row(config)
    assert row["status"] == "failed"
    return str(row["error"])


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in ("images", "annotations")
        for path in sorted((folder / table).rglob("*.parquet"))
    }


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


@contextmanager
def memory_growth_below(limit_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < limit_bytes


# --- connections that break


async def test_n1_a_connection_reset_on_accept_is_tried_again(make_one: MakeOne, emulator: Emulator):
    with FaultyServer(reset, reset, then=Relay(emulator.url)) as server:
        config = make_one(server.url)
        assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 3)
    assert len(emulator.books.questions) == 1


async def test_n1_resets_without_end_are_a_row_that_names_their_type(
    make_one: MakeOne, caplog: pytest.LogCaptureFixture
):
    with FaultyServer(then=reset) as server, caplog.at_level(logging.WARNING, "pixscribe.retry"):
        config = make_one(server.url)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "network_error", 3)
    assert server.connections == 3
    # the exceptions of a reset often have no text at all
    assert re.match(r"\w+(Error|Disconnected)\b", only_row(config)["error"])
    assert len(caplog.messages) == 2
    assert all(re.search(r"attempt \d: \w+(Error|Disconnected)\b.*again in", text) for text in caplog.messages)


@pytest.mark.parametrize("end", ["reset", "fin"])
async def test_n2_an_upload_that_breaks_off_leaves_one_whole_file(make_one: MakeOne, emulator: Emulator, end: End):
    with FaultyServer(Relay(emulator.url, request_bytes=20_000, end=end), then=Relay(emulator.url)) as server:
        config = make_one(server.url, transport="files")
        assert (await annotate(config)).is_all_ok
    assert server.connections == 2
    [upload] = emulator.books.uploads
    assert upload.sha256 == hashlib.sha256((SAMPLES / TALL).read_bytes()).hexdigest()
    [question] = emulator.books.questions
    assert question.images == (upload.sha256,)


async def test_n2_uploads_that_always_break_off_are_a_row(make_one: MakeOne, emulator: Emulator):
    with FaultyServer(then=Relay(emulator.url, request_bytes=20_000)) as server:
        config = make_one(server.url, transport="files")
        await annotate(config)
    assert server.connections == 3
    assert only_row(config, "images")["error_code"] == "upload_failed"
    assert outcome(only_row(config)) == ("failed", "upload_failed", 0)
    assert emulator.books.questions == []


@pytest.mark.parametrize("status", ["413 Payload Too Large", "400 Bad Request"])
@pytest.mark.parametrize("transport", ["inline", "files"])
async def test_n3_a_refusal_in_mid_upload_is_a_row_after_few_attempts(
    make_one: MakeOne, emulator: Emulator, noise: Path, transport: Literal["inline", "files"], status: str
):
    refusal = response(b'{"error": {"message": "too large"}}', status=status)
    with FaultyServer(then=Relay(emulator.url, request_bytes=200_000, last_words=refusal)) as server:
        config = make_one(server.url, source=noise, include="large.png", transport=transport)
        await annotate(config)
    assert 1 <= server.connections <= 3
    # whether the refusal outruns the reset that follows it is up to the kernel
    codes = ("upload_failed",) if transport == "files" else ("request_refused", "network_error")
    assert only_row(config)["error_code"] in codes
    assert emulator.books.answered() == []
    assert emulator.books.uploads == []


async def test_n3_what_is_too_large_for_a_question_is_not_even_sent(make_one: MakeOne, noise: Path):
    with FaultyServer(then=never_answer) as server:
        config = make_one(server.url, source=noise, include="huge.png")
        await annotate(config)
    assert server.connections == 0
    assert outcome(only_row(config)) == ("failed", "too_large", 0)


async def test_n4_a_server_that_never_reads_is_a_timeout(make_one: MakeOne, noise: Path):
    with FaultyServer(then=never_read) as server:
        config = make_one(server.url, source=noise, include="large.png", timeout_s=0.3)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "timeout", 3)
    assert server.connections == 3


async def test_n4_a_server_that_does_not_read_once_is_asked_again(make_one: MakeOne, emulator: Emulator):
    # small enough to be on its way whole, which is then as good as unanswered
    with FaultyServer(never_read, then=Relay(emulator.url)) as server:
        config = make_one(server.url, timeout_s=1)
        assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 2)


async def test_n5_a_question_without_an_answer_is_asked_again_and_counted(make_one: MakeOne, emulator: Emulator):
    with FaultyServer(Relay(emulator.url, swallows=True), then=Relay(emulator.url)) as server:
        config = make_one(server.url, timeout_s=1)
        summary = await annotate(config)
    assert outcome(only_row(config)) == ("ok", None, 2)
    assert len(emulator.books.answered()) == 2 == summary.totals.requests


async def test_n5_a_server_that_never_answers_is_a_timeout(make_one: MakeOne):
    with FaultyServer(then=never_answer) as server:
        config = make_one(server.url, timeout_s=0.3)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "timeout", 3)
    assert server.connections == 3


@pytest.mark.parametrize("at_once", [len(response(b"", length=1000)), 0], ids=["body", "headers"])
async def test_n6_n7_an_answer_that_drips_ends_at_the_deadline(make_one: MakeOne, at_once: int):
    with FaultyServer(then=Say(response(b" " * 1000), at_once=at_once, drip_s=0.05)) as server:
        config = make_one(server.url, timeout_s=0.3)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "timeout", 3)
    assert server.connections == 3


@pytest.mark.parametrize("transport", ["inline", "files"])
async def test_n6_an_answer_that_drips_is_asked_for_again(
    make_one: MakeOne, emulator: Emulator, transport: Literal["inline", "files"]
):
    with FaultyServer(Relay(emulator.url, drip_s=0.1), then=Relay(emulator.url)) as server:
        config = make_one(server.url, timeout_s=1, transport=transport)
        assert (await annotate(config)).is_all_ok
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(response(b'{"steps": []', length=500), id="short-body"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n40\r\n{",
            id="chunked",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-type: appli", id="headers"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_n8_an_answer_that_ends_early_is_asked_for_again(make_one: MakeOne, emulator: Emulator, answer: bytes):
    with FaultyServer(Say(answer), Say(answer), then=Relay(emulator.url)) as server:
        config = make_one(server.url)
        assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 3)


@pytest.mark.parametrize("stays_open", [False, True], ids=["close", "keep-alive"])
async def test_n9_an_answer_cut_by_its_content_length_is_asked_for_once_more(
    make_one: MakeOne, emulator: Emulator, stays_open: bool
):
    whole = b'{"status": "completed", "steps": [{"type": "model_output", "content": []}]}'
    connection = "keep-alive" if stays_open else "close"
    cut = Say(response(whole, length=40, connection=connection), stays_open=stays_open)
    with FaultyServer(cut, then=Relay(emulator.url)) as server:
        config = make_one(server.url)
        # what was sent too much must not be taken for the next answer
        assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 2)


async def test_n9_answers_that_are_always_cut_are_a_row_after_the_second(make_one: MakeOne):
    # a 200 was most likely billed, which is why such answers are not asked for as often as others
    with FaultyServer(then=Say(response(b'{"status": "completed", "steps": ['))) as server:
        config = make_one(server.url)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "invalid_json", 2)
    assert server.connections == 2


async def test_n9_more_bytes_than_were_announced_are_a_row_after_few_attempts(make_one: MakeOne):
    with FaultyServer(then=Say(response(b'{"status": "completed", "steps": []}', length=30))) as server:
        config = make_one(server.url)
        await annotate(config)
    row = only_row(config)
    assert (row["status"], row["attempts"]) in (("failed", 2), ("failed", 3))
    assert server.connections == row["attempts"]


def answer_of(text: str) -> bytes:
    steps = [{"type": "model_output", "content": [{"type": "text", "text": text}]}]
    return response(orjson.dumps({"steps": steps}), connection="keep-alive")


async def test_n9_an_answer_too_many_is_not_taken_for_that_of_the_next_question():
    async def answer_twice(connection: Connection) -> None:
        await connection.read_request()
        await connection.send(answer_of("first"))
        await asyncio.sleep(0.1)  # the connection is idle by now
        await connection.send(answer_of("nobody asked"))
        await connection.wait_for_end()

    with FaultyServer(answer_twice, then=Say(answer_of("second")), looked_at=False) as server:
        async with open_transport(server.url, concurrency=1) as transport:
            client = GeminiClient(transport, base_url=server.url, api_key="test-key-4f1c", timeout_s=5)
            assert (await client.create_interaction(b"{}")).text == "first"
            await asyncio.sleep(0.3)
            assert (await client.create_interaction(b"{}")).text == "second"


@pytest.mark.parametrize("answer_bytes", [50, 300], ids=["headers", "body"])
async def test_n10_an_answer_broken_off_by_a_reset_is_asked_for_again(
    make_one: MakeOne, emulator: Emulator, answer_bytes: int
):
    with FaultyServer(Relay(emulator.url, answer_bytes=answer_bytes), then=Relay(emulator.url)) as server:
        config = make_one(server.url)
        assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 2)
    assert len(emulator.books.answered()) == 2


async def test_n10_an_upload_whose_answer_is_lost_is_found_again(make_one: MakeOne, emulator: Emulator):
    # the start of an upload is answered with some 500 bytes, its end with some 800
    with FaultyServer(Relay(emulator.url, answer_bytes=800), then=Relay(emulator.url)) as server:
        config = make_one(server.url, transport="files")
        assert (await annotate(config)).is_all_ok
    assert server.connections == 2
    assert len(emulator.books.uploads) == 1
    assert emulator.books.by_endpoint["files.get"] == 1


# --- answers that are no HTTP, or more than anybody asked for


NO_HTTP = [
    pytest.param(b"\x16\x03\x01\x02\x00\x01" * 50, id="binary"),
    pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="ssh"),
    pytest.param(b"HTTP/1.1 two hundred\r\n\r\n", id="status"),
    pytest.param(response(b"{}", x_padding="x" * 2 * MIB), id="2-mb-header"),
    pytest.param(b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 250_000 + b"\r\n", id="250000-headers"),
]


@pytest.mark.parametrize("answer", NO_HTTP)
async def test_n11_what_is_no_http_is_asked_again(make_one: MakeOne, emulator: Emulator, answer: bytes):
    with FaultyServer(Say(answer), then=Relay(emulator.url)) as server:
        config = make_one(server.url)
        assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 2)


@pytest.mark.parametrize("answer", NO_HTTP)
async def test_n11_what_is_never_http_is_a_row_of_one_line(make_one: MakeOne, answer: bytes):
    with FaultyServer(then=Say(answer)) as server:
        config = make_one(server.url)
        await annotate(config)
    row = only_row(config)
    assert outcome(row) == ("failed", "network_error", 3)
    assert server.connections == 3
    assert 0 < len(row["error"]) < 1000
    assert "\n" not in row["error"]


@pytest.mark.parametrize(
    ("encoding", "body", "error_code", "attempts"),
    [
        # an answer that was cut off may have been billed; one that nobody can read is no answer at all
        pytest.param("gzip", gzip_bomb(300 * MIB), "invalid_answer", 2, id="once"),
        pytest.param("gzip, gzip", gzip.compress(gzip_bomb(300 * MIB)), "server_error", 3, id="twice"),
    ],
)
async def test_n12_a_gzip_bomb_is_a_row_and_not_in_memory(
    make_one: MakeOne, encoding: str, body: bytes, error_code: str, attempts: int
):
    assert len(body) < 400_000
    with FaultyServer(then=Say(response(body, content_encoding=encoding))) as server:
        config = make_one(server.url)
        with memory_growth_below(100 * MIB):
            await annotate(config)
    assert outcome(only_row(config)) == ("failed", error_code, attempts)
    assert server.connections == attempts


async def test_n12_an_endless_answer_is_cut_off(make_one: MakeOne):
    zeros = response(bytes(2 * MAX_REPLY_BYTES), length=10**12)
    with FaultyServer(then=Say(zeros)) as server:
        config = make_one(server.url, max_attempts=1)
        await annotate(config)
    row = only_row(config)
    assert outcome(row) == ("failed", "invalid_answer", 1)
    assert str(MAX_REPLY_BYTES) in row["error"]


BAD_GZIP = response(b"this is not gzip, whatever the header says", content_encoding="gzip")


async def test_n13_bad_gzip_is_asked_for_again(make_one: MakeOne, emulator: Emulator):
    with FaultyServer(Say(BAD_GZIP), then=Relay(emulator.url)) as server:
        config = make_one(server.url)
        assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 2)


async def test_n13_gzip_that_is_always_bad_is_a_row_after_the_second(make_one: MakeOne):
    with FaultyServer(then=Say(BAD_GZIP)) as server, memory_growth_below(100 * MIB):
        config = make_one(server.url)
        await annotate(config)
    row = only_row(config)
    assert (row["status"], row["attempts"], server.connections) == ("failed", 2, 2)
    assert row["error_code"] in ("network_error", "server_error", "invalid_json")


async def test_n13_good_gzip_that_nobody_asked_for_is_understood(make_one: MakeOne):
    steps = b'{"steps": [{"type": "model_output", "content": [{"type": "text", "text": "{\\"boxes\\": []}"}]}]}'
    with FaultyServer(then=Say(response(gzip.compress(steps), content_encoding="gzip"))) as server:
        config = make_one(server.url)
        assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 1)


# --- answers of somebody in between


@pytest.mark.parametrize("transport", ["inline", "files"])
async def test_n14_a_page_instead_of_an_answer_is_asked_past(
    make_one: MakeOne, emulator: Emulator, transport: Literal["inline", "files"]
):
    page = Say(response(PAGE, content_type="text/html"))
    with FaultyServer(page, page, then=Relay(emulator.url)) as server:
        config = make_one(server.url, transport=transport)
        assert (await annotate(config)).is_all_ok
    assert server.connections == 3


async def test_n14_nothing_but_pages_is_a_row(make_one: MakeOne):
    with FaultyServer(then=Say(response(PAGE, content_type="text/html"))) as server:
        config = make_one(server.url)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "server_error", 3)
    assert "JSON" in only_row(config)["error"]
    assert server.connections == 3


async def test_n14_pages_for_every_image_end_the_run_soon(make_many: MakeOne):
    with FaultyServer(then=Say(response(PAGE, content_type="text/html"))) as server:
        config = make_many(server.url, max_wait_s=0.05)
        with pytest.raises(RunError, match="JSON"):
            await annotate(config)
    assert server.connections <= MOST_CALLS_TO_GIVE_UP


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
@pytest.mark.parametrize("transport", ["inline", "files"])
async def test_n15_a_redirect_is_not_followed(make_one: MakeOne, status: str, transport: Literal["inline", "files"]):
    with FaultyServer(then=never_answer, looked_at=False) as trap:
        away = response(b"", status=status, location=trap.url)
        with FaultyServer(then=Say(away)) as server:
            config = make_one(server.url, transport=transport)
            await annotate(config)
    assert (trap.connections, server.connections) == (0, 1)
    assert only_row(config)["error_code"] == ("request_refused" if transport == "inline" else "upload_failed")


async def test_n15_a_redirect_to_the_metadata_of_a_cloud_is_named(make_one: MakeOne):
    away = response(b"", status="302 Found", location="http://169.254.169.254/latest/meta-data/")
    with FaultyServer(then=Say(away)) as server:
        config = make_one(server.url)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "request_refused", 1)
    assert "169.254.169.254" in only_row(config)["error"]
    assert server.connections == 1


async def test_n15_a_redirect_loop_is_one_attempt(make_one: MakeOne):
    with FaultyServer(then=Say(response(b"", status="302 Found", location="/v1beta/interactions"))) as server:
        config = make_one(server.url)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "request_refused", 1)
    assert server.connections == 1
    # a relative location has no host of its own
    assert "127.0.0.1" in only_row(config)["error"]


async def test_n15_an_upload_url_that_leads_elsewhere_gets_no_bytes(make_one: MakeOne):
    with FaultyServer(then=never_answer, looked_at=False) as trap:
        elsewhere = response(b"", x_goog_upload_url=f"{trap.url}/upload/v1beta/files?upload_id=x")
        with FaultyServer(then=Say(elsewhere)) as server:
            config = make_one(server.url, transport="files")
            await annotate(config)
    assert trap.connections == 0
    assert only_row(config)["error_code"] == "upload_failed"
    assert trap.url.removeprefix("http://") in only_row(config)["error"]


# --- a service that cannot be reached


@pytest.mark.parametrize("host", ["nobody.invalid", "127.0.0.1"], ids=["no-name", "closed-port"])
async def test_n16_a_host_that_is_not_there_is_a_row_that_names_it(make_one: MakeOne, host: str):
    url = f"http://{host}:{closed_port()}"
    config = make_one(url)
    await annotate(config)
    assert outcome(only_row(config)) == ("failed", "network_error", 3)
    assert url.removeprefix("http://") in only_row(config)["error"]


@pytest.mark.parametrize("host", ["nobody.invalid", "127.0.0.1"], ids=["no-name", "closed-port"])
async def test_n16_a_host_that_is_not_there_ends_a_run_of_many_images(make_many: MakeOne, host: str):
    url = f"http://{host}:{closed_port()}"
    config = make_many(url, max_wait_s=0.05)
    with pytest.raises(RunError, match=re.escape(url.removeprefix("http://"))):
        await annotate(config)
    assert not (Path(config.output.uri) / "images").exists()


async def test_n16_a_service_that_never_answers_is_not_asked_for_every_image(make_many: MakeOne):
    with FaultyServer(then=reset) as server, pytest.raises(RunError):
        await annotate(make_many(server.url, max_wait_s=0.05))
    assert server.connections <= MOST_CALLS_TO_GIVE_UP


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def _trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


def tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.mark.usefixtures("_trusted")
async def test_n17_a_certificate_that_is_right_is_taken(make_one: MakeOne, authority: trustme.CA, emulator: Emulator):
    relay = OverTls(tls(authority.issue_cert("127.0.0.1")), Relay(emulator.url))
    with FaultyServer(then=relay) as server:
        assert (await annotate(make_one(server.tls_url))).is_all_ok


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("wrong", ["authority", "name", "expired"])
@pytest.mark.parametrize("transport", ["inline", "files"])
async def test_n17_a_certificate_that_is_wrong_is_not_tried_again_and_again(
    make_one: MakeOne, authority: trustme.CA, wrong: str, transport: Literal["inline", "files"]
):
    certificate = {
        "authority": lambda: trustme.CA().issue_cert("127.0.0.1"),
        "name": lambda: authority.issue_cert("gemini.example"),
        "expired": lambda: authority.issue_cert(
            "127.0.0.1", not_before=datetime(2000, 1, 1, tzinfo=UTC), not_after=datetime(2001, 1, 1, tzinfo=UTC)
        ),
    }[wrong]()
    with FaultyServer(then=OverTls(tls(certificate), never_answer)) as server:
        config = make_one(server.tls_url, max_attempts=6, transport=transport)
        assert "certificate" in (await what_went_wrong(config)).lower()
    assert 1 <= server.connections <= 2


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize(("fault", "timeout_s"), [(reset_in_handshake, 10), (never_answer, 1)], ids=["reset", "stall"])
async def test_n18_a_handshake_that_breaks_or_stalls_is_tried_again(
    make_one: MakeOne, authority: trustme.CA, emulator: Emulator, fault: Behaviour, timeout_s: float
):
    relay = OverTls(tls(authority.issue_cert("127.0.0.1")), Relay(emulator.url))
    with FaultyServer(fault, then=relay) as server:
        config = make_one(server.tls_url, timeout_s=timeout_s)
        assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 2)
    assert server.connections == 2


@pytest.mark.parametrize(
    ("fault", "timeout_s", "code"),
    [(reset_in_handshake, 10, "network_error"), (never_answer, 0.3, "timeout")],
    ids=["reset", "stall"],
)
async def test_n18_a_handshake_that_never_ends_well_is_a_row(
    make_one: MakeOne, fault: Behaviour, timeout_s: float, code: str
):
    with FaultyServer(then=fault) as server:
        config = make_one(server.tls_url, timeout_s=timeout_s)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", code, 3)
    assert server.connections == 3


# --- a service in trouble


async def test_n19_a_408_is_asked_again(make_one: MakeOne, emulator: Emulator):
    emulator.script("408", "408", "ok")
    config = make_one(emulator.url)
    assert (await annotate(config)).is_all_ok
    assert outcome(only_row(config)) == ("ok", None, 3)


async def test_n20_a_third_of_all_calls_failing_changes_nothing_in_the_tables(
    make_one: MakeOne, make: MakeConfig, tmp_path: Path
):
    sections: dict[str, Any] = {"source": {"uri": str(SAMPLES), "limit": 4}, "retry": {"max_attempts": 30}}
    await annotate(make(output={"uri": str(tmp_path / "calm")}, **sections), run_id="r")
    with Emulator(EmulatorOptions(faults={"500": 1 / 3, "upload_500": 1 / 3}, seed=5)) as emulator:
        stormy = make(model={"base_url": emulator.url}, output={"uri": str(tmp_path / "stormy")}, **sections)
        assert (await annotate(stormy, run_id="r")).is_all_ok
        assert emulator.books.by_status[500] > 0
        assert len(emulator.books.answered()) == 8
        assert len(emulator.books.uploads) == 4
    assert digests(tmp_path / "stormy") == digests(tmp_path / "calm")


@pytest.mark.parametrize("fault", ["503", "502_html", "html_200", "reset"])
async def test_n21_an_outage_is_waited_out_with_a_few_probes_and_loses_no_row(make_many: MakeOne, fault: str):
    with Emulator(EmulatorOptions(latency_s=0.05)) as emulator:
        config = make_many(emulator.url)
        running = asyncio.create_task(annotate(config))
        await until(lambda: len(emulator.books.answered()) >= 4)
        emulator.always(fault)
        asked_before = len(emulator.books.questions)
        await asyncio.sleep(1)
        asked_meanwhile = len(emulator.books.questions) - asked_before
        emulator.always()
        summary = await running
    assert summary.is_all_ok
    assert {row["status"] for row in rows(config)} == {"ok"}
    # ten that find it out, and nine before them if an answer from before comes late; four in flight beside them; and
    # probes 0.1 s apart at the least
    assert asked_meanwhile <= 10 + 9 + 4 + 10


async def test_n21_an_outage_of_the_uploads_loses_no_row_either(make: MakeConfig):
    with Emulator(EmulatorOptions(latency_s=0.05)) as emulator:
        config = make(
            model={"base_url": emulator.url},
            limits={"concurrency": 4},
            retry={"max_attempts": 3, "max_wait_s": 0.2},
        )
        running = asyncio.create_task(annotate(config))
        await until(lambda: len(emulator.books.uploads) >= 2 and len(emulator.books.answered()) >= 1)
        emulator.always("503", "upload_503")
        await asyncio.sleep(1)
        emulator.always()
        summary = await running
    assert summary.is_all_ok


@pytest.mark.parametrize(
    "status",
    ["502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout", "520 Web Server Returned an Unknown Error"],
)
@pytest.mark.parametrize("transport", ["inline", "files"])
async def test_n22_a_page_of_a_load_balancer_is_asked_past(
    make_one: MakeOne, emulator: Emulator, status: str, transport: Literal["inline", "files"]
):
    page = Say(response(PAGE, status=status, content_type="text/html"))
    with FaultyServer(page, page, then=Relay(emulator.url)) as server:
        config = make_one(server.url, transport=transport)
        assert (await annotate(config)).is_all_ok
    assert server.connections == 3


@pytest.mark.parametrize("body", [PAGE, b"", b"\xff\xfe\x00", b"null", b'{"error": "no"}', b"[]"])
async def test_n22_whatever_a_load_balancer_says_its_status_is_in_the_row(make_one: MakeOne, body: bytes):
    with FaultyServer(then=Say(response(body, status="502 Bad Gateway"))) as server:
        config = make_one(server.url)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "server_error", 3)
    assert "502" in only_row(config)["error"]


# --- a proxy in the environment


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_n23_a_dead_proxy_is_a_row_that_says_so(make_one: MakeOne, monkeypatch: pytest.MonkeyPatch, scheme: str):
    proxy = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:hidden-word@{proxy}")
    monkeypatch.setenv("NO_PROXY", "")
    config = make_one(f"{scheme}://gemini.invalid")
    await annotate(config)
    row = only_row(config)
    assert outcome(row) == ("failed", "network_error", 3)
    assert "proxy" in row["error"].lower()
    assert proxy in row["error"]
    assert "hidden-word" not in row["error"]


async def test_n23_a_proxy_that_stalls_is_a_timeout(make_one: MakeOne, monkeypatch: pytest.MonkeyPatch):
    with FaultyServer(then=never_answer) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        config = make_one("https://gemini.invalid", timeout_s=0.3)
        await annotate(config)
    assert outcome(only_row(config)) == ("failed", "timeout", 3)
    assert proxy.connections == 3


async def test_n23_a_proxy_that_refuses_is_named(make_one: MakeOne, monkeypatch: pytest.MonkeyPatch):
    refusal = response(PAGE, status="407 Proxy Authentication Required", content_type="text/html")
    with FaultyServer(then=Say(refusal)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        config = make_one("https://gemini.invalid")
        assert re.search(r"(?i)proxy|407", await what_went_wrong(config))
    assert 1 <= proxy.connections <= 3


async def test_n23_a_proxy_that_works_is_used(make_one: MakeOne, monkeypatch: pytest.MonkeyPatch, emulator: Emulator):
    with FaultyServer(then=Relay(emulator.url)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert (await annotate(make_one("http://gemini.invalid"))).is_all_ok
    assert proxy.connections >= 1


async def test_n23_no_proxy_leaves_a_dead_proxy_out(
    make_one: MakeOne, monkeypatch: pytest.MonkeyPatch, emulator: Emulator
):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert (await annotate(make_one(emulator.url))).is_all_ok
