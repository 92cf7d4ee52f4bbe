"""The words of the Batch API: what is sent, what comes back, and what is made of words that nobody foresaw."""

import json
from collections import Counter
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pixscribe.run
from pixscribe.batch_api import Line, bad_lines, generate_body, read_line
from pixscribe.emulator import Emulator
from pixscribe.errors import (
    AnswerError,
    Blocked,
    ImageError,
    PermissionRefused,
    RateLimited,
    RequestRefused,
    ServerUnavailable,
)
from pixscribe.gemini import ImagePart, open_transport
from pixscribe.prompts import make_question
from pixscribe.types import Usage
from tests.conftest import MakeConfig, annotate


def body_of(model: str = "gemini-3.5-flash", level: str | None = "minimal", resolution: str | None = None) -> Any:
    question = make_question("objects", "detect", None, ())
    image = ImagePart("image/png", uri="https://host/v1beta/files/a", resolution=resolution)
    settings = {"thinking_level": level, "max_output_tokens": 100, "seed": 7, "temperature": None}
    return generate_body(
        model=model, text=question.text, image=image, schema=question.schema, generation_config=settings
    )


def read(**line: Any) -> Line:
    found = read_line(json.dumps({"key": "k", **line}).encode())
    assert found is not None
    return found


def answer(finish: str | None, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"candidates": [{"finishReason": finish, "content": {"parts": list(parts)}}]}


def test_a_question_is_the_same_in_the_words_of_generate_content():
    body = body_of(resolution="high")
    text, image = body["contents"][0]["parts"]
    assert text == {"text": "Detect every prominent object in the image."}
    assert image["fileData"] == {"mimeType": "image/png", "fileUri": "https://host/v1beta/files/a"}
    assert image["mediaResolution"] == {"level": "MEDIA_RESOLUTION_HIGH"}
    config = body["generationConfig"]
    assert (config["maxOutputTokens"], config["seed"], "temperature" in config) == (100, 7, False)
    assert config["responseSchema"]["type"] == "OBJECT"
    boxes = config["responseSchema"]["properties"]["boxes"]["items"]
    assert boxes["propertyOrdering"] == ["box_2d", "label"]  # else by the alphabet
    assert boxes["properties"]["box_2d"]["items"] == {"type": "INTEGER"}


@pytest.mark.parametrize(
    ("model", "level", "thinking"),
    [
        ("gemini-3.5-flash", "minimal", {"thinkingLevel": "MINIMAL"}),
        ("gemini-2.5-flash", "minimal", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "minimal", {"thinkingBudget": 128}),
        ("gemini-2.5-flash", "low", {"thinkingBudget": 1024}),
        ("gemini-3.5-flash", None, None),
    ],
)
def test_how_much_a_model_thinks_is_said_in_its_own_words(model: str, level: str | None, thinking: Any):
    assert body_of(model, level)["generationConfig"].get("thinkingConfig") == thinking


def test_an_answer_is_its_text_without_the_thoughts():
    usage = {"promptTokenCount": 1100, "candidatesTokenCount": "7", "thoughtsTokenCount": 20}
    said = answer("STOP", {"text": "hm", "thought": True}, {"text": "a"}, {"thoughtSignature": "s"}, {"text": "b"})
    line = read(response={**said, "usageMetadata": usage, "modelVersion": "m"})
    assert line.interaction is not None
    assert (line.interaction.text, line.interaction.incomplete, line.error) == ("ab", False, None)
    assert line.interaction.usage == Usage(1100, 7, 20)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (answer("SAFETY"), Blocked),
        (answer("RECITATION", {"text": "part"}), Blocked),
        ({"promptFeedback": {"blockReason": "OTHER"}}, Blocked),
        (answer("MALFORMED_RESPONSE"), AnswerError),
        (answer(None), AnswerError),
        ({"usageMetadata": {}}, AnswerError),
    ],
)
def test_an_answer_that_is_none_is_billed_and_an_error(response: dict[str, Any], error: type[ImageError]):
    line = read(response=response)
    assert line.interaction is not None
    assert type(line.error) is error


@pytest.mark.parametrize(
    ("code", "error"),
    [
        *((3, RequestRefused), (7, PermissionRefused), (8, RateLimited), (13, ServerUnavailable)),
        *((400, RequestRefused), (429, RateLimited), (503, ServerUnavailable), ("14", ServerUnavailable)),
    ],
)
def test_the_number_of_an_error_says_whether_to_ask_again(code: Any, error: type[ImageError]):
    line = read(error={"code": code, "message": "why"})
    assert (type(line.error), str(line.error)) == (error, f"{code}: why")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["candidates", "content", "parts", "text", "usageMetadata", "finishReason", "code"]), inner
        )
    ),
    max_leaves=8,
)


@given(json_values, json_values)
def test_no_line_of_an_output_raises_anything(response: Any, error: Any):
    line = read_line(json.dumps({"key": "k", "response": response, "error": error}).encode())
    assert line is not None
    assert line.interaction is not None or line.error is not None


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"7", b'{"key": 7}', b'{"response": {}}', b"\xff"])
def test_a_line_of_no_request_is_passed_over(line: bytes):
    assert read_line(line) is None


class Refusing(httpx.AsyncBaseTransport):
    """Refuses the first job for two of its lines, as the service words it, and passes on everything else."""

    def __init__(self, inner: httpx.AsyncBaseTransport, message: str) -> None:
        self._inner, self._messages = inner, [message]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(":batchGenerateContent") and self._messages:
            error = {"code": 400, "message": self._messages.pop(), "status": "INVALID_ARGUMENT"}
            return httpx.Response(400, stream=httpx.ByteStream(json.dumps({"error": error}).encode()))
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.mark.parametrize(
    ("message", "rows"),
    [
        ("Error on line 2: no such field\nError on line 5: neither", 2),
        ("Error on line 900: of whatever", 25),  # none of ours, so all of them are meant
    ],
)
async def test_lines_that_refuse_a_job_are_rows_and_the_others_are_asked_again(
    make: MakeConfig, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, message: str, rows: int
):
    def refusing(base_url: str, *, concurrency: int) -> httpx.AsyncBaseTransport:
        return Refusing(open_transport(base_url, concurrency=concurrency), message)

    monkeypatch.setattr(pixscribe.run, "open_transport", refusing)
    config = make(
        model={"mode": "batch"},
        prompts=[{"name": "objects", "kind": "detect"}],
        batch={"gather_s": 0.2, "poll_s": 0.02},
        execution={"shard_size": 8},  # so few that no shard is taken for hopeless
    )
    summary = await annotate(config, run_id="r")
    # of 26 images two have one content, which is asked about once
    assert 0 <= summary.totals.errors["request_refused"] - rows <= 1
    answered = Counter(question.images[0] for question in emulator.books.answered_in_batches())
    assert sorted(answered.values()) == [1] * (25 - rows)


def test_only_lines_that_are_named_are_bad():
    assert bad_lines("Error on line 3: why not\nError on line 11: Error: x") == {3: "why not", 11: "Error: x"}
    assert bad_lines("Unsupported MIME type") == {}
