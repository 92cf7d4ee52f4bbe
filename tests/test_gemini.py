import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator

import httpx
import orjson
import pytest
import pytest_asyncio
from PIL import Image

from pixscribe.emulator import Emulator
from pixscribe.errors import (
    ApiError,
    AuthenticationError,
    Blocked,
    FileConflict,
    ModelUnknown,
    PermissionRefused,
    QuotaExhausted,
    RateLimited,
    RequestRefused,
    ServerUnavailable,
)
from pixscribe.gemini import (
    CHUNK_BYTES,
    GeminiClient,
    ImagePart,
    _error_from,
    _read_interaction,
    _Reply,
    _understood,
    interaction_body,
    open_transport,
    upload_file,
)


@pytest_asyncio.fixture
async def transport() -> AsyncIterator[httpx.AsyncBaseTransport]:
    async with open_transport("http://127.0.0.1", concurrency=8) as opened:
        yield opened


@pytest.fixture
def client(transport: httpx.AsyncBaseTransport, emulator: Emulator) -> GeminiClient:
    return GeminiClient(transport, base_url=emulator.url, api_key="k", timeout_s=5)


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(buffer, "PNG")
    return buffer.getvalue()


def body(*images: ImagePart, model: str = "gemini-3.5-flash") -> bytes:
    settings = {"thinking_level": "minimal", "max_output_tokens": 512, "seed": 7, "temperature": None}
    return interaction_body(
        model=model, text="Caption this image.", images=images, schema=None, generation_config=settings
    )


async def upload(client: GeminiClient, data: bytes, mime_type: str = "image/png") -> str:
    name = hashlib.sha256(data).hexdigest()[:40]
    file = await upload_file(client, data, name=name, mime_type=mime_type, display_name="a.png")
    return file.uri


def test_a_question_has_its_text_before_the_image_and_is_not_stored():
    sent = orjson.loads(body(ImagePart("image/png", data=b"\x89PNG", resolution="high")))
    assert sent["input"] == [
        {"type": "text", "text": "Caption this image."},
        {"type": "image", "mime_type": "image/png", "data": "iVBORw==", "resolution": "high"},
    ]
    assert sent["store"] is False
    assert sent["generation_config"] == {"thinking_level": "minimal", "max_output_tokens": 512, "seed": 7}


async def test_an_uploaded_image_can_be_asked_about(client: GeminiClient):
    uri = await upload(client, png())
    interaction = await client.create_interaction(body(ImagePart("image/png", uri=uri)))
    assert interaction.text
    assert not interaction.incomplete
    assert interaction.usage.input_tokens > 1000


async def test_several_images_fit_into_one_question(client: GeminiClient, emulator: Emulator):
    uri = await upload(client, png())
    await client.create_interaction(body(ImagePart("image/png", uri=uri), ImagePart("image/png", data=png("blue"))))
    [question] = emulator.books.questions
    assert len(question.images) == 2


async def test_the_same_content_is_found_under_its_name(client: GeminiClient, emulator: Emulator):
    first, second = await upload(client, png()), await upload(client, png())
    assert first == second
    assert len(emulator.books.uploads) == 1


async def test_the_service_hashes_what_it_got(client: GeminiClient):
    data = png()
    file = await upload_file(client, data, name="abc", mime_type="image/png", display_name="a.png")
    assert file.sha256 == hashlib.sha256(data).hexdigest()
    assert (file.name, file.size_bytes, file.state) == ("abc", len(data), "ACTIVE")


async def test_a_large_file_goes_in_chunks(client: GeminiClient):
    data = png() + bytes(2 * CHUNK_BYTES)
    file = await upload_file(client, data, name="large", mime_type="image/png", display_name="a.png")
    assert file.sha256 == hashlib.sha256(data).hexdigest()


async def test_a_taken_name_is_told_apart(client: GeminiClient):
    await upload_file(client, png(), name="taken", mime_type="image/png", display_name="a")
    url = await client.start_upload(name="taken", size_bytes=1, mime_type="image/png", display_name=None)
    with pytest.raises(FileConflict):
        await client.send_bytes(url, b"x", offset=0, last=True)


