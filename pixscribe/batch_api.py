"""The Batch API over HTTP, in the manner of `gemini.py`: one function is one attempt.

A job's requests are lines of a file, generateContent bodies with a key each; what comes back is a file of lines again,
in any order, to be matched by key. Source: Gemini API docs, "Batch API" and "Generating content", read 2026-11.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from pixscribe.errors import (
    AnswerError,
    ApiError,
    Blocked,
    NotReady,
    PermissionRefused,
    RateLimited,
    RequestRefused,
    ServerUnavailable,
)
from pixscribe.gemini import GeminiClient, ImagePart, Interaction
from pixscribe.types import Usage

INPUT_TYPE = "application/jsonl"
ENDED = frozenset(("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"))
BLOCKED_FINISHES = frozenset(
    (
        *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
        *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "IMAGE_OTHER"),
    )
)
PASSING_CODES = frozenset((1, 2, 4, 10, 13, 14, 15, 408, 409, 499, 500, 502, 503, 504))
"""Of a line's error: gRPC's numbers, and HTTP's, in case that they stand there."""
THINKING_BUDGETS: Mapping[str, int] = {"minimal": 0, "low": 1024, "medium": 8192, "high": 24_576}
"""In tokens, for Gemini 2.5, of which generateContent takes no level. 2.5 Pro has to think a little."""
LEAST_BUDGET_OF_PRO = 128


@dataclass(frozen=True, slots=True)
class Batch:
    """A job as the service describes it. `state` is one of `ENDED`, or PENDING or RUNNING.

    `answered` counts requests; `output` is the name of a file, set when there is one.
    """

    name: str
    display_name: str
    state: str
    answered: int = 0
    output: str | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """What a job's output says of one request: an answer, an error, or, when the answer is blocked, both."""

    key: str
    interaction: Interaction | None = None
    error: ApiError | None = None


class BatchClient:
    """The calls that jobs need. They raise as `GeminiClient.call` does."""

    def __init__(self, client: GeminiClient) -> None:
        self._client = client

    async def create(self, model: str, display_name: str, input_name: str) -> Batch:
        """Begin a job about the requests in `files/<input_name>`. Who repeats it has two jobs."""
        batch = {"displayName": display_name, "inputConfig": {"fileName": f"files/{input_name}"}}
        path = f"models/{model}:batchGenerateContent"
        return await self._client.call("POST", path, _read_batch, orjson.dumps({"batch": batch}))

    async def get(self, name: str) -> Batch:
        """The job `batches/<id>`."""
        return await self._client.call("GET", name, _read_batch)

    async def find(self, display_name: str) -> Batch | None:
        """The newest job of that name."""
        token = ""
        while True:
            path = "batches?pageSize=100" + (f"&pageToken={token}" if token else "")
            batches, token = await self._client.call("GET", path, _read_page)
            for batch in batches:
                if batch.display_name == display_name:
                    return batch
            if not token:
                return None

    async def download(self, output: str, file: BinaryIO) -> None:
        """Append a job's output to `file`."""
        await self._client.download(output, file)


def request_line(key: str, body: Mapping[str, Any]) -> bytes:
    """One line of a job's input."""
    return orjson.dumps({"key": key, "request": body}, option=orjson.OPT_APPEND_NEWLINE)


def generate_body(
    *, model: str, text: str, image: ImagePart, schema: Mapping[str, Any], generation_config: Mapping[str, Any]
) -> dict[str, Any]:
    """What `interaction_body` asks, in the words of generateContent. The image is a file of the Files API."""
    part: dict[str, Any] = {"fileData": {"mimeType": image.mime_type, "fileUri": image.uri}}
    if image.resolution is not None:
        part["mediaResolution"] = {"level": f"MEDIA_RESOLUTION_{image.resolution.upper()}"}
    settings = {
        "responseMimeType": "application/json",
        # batches have been seen to answer a responseJsonSchema with its bare form
        "responseSchema": _openapi(schema),
        "thinkingConfig": _thinking(model, generation_config.get("thinking_level")),
        "maxOutputTokens": generation_config.get("max_output_tokens"),
        "seed": generation_config.get("seed"),
        "temperature": generation_config.get("temperature"),
    }
    return {
        "contents": [{"role": "user", "parts": [{"text": text}, part]}],
        "generationConfig": {name: value for name, value in settings.items() if value is not None},
    }