async def test_files_are_listed_over_pages_and_deleted(client: GeminiClient):
    names = {f"file-{index:03d}" for index in range(105)}
    for name in names:
        await upload_file(client, png(), name=name, mime_type="image/png", display_name=name)
    assert {file.name async for file in client.list_files()} == names
    await client.delete_file("file-000")
    with pytest.raises(PermissionRefused):
        await client.get_file("file-000")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("429", RateLimited),
        ("429_interactions", RateLimited),
        ("429_list", RateLimited),
        ("429_daily", QuotaExhausted),
        ("500", ServerUnavailable),
        ("502_html", ServerUnavailable),
        ("503", ServerUnavailable),
        ("408", ServerUnavailable),
        ("reset", ServerUnavailable),
        ("cut", ServerUnavailable),
        ("html_200", ServerUnavailable),
        ("not_json_200", ServerUnavailable),
        ("blocked", Blocked),
        ("failed_200", ApiError),
        ("bad_key", AuthenticationError),
        ("file_gone_403", PermissionRefused),
        ("invalid_image_400", RequestRefused),
    ],
)
async def test_each_fault_becomes_the_error_that_says_what_to_do(
    client: GeminiClient, emulator: Emulator, fault: str, error: type[Exception]
):
    emulator.script(fault)
    with pytest.raises(error):
        await client.create_interaction(body(ImagePart("image/png", data=png())))


async def test_a_server_that_never_answers_is_a_timeout(transport: httpx.AsyncBaseTransport, emulator: Emulator):
    emulator.script("timeout")
    client = GeminiClient(transport, base_url=emulator.url, api_key="k", timeout_s=0.3)
    with pytest.raises(ServerUnavailable, match=r"no complete answer within 0\.3 s") as caught:
        await client.create_interaction(body(ImagePart("image/png", data=png())))
    assert caught.value.code == "timeout"


async def test_an_unknown_model_is_an_error_of_the_config(client: GeminiClient):
    with pytest.raises(ModelUnknown, match=r"model\.name"):
        await client.create_interaction(body(ImagePart("image/png", data=png()), model="claude"))


async def test_a_refused_key_is_not_repeated_in_the_error(transport: httpx.AsyncBaseTransport, emulator: Emulator):
    client = GeminiClient(transport, base_url=emulator.url, api_key="bad-key-123", timeout_s=5)
    with pytest.raises(AuthenticationError) as caught:
        await client.create_interaction(body(ImagePart("image/png", data=png())))
    assert "bad-key-123" not in repr(caught.value)


async def test_a_closed_port_is_a_network_error(transport: httpx.AsyncBaseTransport):
    client = GeminiClient(transport, base_url="http://127.0.0.1:9", api_key="k", timeout_s=5)
    with pytest.raises(ServerUnavailable) as caught:
        await client.get_file("x")
    assert caught.value.code == "network_error"


async def test_an_answer_that_drips_ends_at_the_deadline(transport: httpx.AsyncBaseTransport):
    async def drip_bytes(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.02)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        dripping = asyncio.ensure_future(drip_bytes(writer))
        while await reader.read(4096):
            pass  # the client's request, and then its leaving
        dripping.cancel()
        writer.close()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = GeminiClient(transport, base_url=f"http://127.0.0.1:{port}", api_key="k", timeout_s=0.3)
    with pytest.raises(ServerUnavailable, match="no complete answer"):
        await client.get_file("x")
    server.close()