def read_line(line: bytes) -> Line | None:
    """None for what belongs to no request. Raises nothing: one odd line must not cost the others."""
    try:
        value = orjson.loads(line)
        key = value["key"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return None
    if not isinstance(key, str):
        return None
    try:
        return _read_answer(key, value)
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        return Line(key, error=ServerUnavailable(f"the service answered in a form that is not known: {error}"))


def bad_lines(message: str) -> dict[int, str]:
    """What a refusal of a job says of single lines of its input, by their number from 1."""
    return {int(number): said for number, said in re.findall(r"Error on line (\d{1,9}): (.*)", message)}


def _openapi(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same in OpenAPI's words. Without its own key, the order of properties would be that of the alphabet."""
    changed = dict(schema)
    if "type" in schema:
        changed["type"] = str(schema["type"]).upper()
    if "items" in schema:
        changed["items"] = _openapi(schema["items"])
    if "properties" in schema:
        changed["properties"] = {name: _openapi(child) for name, child in schema["properties"].items()}
        changed["propertyOrdering"] = list(schema["properties"])
    return changed


def _thinking(model: str, level: str | None) -> dict[str, Any] | None:
    if level is None:
        return None
    if not model.startswith("gemini-2"):
        return {"thinkingLevel": level.upper()}
    return {"thinkingBudget": max(THINKING_BUDGETS[level], LEAST_BUDGET_OF_PRO if "pro" in model else 0)}


def _read_page(value: Mapping[str, Any]) -> tuple[list[Batch], str]:
    return [_read_batch(each) for each in value.get("operations") or ()], str(value.get("nextPageToken") or "")


def _read_batch(value: Mapping[str, Any]) -> Batch:
    metadata = value.get("metadata") or {}
    outputs = (value.get("response") or {}, metadata.get("output") or {})
    output = next((str(each["responsesFile"]) for each in outputs if each.get("responsesFile")), None)
    error = value.get("error") or {}
    return Batch(
        name=_checked_name(str(value["name"])),
        display_name=str(metadata.get("displayName", "")),
        state=_state(str(metadata.get("state", "")), is_done=bool(value.get("done")), is_bad=bool(error)),
        answered=_count((metadata.get("batchStats") or {}).get("successfulRequestCount")),
        output=output and _checked_name(output).removeprefix("files/"),
        error=str(error.get("message", ""))[:500],
    )


def _checked_name(name: str) -> str:
    """It becomes part of a URL."""
    if not re.fullmatch(r"(batches|files)/[A-Za-z0-9._-]{1,200}", name):
        raise ValueError(f"{name[:80]!r} is no name of a job or file")
    return name


def _state(state: str, *, is_done: bool, is_bad: bool) -> str:
    """The documentation's examples have another prefix than the wire."""
    state = state.removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_")
    return ("FAILED" if is_bad else "SUCCEEDED") if is_done and state not in ENDED else state


def _read_answer(key: str, value: Mapping[str, Any]) -> Line:
    if error := value.get("error"):
        return Line(key, error=_line_error(error))
    if not (response := value.get("response")):
        return Line(key, error=ServerUnavailable("the job's output has neither an answer nor an error"))
    usage = response.get("usageMetadata") or {}
    candidate: Mapping[str, Any] = next(iter(response.get("candidates") or ()), {})
    finish = str(candidate.get("finishReason") or "")
    interaction = Interaction(
        text=_text_of(candidate),
        incomplete=finish == "MAX_TOKENS",
        model=str(response.get("modelVersion", "")),
        usage=Usage(*(_count(usage.get(f"{kind}TokenCount")) for kind in ("prompt", "candidates", "thoughts"))),
    )
    return Line(key, interaction, _finish_error(response, candidate, finish))


def _text_of(candidate: Mapping[str, Any]) -> str:
    parts = (candidate.get("content") or {}).get("parts") or ()
    return "".join(str(part.get("text") or "") for part in parts if not part.get("thought"))


def _finish_error(response: Mapping[str, Any], candidate: Mapping[str, Any], finish: str) -> ApiError | None:
    reason = (response.get("promptFeedback") or {}).get("blockReason")
    if reason or finish in BLOCKED_FINISHES:
        message = str(candidate.get("finishMessage") or "")[:500]
        return Blocked(f"{str(reason or finish).lower()}: {message}".rstrip(": "), status=200)
    if finish in ("STOP", "MAX_TOKENS"):
        return None
    return AnswerError(f"the answer ended as {finish or 'nothing'}", status=200)


def _line_error(error: Mapping[str, Any]) -> ApiError:
    code = _count(error.get("code"))
    said = f"{code}: {str(error.get('message', ''))[:500]}"
    if code in PASSING_CODES:
        return ServerUnavailable(said, status=200)
    if code in (8, 429):
        return RateLimited(said, status=200)
    if code in (7, 403):
        return PermissionRefused(said, status=200)
    return NotReady(said, status=200) if code == 9 else RequestRefused(said, status=200)


def _count(value: Any) -> int:
    """Counts are strings in one place and numbers in another, and a 0 is left out."""
    try:
        return min(max(int(value or 0), 0), 2**53)
    except (TypeError, ValueError, OverflowError):
        return 0