@pytest.mark.parametrize(
    ("headers", "error", "seconds"),
    [
        pytest.param({"retry-after": "7"}, {}, 7.0, id="header"),
        pytest.param({"retry-after": "-5"}, {}, 0.0, id="negative"),
        pytest.param({"retry-after-ms": "1500"}, {}, 1.5, id="milliseconds"),
        pytest.param({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}, 0.0, id="a-past-date"),
        pytest.param(
            {},
            {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "45.123s"}]},
            45.123,
            id="info",
        ),
        pytest.param({}, {"message": "Please retry in 46.7s."}, 46.7, id="words"),
        pytest.param({}, {"message": "Please retry in 9h54m3s."}, 35643.0, id="hours-in-words"),
        pytest.param({}, {"message": "no idea"}, None, id="nothing"),
    ],
)
def test_the_wait_is_found_wherever_it_is_said(
    headers: dict[str, str], error: dict[str, object], seconds: float | None
):
    reply = _Reply(429, httpx.Headers(headers), orjson.dumps({"error": error}))
    found = _error_from(reply)
    assert isinstance(found, RateLimited)
    assert found.retry_after_s == seconds


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        pytest.param(429, {"code": "quota_exceeded", "message": "m"}, QuotaExhausted, id="daily-by-code"),
        pytest.param(401, {"code": "authentication", "message": "m"}, AuthenticationError, id="401"),
        pytest.param(402, {"code": "payment_required", "message": "m"}, AuthenticationError, id="402"),
        pytest.param(403, {"code": 403, "status": "PERMISSION_DENIED", "message": "m"}, PermissionRefused, id="403"),
        pytest.param(400, {"code": "image_safety", "message": "m"}, Blocked, id="blocked"),
        pytest.param(400, {"code": 400, "status": "INVALID_ARGUMENT", "message": "m"}, RequestRefused, id="400"),
        pytest.param(504, {"code": "deadline_exceeded", "message": "m"}, ServerUnavailable, id="504"),
    ],
)
def test_both_forms_of_an_error_are_understood(status: int, error: dict[str, object], expected: type[Exception]):
    assert type(_error_from(_Reply(status, httpx.Headers(), orjson.dumps({"error": error})))) is expected


@pytest.mark.parametrize(
    "body",
    [
        {"steps": 5},
        {"steps": [{"type": "model_output", "content": 5}]},
        {"usage": [1]},
        {"errors": 3, "status": "failed"},
    ],
)
def test_an_answer_of_a_form_that_nobody_foresaw_costs_one_attempt(body: dict[str, object]):
    with pytest.raises(ServerUnavailable, match="in a form that is not known"):
        _understood(_read_interaction, body)


@pytest.mark.parametrize(
    "error",
    [
        {"details": 5},
        {"details": [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": ["x"]}]},
        {"message": "Please retry in 1.2.3s."},
    ],
)
def test_a_429_of_a_form_that_nobody_foresaw_is_asked_again(error: dict[str, object]):
    found = _error_from(_Reply(429, httpx.Headers(), orjson.dumps({"error": error})))
    assert isinstance(found, RateLimited | ServerUnavailable)


def test_a_redirect_is_not_followed_and_its_host_is_named():
    reply = _Reply(302, httpx.Headers({"location": "http://169.254.169.254/latest"}), b"")
    error = _error_from(reply)
    assert isinstance(error, RequestRefused)
    assert "169.254.169.254" in str(error)


def test_the_text_is_the_trailing_run_of_text_blocks_and_thoughts_are_skipped():
    text = {"type": "text", "text": "a"}
    steps = [
        {"type": "model_output", "content": [{"type": "text", "text": "early"}]},
        {"type": "user_input", "content": [{"type": "text", "text": "question"}]},
        {"type": "thought", "signature": "x"},
        {"type": "model_output", "content": [text, {"type": "image", "data": ""}]},
        {"type": "thought", "signature": "y"},
        {"type": "model_output", "content": [{"type": "text", "text": "b"}]},
    ]
    assert _read_interaction({"status": "completed", "steps": steps}).text == "ab"


def test_an_incomplete_answer_keeps_its_text_and_its_bill():
    steps = [{"type": "model_output", "content": [{"type": "text", "text": '{"boxes": ['}]}]
    usage = {"total_input_tokens": 1100, "total_output_tokens": 7, "total_thought_tokens": 20}
    interaction = _read_interaction({"status": "incomplete", "steps": steps, "usage": usage})
    assert (interaction.incomplete, interaction.text) == (True, '{"boxes": [')
    assert interaction.usage.thought_tokens == 20


def test_the_hash_is_base64_of_the_hex_digest():
    digest = hashlib.sha256(b"x").hexdigest()
    from pixscribe.gemini import _hex_digest

    assert _hex_digest(base64.b64encode(digest.encode()).decode()) == digest
    assert _hex_digest(base64.b64encode(bytes.fromhex(digest)).decode()) == digest
