import base64
import hashlib
import io
import json
import math
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import httpx
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from pixscribe.emulator import FAULTS, Emulator, EmulatorOptions
from pixscribe.emulator.faults import class_of
from pixscribe.emulator.vision import BACKGROUND, PALETTE, look
from pixscribe.errors import ConfigError
from tests.conftest import BOXES

MODEL = "gemini-3.5-flash"
MIB = 1024 * 1024
MASKS = json.loads(json.dumps(BOXES))
MASKS["properties"]["boxes"]["items"]["properties"]["mask"] = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "integer"}},
}


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Api:
    """The requests of this file, in one line each."""

    http: httpx.Client
    url: str

    def start(self, declared_bytes: int, mime_type: str = "image/png", **file: Any) -> httpx.Response:
        headers = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(declared_bytes),
            "X-Goog-Upload-Header-Content-Type": mime_type,
        }
        return self.http.post(f"{self.url}/upload/v1beta/files", headers=headers, json={"file": file})

    def send(self, upload_url: str, command: str, data: bytes = b"", offset: int = 0) -> httpx.Response:
        headers = {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}
        return request("POST", upload_url, headers=headers, content=data)

    def upload(self, data: bytes, mime_type: str = "image/png", **file: Any) -> httpx.Response:
        started = self.start(len(data), mime_type, **file)
        assert started.status_code == 200, started.text
        return self.send(started.headers["X-Goog-Upload-URL"], "upload, finalize", data)

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self.http.get(f"{self.url}/v1beta/{path}", params=query)

    def delete(self, path: str) -> httpx.Response:
        return self.http.delete(f"{self.url}/v1beta/{path}")

    def ask(self, *images: Mapping[str, Any], text: str = "Detect all objects.", **fields: Any) -> httpx.Response:
        content = [{"type": "text", "text": text}, *images]
        body = {"model": MODEL, "input": content, "generation_config": {"thinking_level": "minimal"}}
        return self.http.post(f"{self.url}/v1beta/interactions", json={**body, **fields})

    def boxes(self, *images: Mapping[str, Any], schema: Any = BOXES, **fields: Any) -> list[dict[str, Any]]:
        answer = self.ask(*images, response_format=json_format(schema), **fields)
        assert answer.status_code == 200, answer.text
        boxes: list[dict[str, Any]] = json.loads(text_of(answer))["boxes"]
        return boxes


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def emulator(clock: Clock) -> Iterator[Emulator]:
    with Emulator(clock=clock) as running:
        yield running


@pytest.fixture
def api(emulator: Emulator) -> Iterator[Api]:
    with connect() as http:
        yield Api(http, emulator.url)


def connect(key: str = "k") -> httpx.Client:
    client = keyless()
    client.headers["x-goog-api-key"] = key
    return client


def request(method: str, url: str, **options: Any) -> httpx.Response:
    with keyless() as http:
        return http.request(method, url, **options)


def keyless() -> httpx.Client:
    return httpx.Client(timeout=10, verify=False)  # there is no TLS here, and loading certificates takes 30 ms


def json_format(schema: Any) -> dict[str, Any]:
    return {"type": "text", "mime_type": "application/json", "schema": schema}


def inline(data: bytes, mime_type: str = "image/png", **fields: Any) -> dict[str, Any]:
    return {"type": "image", "data": base64.b64encode(data).decode(), "mime_type": mime_type, **fields}


def stored(answer: httpx.Response, mime_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image", "uri": answer.json()["file"]["uri"], "mime_type": mime_type}


def text_of(answer: httpx.Response) -> str:
    """As Google's SDK reads it: the text of the model_output steps."""
    steps = [step for step in answer.json().get("steps", []) if step["type"] == "model_output"]
    return "".join(content["text"] for step in steps for content in step["content"])


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    if format == "HEIC":
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, format, **options)
    return buffer.getvalue()


def blank(width: int = 100, height: int = 80) -> Image.Image:
    return Image.new("RGB", (width, height), BACKGROUND)


def with_square(left: int, top: int, right: int, bottom: int, colour: str = "red") -> Image.Image:
    """100 x 80 px; the square covers the pixel columns left ... right - 1."""
    image = blank()
    image.paste(PALETTE[colour], (left, top, right, bottom))
    return image


SQUARE = encode(with_square(10, 20, 50, 60))


# --- keys and paths


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        pytest.param({}, 403, "PERMISSION_DENIED", id="no-key"),
        pytest.param({"x-goog-api-key": "invalid"}, 400, "INVALID_ARGUMENT", id="invalid-key"),
        pytest.param({"x-goog-api-key": "bad-1"}, 400, "INVALID_ARGUMENT", id="bad-key"),
        pytest.param({"Authorization": "Bearer k"}, 401, "UNAUTHENTICATED", id="key-as-bearer"),
        pytest.param({"Authorization": "Bearer k", "x-goog-api-key": "k"}, 401, "UNAUTHENTICATED", id="both"),
    ],
)
def test_a_request_without_a_good_key_is_refused(emulator: Emulator, headers: dict[str, str], status: int, reason: str):
    for path in ("interactions", "files", "models/gemini-3.5-flash"):
        method = "POST" if path == "interactions" else "GET"
        answer = request(method, f"{emulator.url}/v1beta/{path}", headers=headers, json={})
        assert (answer.status_code, answer.json()["error"]["status"]) == (status, reason)


def test_a_bad_key_is_named_api_key_invalid(emulator: Emulator):
    error = request("GET", f"{emulator.url}/v1beta/files", headers={"x-goog-api-key": "invalid"}).json()["error"]
    assert error["code"] == 400
    assert error["details"][0]["reason"] == "API_KEY_INVALID"


def test_a_key_in_the_query_is_as_good_as_a_header(emulator: Emulator):
    assert request("GET", f"{emulator.url}/v1beta/files?key=k").status_code == 200


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/v2/files"), ("PUT", "/v1beta/files")])
def test_an_unknown_path_is_a_page_of_html(emulator: Emulator, method: str, path: str):
    answer = request(method, emulator.url + path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith("text/html")


# --- models


@pytest.mark.parametrize("version", ["v1beta", "v1"])
def test_a_model_is_described(api: Api, emulator: Emulator, version: str):
    assert api.http.get(f"{api.url}/{version}/models/gemini-3.5-flash").json() == {
        "name": "models/gemini-3.5-flash",
        "version": "3.5",
        "displayName": "Gemini 3.5 Flash",
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens", "batchGenerateContent"],
    }
    assert emulator.books.by_endpoint == {"models.get": 1}


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gpt-5", "Gemini-3.5-flash"])
def test_a_model_that_answers_no_question_is_not_found(api: Api, model: str):
    answer = api.get(f"models/{model}")
    message = f"models/{model} is not found for API version v1beta, or is not supported for generateContent."
    assert answer.status_code == 404
    assert answer.json() == {"error": {"code": 404, "message": message, "status": "NOT_FOUND"}}


def test_the_latest_of_a_model_is_only_in_v1beta(api: Api):
    statuses = [api.http.get(f"{api.url}/{v}/models/gemini-flash-latest").status_code for v in ("v1beta", "v1")]
    assert statuses == [200, 404]


# --- uploads


def test_an_upload_answers_the_file_as_gemini_does(api: Api, emulator: Emulator):
    file = api.upload(SQUARE, display_name="dataset/1.png").json()["file"]
    assert file["name"].startswith("files/")
    assert len(file["name"]) == len("files/") + 12
    assert file["sizeBytes"] == str(len(SQUARE))
    assert base64.b64decode(file["sha256Hash"]).decode() == hashlib.sha256(SQUARE).hexdigest()
    assert file["uri"] == f"{emulator.url}/v1beta/{file['name']}"
    assert (file["state"], file["source"], file["displayName"]) == ("ACTIVE", "UPLOADED", "dataset/1.png")
    assert api.get(file["name"]).json() == file


def test_the_upload_url_is_under_the_host_that_the_caller_used(api: Api, emulator: Emulator):
    port = emulator.url.rpartition(":")[2]
    api.http.headers["Host"] = f"localhost:{port}"
    url = api.start(1).headers["X-Goog-Upload-URL"]
    assert url.startswith(f"http://localhost:{port}/upload/v1beta/files?upload_id=")
    assert (
        api.send(url, "upload, finalize", b"x")
        .json()["file"]["uri"]
        .startswith(f"http://localhost:{port}/v1beta/files/")
    )


def test_20_mib_arrive_in_chunks_of_8_mib(api: Api, emulator: Emulator):
    data = bytes(range(256)) * (20 * MIB // 256)
    url = api.start(len(data)).headers["X-Goog-Upload-URL"]
    for offset in (0, 8 * MIB):
        answer = api.send(url, "upload", data[offset : offset + 8 * MIB], offset)
        assert (answer.status_code, answer.headers["X-Goog-Upload-Status"]) == (200, "active")
    query = api.send(url, "query")
    assert (query.headers["X-Goog-Upload-Status"], query.headers["X-Goog-Upload-Size-Received"]) == (
        "active",
        "16777216",
    )
    final = api.send(url, "upload, finalize", data[16 * MIB :], 16 * MIB)
    assert final.headers["X-Goog-Upload-Status"] == "final"
    assert emulator.books.uploads[0].sha256 == hashlib.sha256(data).hexdigest()
    assert api.send(url, "query").headers["X-Goog-Upload-Status"] == "final"


@pytest.mark.parametrize(
    ("command", "size_bytes", "offset"),
    [
        pytest.param("upload", 1000, 0, id="not-a-multiple-of-8-mib"),
        pytest.param("upload", 0, 0, id="nothing"),
        pytest.param("upload, finalize", 3000, 5, id="wrong-offset"),
        pytest.param("upload, finalize", 2999, 0, id="less-than-declared"),
        pytest.param("upload, finalize", 3001, 0, id="more-than-declared"),
        pytest.param("start", 3000, 0, id="start-again"),
        pytest.param("", 3000, 0, id="no-command"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(api: Api, emulator: Emulator, command: str, size_bytes: int, offset: int):
    url = api.start(3000).headers["X-Goog-Upload-URL"]
    answer = api.send(url, command, bytes(size_bytes), offset)
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert emulator.books.uploads == []


def test_after_a_wrong_offset_the_upload_goes_on_where_query_says(api: Api):
    url = api.start(3000).headers["X-Goog-Upload-URL"]
    assert api.send(url, "upload, finalize", bytes(3000), offset=1).status_code == 400
    assert api.send(url, "query").headers["X-Goog-Upload-Size-Received"] == "0"
    assert api.send(url, "upload, finalize", bytes(3000)).status_code == 200


def test_a_finished_or_cancelled_upload_takes_no_more(api: Api):
    finished = api.start(1).headers["X-Goog-Upload-URL"]
    api.send(finished, "upload, finalize", b"x")
    assert api.send(finished, "upload, finalize", b"x").status_code == 400
    cancelled = api.start(1).headers["X-Goog-Upload-URL"]
    assert api.send(cancelled, "cancel").status_code == 200
    assert api.send(cancelled, "upload, finalize", b"x").status_code == 404


@pytest.mark.parametrize(
    "file",
    [
        pytest.param({"name": "files/Upper"}, id="upper-case"),
        pytest.param({"name": "files/-a"}, id="dash-first"),
        pytest.param({"name": "files/a-"}, id="dash-last"),
        pytest.param({"name": "files/" + "a" * 41}, id="41-characters"),
        pytest.param({"name": "abc"}, id="no-prefix"),
        pytest.param({"name": "files/a/b"}, id="slash"),
        pytest.param({"display_name": "x" * 513}, id="long-display-name"),
        pytest.param({"size_bytes": 9}, id="two-sizes"),
        pytest.param({"surprise": 1}, id="unknown-field"),
    ],
)
def test_a_start_is_checked(api: Api, file: dict[str, Any]):
    answer = api.start(10, **file)
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


def test_the_longest_name_is_taken_in_either_spelling_of_its_fields(api: Api):
    file = api.upload(SQUARE, name="files/" + "a" * 40, displayName="x" * 512).json()["file"]
    assert (file["name"], len(file["displayName"])) == ("files/" + "a" * 40, 512)


def test_a_name_conflict_shows_at_finalize_without_a_status(api: Api):
    api.upload(SQUARE, name="files/same")
    assert api.start(len(SQUARE), name="files/same").status_code == 200
    answer = api.upload(SQUARE, name="files/same")
    assert answer.status_code == 409
    assert answer.headers["X-Goog-Upload-Status"] == "final"
    assert answer.json() == {"error": {"message": "files/same already exists.", "code": 409}}


def test_an_unsupported_type_shows_at_finalize(api: Api):
    answer = api.upload(b"MZ", "application/x-msdownload")
    assert answer.headers["X-Goog-Upload-Status"] == "final"
    assert answer.json()["error"]["message"] == "Unsupported MIME type: application/x-msdownload"


def test_metadata_and_bytes_may_come_in_one_multipart_request(api: Api, emulator: Emulator):
    head = b'--b\r\nContent-Type: application/json\r\n\r\n{"file": {"display_name": "one"}}\r\n'
    body = head + b"--b\r\nContent-Type: image/png\r\n\r\n" + SQUARE + b"\r\n--b--\r\n"
    headers = {"X-Goog-Upload-Protocol": "multipart", "Content-Type": "multipart/related; boundary=b"}
    answer = api.http.post(f"{emulator.url}/upload/v1beta/files", headers=headers, content=body)
    assert answer.json()["file"]["displayName"] == "one"
    assert emulator.books.uploads[0].sha256 == hashlib.sha256(SQUARE).hexdigest()
    assert len(api.boxes(stored(answer))) == 1


def test_a_project_holds_no_more_than_its_storage(clock: Clock):
    with Emulator(EmulatorOptions(storage_bytes=100), clock=clock) as emulator, connect() as http:
        api = Api(http, emulator.url)
        assert api.upload(bytes(60), name="files/a").status_code == 200
        refused = api.start(41)
        assert (refused.status_code, refused.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert refused.json()["error"]["details"][0]["retryDelay"] == "9223372036854775807s"
        assert api.upload(bytes(40)).status_code == 200
        with connect(key="other") as others:
            assert Api(others, emulator.url).start(100).status_code == 200


def test_storage_is_freed_by_deletion_and_by_expiry(clock: Clock):
    with Emulator(EmulatorOptions(storage_bytes=100), clock=clock) as emulator, connect() as http:
        api = Api(http, emulator.url)
        api.upload(bytes(100), name="files/a")
        assert api.start(1).status_code == 429
        api.delete("files/a")
        assert api.upload(bytes(100)).status_code == 200
        clock.now_s += 48 * 3600
        assert api.upload(bytes(100)).status_code == 200


def test_storage_is_measured_again_when_the_upload_is_finalized():
    with Emulator(EmulatorOptions(storage_bytes=100)) as emulator, connect() as http:
        api = Api(http, emulator.url)
        undeclared = {"X-Goog-Upload-Command": "start", "X-Goog-Upload-Header-Content-Type": "image/png"}
        first = api.start(60)
        second = http.post(f"{api.url}/upload/v1beta/files", headers=undeclared)
        assert api.send(first.headers["X-Goog-Upload-URL"], "upload, finalize", bytes(60)).status_code == 200
        refused = api.send(second.headers["X-Goog-Upload-URL"], "upload, finalize", bytes(41))
        assert (refused.status_code, refused.headers["X-Goog-Upload-Status"]) == (429, "final")
        assert len(emulator.books.uploads) == 1


# --- files


def test_files_are_listed_newest_first_in_pages_of_ten(api: Api):
    for number in range(12):
        api.upload(b"x", name=f"files/f{number}")
    first = api.get("files").json()
    second = api.get("files", pageToken=first["nextPageToken"]).json()
    names = [file["name"] for page in (first, second) for file in page["files"]]
    assert names == [f"files/f{number}" for number in reversed(range(12))]
    assert len(first["files"]) == 10
    assert "nextPageToken" not in second


def test_a_deletion_between_two_pages_loses_no_file(api: Api):
    for name in ("a", "b", "c", "d"):
        api.upload(b"x", name=f"files/{name}")
    first = api.get("files", pageSize=2).json()
    api.delete("files/c")
    second = api.get("files", pageSize=2, pageToken=first["nextPageToken"]).json()
    assert [file["name"] for file in second["files"]] == ["files/b", "files/a"]


def test_no_files_are_an_empty_object(api: Api):
    assert api.get("files").json() == {}


@pytest.mark.parametrize("query", [{"pageSize": 0}, {"pageSize": 101}, {"pageSize": "x"}, {"pageToken": "?"}])
def test_a_wrong_page_is_refused(api: Api, query: dict[str, Any]):
    assert api.get("files", **query).status_code == 400


def test_a_file_that_is_not_there_is_forbidden_everywhere(api: Api):
    name = api.upload(SQUARE, name="files/gone").json()["file"]["name"]
    image = {"type": "image", "uri": f"{api.url}/v1beta/{name}", "mime_type": "image/png"}
    assert api.delete(name).json() == {}
    for answer in (api.get(name), api.delete(name)):
        assert (answer.status_code, answer.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
    asked = api.ask(image)
    assert asked.status_code == 403
    message = "You do not have permission to access the File gone or it may not exist."
    assert asked.json() == {"error": {"code": "permission_denied", "message": message}}
    assert api.upload(SQUARE, name="files/gone").status_code == 200


def test_a_file_lives_for_48_hours(api: Api, clock: Clock):
    uploaded = api.upload(SQUARE, name="files/old")
    clock.now_s += 48 * 3600 - 1
    assert api.get("files/old").status_code == 200
    clock.now_s += 1
    assert api.get("files/old").status_code == 403
    assert api.ask(stored(uploaded)).status_code == 403
    assert api.get("files").json() == {}
    assert api.upload(SQUARE, name="files/old").status_code == 200


def test_another_key_is_another_project(api: Api, emulator: Emulator):
    uploaded = api.upload(SQUARE, name="files/mine")
    with connect(key="other") as http:
        other = Api(http, emulator.url)
        assert other.get("files/mine").status_code == 403
        assert other.ask(stored(uploaded)).status_code == 403
        assert other.get("files").json() == {}
        assert other.upload(SQUARE, name="files/mine").status_code == 409


def test_uploaded_files_cannot_be_read_back(api: Api):
    api.upload(SQUARE, name="files/a")
    assert api.get("files/a:download", alt="media").status_code == 400


# --- questions: strictness

GOOD: dict[str, Any] = {"model": MODEL, "input": "hi"}
IMAGE = inline(SQUARE)


def schema_with(**keywords: Any) -> dict[str, Any]:
    return {"response_format": json_format({"type": "object", **keywords})}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"extra": 1}, "parameter_unknown", id="unknown-field"),
        pytest.param({"generationConfig": {}}, "parameter_unknown", id="camel-case"),
        pytest.param({"generation_config": {"top_k": 1}}, "parameter_unknown", id="top-k"),
        pytest.param({"generation_config": {"media_resolution": "low"}}, "parameter_unknown", id="media-resolution"),
        pytest.param({"input": [{"type": "text", "text": "a", "x": 1}]}, "parameter_unknown", id="unknown-in-content"),
        pytest.param({"input": [{**IMAGE, "mimeType": "image/png"}]}, "parameter_unknown", id="camel-case-in-content"),
        pytest.param({"outputs": []}, "invalid_request", id="legacy-schema"),
        pytest.param({"input": ""}, "invalid_request", id="empty-input"),
        pytest.param({"input": []}, "invalid_request", id="no-content"),
        pytest.param({"input": 7}, "invalid_request", id="number-as-input"),
        pytest.param({"input": [{"text": "no type"}]}, "invalid_request", id="content-without-type"),
        pytest.param({"input": [{"type": "picture"}]}, "invalid_request", id="unknown-type"),
        pytest.param({"input": [{"type": "user_input"}]}, "invalid_request", id="step-without-content"),
        pytest.param({"input": [{**IMAGE, "uri": "https://x/y"}]}, "invalid_request", id="data-and-uri"),
        pytest.param({"input": [{"type": "image", "mime_type": "image/png"}]}, "invalid_request", id="no-data"),
        pytest.param({"input": [{**IMAGE, "data": "data:image/png;base64,AAAA"}]}, "invalid_request", id="data-url"),
        pytest.param({"input": [{**IMAGE, "data": "AAA"}]}, "invalid_request", id="bad-base64"),
        pytest.param({"input": [{**IMAGE, "resolution": "highest"}]}, "invalid_request", id="resolution"),
        pytest.param({"input": [{**IMAGE, "mime_type": "image/jpeg"}]}, "invalid_request", id="mime-type-of-others"),
        pytest.param({"input": [{**IMAGE, "mime_type": "image/tiff"}]}, "invalid_request", id="mime-type-tiff"),
        pytest.param({"input": [inline(SQUARE[:60])]}, "invalid_request", id="cut-image"),
        pytest.param({"generation_config": {"thinking_level": "huge"}}, "invalid_request", id="thinking-level"),
        pytest.param({"generation_config": {"thinking_level": "xhigh"}}, "invalid_request", id="xhigh"),
        pytest.param(
            {"model": "gemini-3.8-flash", "generation_config": {"thinking_level": "minimal"}},
            "invalid_request",
            id="minimal-on-3.8",
        ),
        pytest.param({"generation_config": {"max_output_tokens": 0}}, "invalid_request", id="no-output-tokens"),
        pytest.param({"generation_config": {"max_output_tokens": 65_537}}, "invalid_request", id="65537-tokens"),
        pytest.param({"generation_config": {"temperature": 2.1}}, "invalid_request", id="temperature"),
        pytest.param({"generation_config": {"temperature": None}}, "invalid_request", id="null"),
        pytest.param({"generation_config": {"seed": 1.5}}, "invalid_request", id="seed"),
        pytest.param({"generation_config": {"seed": True}}, "invalid_request", id="boolean-as-integer"),
        pytest.param({"generation_config": {"stop_sequences": [""]}}, "invalid_request", id="empty-stop"),
        pytest.param({"service_tier": "deferred"}, "invalid_request", id="tier-of-vertex"),
        pytest.param({"safety_settings": []}, "invalid_request", id="safety-settings"),
        pytest.param({"labels": {"Run": "1"}}, "invalid_request", id="label"),
        pytest.param({"store": False, "background": True}, "invalid_request", id="background-unstored"),
        pytest.param({"store": False, "previous_interaction_id": "v1_1"}, "invalid_request", id="previous-unstored"),
        pytest.param({"agent": "deep-research"}, "invalid_request", id="model-and-agent"),
        pytest.param({"response_format": {"mime_type": "application/json"}}, "invalid_request", id="format-type"),
        pytest.param({"response_format": {"type": "text", "schema": {}}}, "invalid_request", id="schema-without-json"),
        pytest.param(schema_with(pattern="a"), "invalid_request", id="unknown-keyword"),
        pytest.param(schema_with(default={}), "invalid_request", id="default"),
        pytest.param(schema_with(required=["a"]), "invalid_request", id="required-undefined"),
        pytest.param(schema_with(type="text"), "invalid_request", id="schema-type"),
        pytest.param(schema_with(properties={"a": {"$ref": "#/$defs/b"}}), "invalid_request", id="dangling-ref"),
        pytest.param(schema_with(properties={"a": {"enum": []}}), "invalid_request", id="empty-enum"),
    ],
)
def test_a_question_is_read_strictly(api: Api, change: dict[str, Any], code: str):
    answer = api.http.post(f"{api.url}/v1beta/interactions", json={**GOOD, **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_max_items_on_a_list_of_objects_is_refused_without_a_hint(api: Api):
    schema = json.loads(json.dumps(BOXES))
    schema["properties"]["boxes"]["maxItems"] = 25
    answer = api.ask(IMAGE, response_format=json_format(schema))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Request contains an invalid argument."


def test_a_schema_made_by_pydantic_is_understood(api: Api):
    definition = {"type": "object", "title": "Box", "properties": BOXES["properties"]["boxes"]["items"]["properties"]}
    items = {"$ref": "#/$defs/Box"}
    schema = {
        "$defs": {"Box": definition},
        "type": "object",
        "properties": {"boxes": {"type": "array", "items": items}},
    }
    assert [box["label"] for box in api.boxes(IMAGE, schema=schema)] == ["red square"]


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gpt-5", "models/gemini-3.5-flash", ""])
def test_an_unknown_or_withdrawn_model_is_not_found(api: Api, model: str):
    answer = api.ask(model=model)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("fields", [{"stream": True}, {"background": True}, {"tools": []}])
def test_what_is_not_emulated_says_so(api: Api, fields: dict[str, Any]):
    answer = api.ask(**fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "unimplemented")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model": NaN}'])
def test_a_body_that_is_no_json_object_is_refused(api: Api, raw: bytes):
    headers = {"Content-Type": "application/json"}
    answer = api.http.post(f"{api.url}/v1beta/interactions", content=raw, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_v1_takes_a_smaller_set_of_fields(api: Api):
    url = f"{api.url}/v1/interactions"
    assert api.http.post(url, json=GOOD).status_code == 200
    extras: list[dict[str, Any]] = [{"service_tier": "flex"}, {"labels": {}}, {"generation_config": {"temperature": 1}}]
    for extra in extras:
        assert api.http.post(url, json={**GOOD, **extra}).json()["error"]["code"] == "parameter_unknown"


def test_a_body_above_20_mib_is_refused(api: Api):
    answer = api.ask({"type": "image", "mime_type": "image/png", "data": "A" * 20 * MIB})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Request payload size exceeds the limit: 20971520 bytes."


def test_an_undecodable_image_is_not_valid(api: Api):
    broken = SQUARE[:40] + bytes(60)
    for image in (inline(broken), stored(api.upload(broken))):
        assert api.ask(image).json()["error"] == {"code": "invalid_request", "message": "Provided image is not valid."}


def test_a_tiff_uploads_and_fails_when_it_is_used(api: Api):
    uploaded = api.upload(encode(blank(), "TIFF"), "image/tiff")
    assert uploaded.json()["file"]["state"] == "ACTIVE"
    assert api.ask(stored(uploaded)).json()["error"]["message"] == "Request contains an invalid argument."


def test_a_url_is_fetched_only_by_an_emulator_that_has_a_way_to():
    image = {"type": "image", "uri": "https://example.com/a.png", "mime_type": "image/png"}

    def fetch(url: str) -> bytes:
        return {"https://example.com/a.png": SQUARE}[url]

    for hook, statuses in ((None, [400, 400]), (fetch, [200, 400])):
        with Emulator(fetch=hook) as emulator, connect() as http:
            api = Api(http, emulator.url)
            missing = {**image, "uri": "https://example.com/b.png"}
            answers = [api.ask(image), api.ask(missing)]
            assert [answer.status_code for answer in answers] == statuses
            assert answers[1].json()["error"]["message"] == "Cannot fetch content from the provided URL."


def test_a_url_of_more_than_100_megabytes_is_not_fetched():
    image = {"type": "image", "uri": "https://example.com/a.png", "mime_type": "image/png"}
    for size_bytes, status in ((100_000_000, 200), (100_000_001, 400)):
        data = SQUARE.ljust(size_bytes, b"\0")
        with Emulator(fetch=lambda url, data=data: data) as emulator, connect() as http:  # type: ignore[misc]
            assert Api(http, emulator.url).ask(image).status_code == status


# --- questions: answers


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("hi", id="string"),
        pytest.param({"type": "text", "text": "hi"}, id="content"),
        pytest.param([{"type": "text", "text": "hi"}, IMAGE], id="contents"),
        pytest.param([IMAGE, {"type": "text", "text": "hi"}], id="image-first"),
        pytest.param([{"type": "user_input", "content": [IMAGE, {"type": "text", "text": "hi"}]}], id="steps"),
        pytest.param(
            [
                {"type": "user_input", "content": [IMAGE]},
                {"type": "model_output", "content": [{"type": "text", "text": "A square."}]},
                {"type": "user_input", "content": [{"type": "text", "text": "Sure?"}]},
            ],
            id="conversation",
        ),
    ],
)
def test_input_has_four_forms(api: Api, given: Any):
    answer = api.http.post(f"{api.url}/v1beta/interactions", json={**GOOD, "input": given})
    assert answer.status_code == 200
    assert text_of(answer)


def test_an_answer_is_laid_out_and_priced_as_gemini_does(api: Api):
    text = "Describe this picture, ok?"  # 26 characters: 7 tokens
    answer = api.ask({**IMAGE, "resolution": "low"}, text=text, service_tier="flex").json()
    assert (answer["object"], answer["model"], answer["status"]) == ("interaction", MODEL, "completed")
    assert answer["service_tier"] == "flex"
    said = "A picture of a red square on a plain light background."  # 54 characters: 14 tokens
    assert answer["steps"] == [{"type": "model_output", "content": [{"type": "text", "text": said}]}]
    assert answer["usage"]["input_tokens_by_modality"] == [
        {"modality": "text", "tokens": 7},
        {"modality": "image", "tokens": 280},
    ]
    assert [answer["usage"][f"total_{of}_tokens"] for of in ("input", "output", "thought")] == [287, 14, 0]
    assert answer["usage"]["total_tokens"] == 301


def test_an_answer_beyond_the_token_limit_is_cut_and_incomplete(api: Api):
    config = {"thinking_level": "minimal", "max_output_tokens": 3}
    answer = api.ask(IMAGE, text="Describe this.", generation_config=config)
    assert answer.json()["status"] == "incomplete"
    assert text_of(answer) == "A picture of"


def test_thinking_is_paid_from_the_same_limit(api: Api):
    answer = api.ask(IMAGE, generation_config={"thinking_level": "high", "max_output_tokens": 100}).json()
    assert answer["status"] == "incomplete"
    assert [step["type"] for step in answer["steps"]] == ["thought"]
    assert answer["usage"]["total_thought_tokens"] == 100


def test_only_a_stored_interaction_has_an_id_and_can_be_read(api: Api):
    assert "id" not in api.ask(store=False).json()
    answer = api.ask(text="Hello").json()
    path = f"interactions/{answer['id']}"
    assert api.get(path, stream="false").json() == answer
    assert api.get(path, include_input="true").json()["input"] == [{"type": "text", "text": "Hello"}]
    assert api.delete(path).json() == {}
    assert api.get(path).json()["error"] == {"code": "not_found", "message": "Requested entity was not found."}


def test_two_pictures_in_one_question_are_both_seen(api: Api):
    blue = inline(encode(with_square(10, 20, 50, 60, "blue")))
    said = text_of(api.ask(IMAGE, blue, text="What is different?"))
    assert said == "Picture 1 shows a red square. Picture 2 shows a blue square."


def two_squares() -> dict[str, Any]:
    image = with_square(10, 10, 30, 30, "red")
    image.paste(PALETTE["blue"], (60, 40, 90, 70))
    return inline(encode(image))


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Detect every red shape.", ["red square"]),
        ("Detect the squares.", ["red square", "blue square"]),
        ("Detect blue squares and red circles.", ["blue square"]),
        ("Detect everything.", ["red square", "blue square"]),
    ],
)
def test_a_prompt_that_names_a_colour_or_shape_gets_only_those(api: Api, text: str, labels: list[str]):
    assert [box["label"] for box in api.boxes(two_squares(), text=text)] == labels


def test_an_enum_of_labels_is_kept_to(api: Api):
    schema = json.loads(json.dumps(BOXES))
    schema["properties"]["boxes"]["items"]["properties"]["label"]["enum"] = ["Something RED", "circles"]
    assert [box["label"] for box in api.boxes(two_squares(), schema=schema)] == ["Something RED"]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"caption": {"type": "string"}}, "A picture of a red square and a blue square on a plain light background."),
        ({"label": {"type": "string"}}, "red square"),
        ({"label": {"type": "string", "enum": ["cat", "blue thing"]}}, "blue thing"),
        ({"label": {"type": "string", "enum": ["cat", "dog"]}}, "cat"),
        ({"labels": {"type": "array", "items": {"type": "string"}}}, ["red square", "blue square"]),
        ({"labels": {"type": "array", "items": {"type": "string", "enum": ["square", "cat"]}}}, ["square"]),
        ({"answer": {"type": "string"}}, "2"),
        ({"count": {"type": "integer"}}, 2),
        ({"any": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}}, True),
    ],
)
def test_other_schemas_are_filled_by_the_names_of_their_properties(api: Api, schema: dict[str, Any], value: Any):
    text = "How many are there?" if "answer" in schema else "Say it."
    form = json_format({"type": "object", "properties": schema, "required": list(schema)})
    assert list(json.loads(text_of(api.ask(two_squares(), text=text, response_format=form))).values()) == [value]


def test_without_a_schema_the_answer_is_a_fenced_list(api: Api):
    said = text_of(api.ask(IMAGE, text="Give the segmentation masks."))
    assert said.startswith("```json\n[")
    [item] = json.loads(said.removeprefix("```json").removesuffix("```"))
    assert set(item) == {"box_2d", "label", "mask"}


# --- eyes


def test_boxes_are_on_pixel_edges_y_first_and_polygons_x_first(api: Api):
    # columns 10 ... 49 of 100 and rows 20 ... 59 of 80 are 0.10 ... 0.50 and 0.25 ... 0.75
    [box] = api.boxes(IMAGE, schema=MASKS)
    assert box["box_2d"] == [250, 100, 750, 500]
    assert sorted(box["mask"]) == [[100, 250], [100, 750], [500, 250], [500, 750]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "mime_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
def test_an_exif_orientation_is_not_applied(api: Api, orientation: int, format: str, mime_type: str):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(with_square(8, 16, 48, 56), format, exif=exif, quality=95)
    [box] = api.boxes(inline(data, mime_type))
    assert np.abs(np.subtract(box["box_2d"], [200, 80, 700, 480])).max() <= 5


def test_a_heif_is_seen_and_may_be_called_heic_or_heif(api: Api):
    data = encode(with_square(10, 20, 50, 60), "HEIC", quality=90)
    for mime_type in ("image/heic", "image/heif"):
        [box] = api.boxes(inline(data, mime_type))
        assert np.abs(np.subtract(box["box_2d"], [250, 100, 750, 500])).max() <= 5


SHAPES: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {}
TURN = np.linspace(0, 2 * np.pi, 129)[:-1]


def polygon(shape: str, radius: float) -> np.ndarray[Any, Any]:
    """Points around (0, 0)."""
    if shape in ("circle", "ellipse"):
        return np.stack([np.cos(TURN), np.sin(TURN) * (1 if shape == "circle" else 0.6)], axis=1) * radius
    if shape in ("square", "rectangle"):
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * radius * (0.8, 0.8 if shape == "square" else 0.5)
    corners = {"triangle": 3, "pentagon": 5, "hexagon": 6, "star": 10}[shape]
    angles = np.arange(corners) * 2 * np.pi / corners
    radii = np.where(np.arange(corners) % 2 == 0, 1, 0.45) if shape == "star" else np.ones(corners)
    return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], axis=1) * radius


def scene(width: int, height: int, radius: float) -> tuple[Image.Image, dict[str, np.ndarray[Any, Any]]]:
    """All eight shapes in eight colours, antialiased, at uneven places; the outlines in pixels."""
    fine, outlines = (8 if width < 500 else 4), {}
    canvas = np.full((height * fine, width * fine, 3), BACKGROUND, np.uint8)
    names = ("circle", "square", "rectangle", "triangle", "star", "ellipse", "pentagon", "hexagon")
    for number, (colour, shape) in enumerate(zip(PALETTE, names, strict=True)):
        centre = ((number % 4 + 0.5) * width / 4 + 0.37 * number, (number // 4 + 0.5) * height / 2 - 0.21 * number)
        points = polygon(shape, radius) + centre
        outlines[f"{colour} {shape}"] = points
        # fillPoly speaks of pixel centres, and paints the pixels that its border touches
        cv2.fillPoly(canvas, [np.rint((points * fine - 0.5) * 16).astype(np.int32)], PALETTE[colour], shift=4)
    return Image.fromarray(canvas).resize((width, height), Image.Resampling.BOX), outlines


def iou_of_boxes(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    return common / (float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - common)


def iou_of_polygons(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any], size: tuple[int, int]) -> float:
    masks = []
    for points in (first, second):
        mask = np.zeros((size[1] * 4, size[0] * 4), np.uint8)
        cv2.fillPoly(mask, [np.rint((points * 4 - 0.5) * 16).astype(np.int32)], 1, shift=4)
        masks.append(mask > 0)
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


@pytest.mark.parametrize(
    ("format", "options"),
    [
        pytest.param("PNG", {}, id="png"),
        pytest.param("JPEG", {"quality": 85}, id="jpeg"),
        pytest.param("WEBP", {"quality": 80}, id="webp"),
        pytest.param("HEIC", {"quality": 60}, id="heic"),
    ],
)
@pytest.mark.parametrize(("width", "height", "radius"), [(256, 192, 20), (640, 400, 60)])
def test_shapes_are_named_boxed_and_outlined(
    format: str, options: dict[str, Any], width: int, height: int, radius: float
):
    image, outlines = scene(width, height, radius)
    seen = {item.label: item for item in look(encode(image, format, **options))}
    assert set(seen) == set(outlines)
    size = np.array([width, height])
    for label, points in outlines.items():
        box = np.rint(np.array(seen[label].box) * 1000) / 1000 * np.tile(size, 2)
        truth = np.concatenate([points.min(axis=0), points.max(axis=0)])
        assert iou_of_boxes(box, truth) >= 0.955, label
        outline = np.rint(seen[label].outline * 1000) / 1000 * size
        assert iou_of_polygons(outline, points, (width, height)) >= 0.94, label


def test_png_masks_fill_the_inside_of_the_box():
    with Emulator(EmulatorOptions(masks="png")) as emulator, connect() as http:
        data = encode(scene(256, 192, 20)[0])
        boxes = Api(http, emulator.url).boxes(inline(data), schema=MASKS)
    masks = {box["label"]: base64.b64decode(box["mask"].removeprefix("data:image/png;base64,")) for box in boxes}
    covered = {label: np.asarray(Image.open(io.BytesIO(png))).mean() / 255 for label, png in masks.items()}
    assert covered["red circle"] == pytest.approx(math.pi / 4, abs=0.01)
    assert covered["orange triangle"] == pytest.approx(0.5, abs=0.01)
    assert covered["blue square"] > 0.99


def test_specks_are_not_seen_and_forty_objects_are_the_limit():
    image = blank(1000, 800)
    for number in range(60):
        left, top = 20 + 90 * (number % 10), 20 + 120 * (number // 10)
        image.paste(PALETTE["teal"], (left, top, left + 40 + number // 10, top + 40))
    image.paste(PALETTE["red"], (950, 750, 960, 760))  # 0.0125 % of the image
    seen = look(encode(image))
    assert len(seen) == 40
    assert {item.colour for item in seen} == {"teal"}


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (640, 427)])
def test_noise_is_survived(size: tuple[int, int]):
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for item in look(encode(Image.fromarray(noise))):
        assert 0 <= item.box[0] <= item.box[2] <= 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_of_pixels_is_decoded(mode: str):
    image = Image.new("I;16", (50, 40)) if mode == "I;16" else with_square(10, 20, 50, 60).convert(mode)
    look(encode(image, "JPEG" if mode == "CMYK" else "PNG"))


def test_the_same_content_gets_the_same_answer(api: Api):
    answers = {text_of(api.ask(inline(encode(scene(256, 192, 20)[0])))) for _ in range(2)}
    assert len(answers) == 1


def test_an_emulator_that_does_not_look_answers_two_objects():
    with Emulator(EmulatorOptions(look=False)) as emulator, connect() as http:
        api = Api(http, emulator.url)
        uploaded = api.upload(SQUARE[:60], name="files/a")
        assert uploaded.json()["file"]["sizeBytes"] == "60"
        labels = [box["label"] for box in api.boxes(stored(uploaded))]
    assert labels == ["red square", "blue triangle"]


# --- quotas


def admitted(api: Api, count: int, **fields: Any) -> int:
    return sum(api.ask(**fields).status_code == 200 for _ in range(count))


def test_requests_above_the_rate_get_a_429_that_says_when(clock: Clock):
    with Emulator(EmulatorOptions(requests_per_minute=60), clock=clock) as emulator, connect() as http:
        api = Api(http, emulator.url)
        assert admitted(api, 5) == 3  # a burst of 5 % of a minute
        refused = api.ask()
        details = {detail["@type"].rpartition(".")[2]: detail for detail in refused.json()["error"]["details"]}
        assert (refused.status_code, refused.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert details["QuotaFailure"]["violations"][0]["quotaId"].startswith("GenerateRequestsPerMinute")
        wait_s = float(details["RetryInfo"]["retryDelay"].removesuffix("s"))
        assert wait_s == pytest.approx(1.0, abs=1e-4)
        clock.now_s += wait_s
        assert admitted(api, 2) == 1


def test_over_a_minute_no_more_than_the_rate_and_its_burst_is_admitted(clock: Clock):
    with Emulator(EmulatorOptions(requests_per_minute=40), clock=clock) as emulator, connect() as http:
        api, total = Api(http, emulator.url), 0
        for _ in range(60):
            total += admitted(api, 2)
            clock.now_s += 1
    assert total == 41  # 2 at once and 39.3 more by the last second, cut to whole ones


def test_tokens_per_minute_are_paid_off_after_a_large_request(clock: Clock):
    with Emulator(EmulatorOptions(tokens_per_minute=1120), clock=clock) as emulator, connect() as http:
        api = Api(http, emulator.url)
        assert admitted(api, 1, input=[IMAGE]) == 1  # 1120 tokens, from a bucket of 56
        clock.now_s += 59
        assert admitted(api, 1, input=[IMAGE]) == 0
        clock.now_s += 1
        assert admitted(api, 1, input=[IMAGE]) == 1


def test_a_day_begins_at_midnight_of_the_pacific(clock: Clock):
    clock.now_s = 1_800_000_000 // 86_400 * 86_400 + 8 * 3600 - 1
    with Emulator(EmulatorOptions(requests_per_day=2), clock=clock) as emulator, connect() as http:
        api = Api(http, emulator.url)
        assert admitted(api, 3) == 2
        violation = api.ask().json()["error"]["details"][0]["violations"][0]
        assert violation["quotaId"].startswith("GenerateRequestsPerDay")
        clock.now_s += 1
        assert admitted(api, 1) == 1


# --- faults


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("429", 429, 429),
        ("429_bare", 429, 429),
        ("429_text", 429, 429),
        ("429_interactions", 429, "rate_limit_exceeded"),
        ("429_daily", 429, 429),
        ("429_huge", 429, 429),
        ("429_retry_after", 429, "rate_limit_exceeded"),
        ("429_zero", 429, 429),
        ("429_zero_unsaid", 429, 429),
        ("500", 500, "api_error"),
        ("503", 503, 503),
        ("504", 504, "deadline_exceeded"),
        ("408", 408, "request_timeout"),
        ("blocked", 400, "content_blocked"),
        ("bad_key", 400, 400),
        ("key_revoked_403", 403, 403),
        ("file_gone_403", 403, "permission_denied"),
        ("not_active_400", 400, "failed_precondition"),
        ("invalid_image_400", 400, "invalid_request"),
    ],
)
def test_a_scripted_refusal_meets_one_request(api: Api, emulator: Emulator, fault: str, status: int, code: Any):
    emulator.script("ok", fault)
    answers = [api.ask(IMAGE) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, status, 200]
    assert answers[1].json()["error"]["code"] == code
    assert [question.fault for question in emulator.books.questions] == [None, fault, None]


def test_a_delay_may_be_for_ever_or_in_a_header(api: Api, emulator: Emulator):
    emulator.script("429_huge", "429_retry_after")
    details = api.ask().json()["error"]["details"]
    assert details[0]["violations"][0]["quotaId"] == "GenerateRequestsPerMinutePerProjectPerModel"
    assert details[2]["retryDelay"] == "9223372036854775807s"
    assert api.ask().headers["Retry-After"] == "2"


@pytest.mark.parametrize(("fault", "value"), [("429_zero", "0"), ("429_zero_unsaid", None)])
def test_a_model_outside_the_tier_has_a_quota_of_zero(api: Api, emulator: Emulator, fault: str, value: str | None):
    emulator.script(fault)
    error = api.ask().json()["error"]
    [violation] = error["details"][0]["violations"]
    assert violation.get("quotaValue") == value
    assert violation["quotaId"].startswith("GenerateRequestsPerDay")
    assert "limit: 0, model: gemini-3.5-flash" in error["message"]


def test_an_answer_may_be_of_40_megabytes(api: Api, emulator: Emulator):
    emulator.script("huge_answer")
    answer = api.ask(IMAGE)
    assert answer.json()["status"] == "completed"
    assert len(text_of(answer)) == 40_000_000


@pytest.mark.parametrize(
    ("fault", "status", "start"),
    [
        ("429_list", 429, '[{"error"'),
        ("502_html", 502, "<html>"),
        ("html_200", 200, "<html>"),
        ("not_json_200", 200, "OK"),
    ],
)
def test_bodies_of_another_kind(api: Api, emulator: Emulator, fault: str, status: int, start: str):
    emulator.script(fault)
    answer = api.ask(IMAGE)
    assert answer.status_code == status
    assert answer.text.startswith(start)


@pytest.mark.parametrize(
    ("fault", "error", "status"),
    [
        pytest.param("timeout", httpx.ReadTimeout, None, id="timeout"),
        pytest.param("reset", httpx.ReadError, None, id="reset"),
        pytest.param("cut", httpx.RemoteProtocolError, 200, id="cut"),
    ],
)
def test_connections_that_fail(api: Api, emulator: Emulator, fault: str, error: type[Exception], status: int | None):
    emulator.script(fault)
    api.http.timeout = httpx.Timeout(0.3)
    with pytest.raises(error):
        api.ask(IMAGE)
    assert [question.status for question in emulator.books.questions] == [status]


FRAMES: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "failed_200": lambda answer, text: answer["status"] == "failed" and bool(answer["errors"]),
    "incomplete": lambda answer, text: answer["status"] == "incomplete" and text.startswith('{"boxes"'),
    "incomplete_empty": lambda answer, text: answer["status"] == "incomplete" and not text,
    "truncated_completed": lambda answer, text: answer["status"] == "completed" and not text.endswith("}"),
    "empty_text": lambda answer, text: answer["steps"][-1]["type"] == "model_output" and not text,
    "no_steps": lambda answer, text: "steps" not in answer,
    "thought_only": lambda answer, text: [step["type"] for step in answer["steps"]] == ["thought"],
    "fenced": lambda answer, text: text.startswith("```json\n{") and text.endswith("}\n```"),
    "unknown_status": lambda answer, text: answer["status"] == "dreaming" and text.endswith("}"),
    "two_blocks": lambda answer, text: text.count("```json\n{") == text.count("}\n```") == 2,
    "deep_json": lambda answer, text: text == "[" * 10_000 + "]" * 10_000,
    "control_chars": lambda answer, text: '"label":"red\t\x01\nsquare"' in text,
    "surrounded": lambda answer, text: "\n{" in text and text.endswith("!"),
    "repetition": lambda answer, text: text.count("red square") > 200 and answer["status"] == "incomplete",
    "nan": lambda answer, text: '"box_2d":[NaN,' in text,
}


@pytest.mark.parametrize("fault", FRAMES)
def test_answers_whose_frame_is_spoiled(api: Api, emulator: Emulator, fault: str):
    emulator.script(fault)
    answer = api.ask(IMAGE, response_format=json_format(BOXES))
    assert answer.status_code == 200
    assert FRAMES[fault](answer.json(), text_of(answer))


ITEMS: dict[str, dict[str, Any]] = {
    "swapped_corners": {"box_2d": [750, 500, 250, 100]},
    "out_of_range": {"box_2d": [-750, 100, 1200, 1040]},
    "zero_area": {"box_2d": [250, 100, 250, 500]},
    "wrong_length": {"box_2d": [250, 100, 750]},
    "extra_numbers": {"box_2d": [250, 100, 750, 500, 95]},
    "non_numbers": {"box_2d": ["top", None, True, 500]},
    "scale_0_1": {"box_2d": [0.25, 0.1, 0.75, 0.5]},
    "null_label": {"label": None},
    "long_label": {"label": "very " * 2000},
    "hostile_label": {"label": "<script>alert(1)</script>\x00\n\U0001f6a6 \ud800"},
    "mask_not_image": {"mask": "data:image/png;base64,dGhpcyBpcyBubyBpbWFnZQ=="},
}


@pytest.mark.parametrize("fault", ITEMS)
def test_objects_that_are_spoiled(api: Api, emulator: Emulator, fault: str):
    emulator.script(fault)
    [box] = api.boxes(IMAGE, schema=MASKS)
    assert ITEMS[fault].items() <= box.items()


MASK_FAULTS: dict[str, Callable[[Any], bool]] = {
    "flat_polygon": lambda mask: len(mask) == 8 and all(isinstance(number, int) for number in mask),
    "string_polygon": lambda mask: "100,250" in mask.split(),
    "seg_tokens": lambda mask: mask.startswith("<start_of_mask><seg_"),
    "bare_base64_mask": lambda mask: base64.b64decode(mask).startswith(b"\x89PNG"),
    "mask_bomb": lambda mask: base64.b64decode(mask.partition(",")[2])[16:24] == (20_000).to_bytes(4) * 2,
}


@pytest.mark.parametrize("fault", MASK_FAULTS)
def test_masks_that_are_spoiled(api: Api, emulator: Emulator, fault: str):
    emulator.script(fault)
    [box] = api.boxes(IMAGE, schema=MASKS)
    assert MASK_FAULTS[fault](box["mask"])
    assert box["box_2d"] == [250, 100, 750, 500]


CONTAINERS = {
    "bare_list": [{"box_2d": [250, 100, 750, 500], "label": "red square"}],
    "wrapper": {"detections": [{"box_2d": [250, 100, 750, 500], "label": "red square"}]},
    "empty_list": {"boxes": []},
}


@pytest.mark.parametrize("fault", CONTAINERS)
def test_answers_of_another_shape(api: Api, emulator: Emulator, fault: str):
    emulator.script(fault)
    assert json.loads(text_of(api.ask(IMAGE, response_format=json_format(BOXES)))) == CONTAINERS[fault]


@pytest.mark.parametrize(("fault", "status"), [("upload_500", 500), ("upload_503", 503), ("upload_409", 409)])
def test_an_upload_that_is_refused_is_not_stored(api: Api, emulator: Emulator, fault: str, status: int):
    emulator.script(fault)
    assert api.upload(SQUARE, name="files/a").status_code == status
    assert api.get("files/a").status_code == 403
    assert api.upload(SQUARE, name="files/a").status_code == 200
    assert len(emulator.books.uploads) == 1


@pytest.mark.parametrize(("fault", "status"), [("upload_reset", 403), ("upload_lost_finalize", 200)])
def test_an_upload_whose_answer_is_lost(api: Api, emulator: Emulator, fault: str, status: int):
    emulator.script(fault)
    with pytest.raises(httpx.ReadError):
        api.upload(SQUARE, name="files/a")
    assert api.get("files/a").status_code == status


def test_after_a_lost_answer_query_says_that_the_upload_is_final(api: Api, emulator: Emulator):
    emulator.script("upload_lost_finalize")
    url = api.start(len(SQUARE)).headers["X-Goog-Upload-URL"]
    with pytest.raises(httpx.ReadError):
        api.send(url, "upload, finalize", SQUARE)
    query = api.send(url, "query").headers
    assert (query["X-Goog-Upload-Status"], query["X-Goog-Upload-Size-Received"]) == ("final", str(len(SQUARE)))


def test_an_upload_broken_halfway_goes_on_from_there(api: Api, emulator: Emulator):
    emulator.script("upload_half")
    data = SQUARE + b"x" * (1 - len(SQUARE) % 2)  # an odd number of bytes
    half = len(data) // 2
    url = api.start(len(data), name="files/a").headers["X-Goog-Upload-URL"]
    with pytest.raises(httpx.ReadError):
        api.send(url, "upload, finalize", data)
    query = api.send(url, "query").headers
    assert (query["X-Goog-Upload-Status"], query["X-Goog-Upload-Size-Received"]) == ("active", str(half))
    uploaded = api.send(url, "upload, finalize", data[half:], half)
    assert emulator.books.uploads[0].sha256 == hashlib.sha256(data).hexdigest()
    assert len(api.boxes(stored(uploaded))) == 1


def test_chunks_after_half_of_one_need_not_start_at_multiples_of_8_mib(api: Api, emulator: Emulator):
    emulator.script("upload_half")
    data = bytes(range(256)) * (13 * MIB // 256)
    url = api.start(len(data)).headers["X-Goog-Upload-URL"]
    with pytest.raises(httpx.ReadError):
        api.send(url, "upload", data[: 8 * MIB])
    assert api.send(url, "upload", data[4 * MIB : 12 * MIB], 4 * MIB).status_code == 200
    assert api.send(url, "upload, finalize", data[12 * MIB :], 12 * MIB).status_code == 200
    assert emulator.books.uploads[0].sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("fault", "status"), [("upload_session_gone", 404), ("upload_expired_session_410", 410)])
def test_an_upload_that_was_forgotten_can_be_started_again(api: Api, emulator: Emulator, fault: str, status: int):
    emulator.script(fault)
    url = api.start(len(SQUARE)).headers["X-Goog-Upload-URL"]
    assert api.send(url, "upload, finalize", SQUARE).status_code == status
    assert api.send(url, "query").status_code == 404
    assert api.upload(SQUARE).status_code == 200
    assert len(emulator.books.uploads) == 1


def test_an_upload_refused_for_want_of_storage_says_to_wait_for_ever(api: Api, emulator: Emulator):
    emulator.script("upload_storage_full")
    refused = api.start(10)
    assert refused.status_code == 429
    assert refused.json()["error"]["details"][0]["retryDelay"] == "9223372036854775807s"


def test_upload_answers_that_lack_or_belie_something(api: Api, emulator: Emulator):
    emulator.script("upload_no_uri", "upload_wrong_hash")
    assert {"uri", "name"}.isdisjoint(api.upload(SQUARE).json()["file"])
    claimed = base64.b64decode(api.upload(SQUARE).json()["file"]["sha256Hash"]).decode()
    assert claimed != hashlib.sha256(SQUARE).hexdigest()


def test_a_file_in_processing_becomes_active_after_two_looks(api: Api, emulator: Emulator):
    emulator.script("upload_processing")
    uploaded = api.upload(SQUARE, name="files/a")
    refused = api.ask(stored(uploaded))
    assert refused.json()["error"]["message"] == "The File a is not in an ACTIVE state and usage is not allowed."
    states = [api.get("files/a").json()["state"] for _ in range(3)]
    assert states == ["PROCESSING", "PROCESSING", "ACTIVE"]
    assert api.ask(stored(uploaded)).status_code == 200


def test_a_stuck_file_never_becomes_active(api: Api, emulator: Emulator):
    emulator.script("upload_stuck")
    uploaded = api.upload(SQUARE, name="files/a")
    assert uploaded.json()["file"]["state"] == "PROCESSING"
    assert {api.get("files/a").json()["state"] for _ in range(5)} == {"PROCESSING"}
    assert api.ask(stored(uploaded)).status_code == 400


def test_a_failed_file_says_why_and_is_of_no_use(api: Api, emulator: Emulator):
    emulator.script("upload_failed_state")
    uploaded = api.upload(SQUARE)
    assert uploaded.json()["file"]["state"] == "FAILED"
    assert uploaded.json()["file"]["error"]["message"]
    assert api.ask(stored(uploaded)).status_code == 400


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("model_404", 404, "NOT_FOUND"),
        ("model_region_400", 400, "FAILED_PRECONDITION"),
        ("model_500", 500, "INTERNAL"),
        ("model_bad_key", 400, "INVALID_ARGUMENT"),
    ],
)
def test_a_look_at_a_model_may_fail(api: Api, emulator: Emulator, fault: str, status: int, reason: str):
    emulator.script("model_ok", fault)
    answers = [api.get(f"models/{MODEL}") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, status, 200]
    assert answers[1].json()["error"]["status"] == reason


def test_a_fault_meets_only_requests_of_its_class(api: Api, emulator: Emulator):
    emulator.script("model_500", "upload_503", "500")
    statuses = [api.get(f"models/{MODEL}"), api.upload(SQUARE), api.ask(), api.get("files")]
    assert [answer.status_code for answer in statuses] == [500, 503, 500, 200]


def test_a_standing_fault_meets_every_request_until_it_is_lifted(api: Api, emulator: Emulator):
    emulator.always("503", "upload_500", "model_404")
    emulator.script("ok", "429")
    assert [api.ask().status_code for _ in range(4)] == [200, 429, 503, 503]
    assert [api.upload(SQUARE).status_code for _ in range(2)] == [500, 500]
    assert [api.get(f"models/{MODEL}").status_code for _ in range(2)] == [404, 404]
    emulator.always("500")
    assert [api.ask().status_code, api.upload(SQUARE).status_code] == [500, 200]
    emulator.always()
    assert [api.ask().status_code, api.get(f"models/{MODEL}").status_code] == [200, 200]


def test_standing_faults_of_one_class_take_turns_and_come_before_draws():
    with Emulator(EmulatorOptions(faults={"504": 1.0})) as emulator, connect() as http:
        api = Api(http, emulator.url)
        emulator.always("500", "503")
        assert [api.ask().status_code for _ in range(3)] == [500, 503, 500]
        emulator.always()
        assert api.ask().status_code == 504


def test_a_standing_fault_meets_an_upload_again_when_it_is_tried_again(api: Api, emulator: Emulator):
    emulator.always("upload_503")
    url = api.start(len(SQUARE)).headers["X-Goog-Upload-URL"]
    assert [api.send(url, "upload, finalize", SQUARE).status_code for _ in range(2)] == [503, 503]
    emulator.always()
    assert api.send(url, "upload, finalize", SQUARE).status_code == 200


def test_faults_by_probability_are_drawn_from_the_seed():
    def faults(seed: int) -> list[str | None]:
        options = EmulatorOptions(faults={"500": 0.3, "empty_text": 0.2, "upload_503": 1.0}, seed=seed)
        with Emulator(options) as emulator, connect() as http:
            api = Api(http, emulator.url)
            assert api.upload(SQUARE).status_code == 503
            for _ in range(60):
                api.ask()
            return [question.fault for question in emulator.books.questions]

    first = faults(1)
    assert first == faults(1)
    assert set(first) == {None, "500", "empty_text"}
    assert 8 <= first.count("500") <= 28  # 18 expected, 2.8 standard deviations


@pytest.mark.parametrize(
    "options",
    [
        {"faults": {"429_yearly": 0.1}},
        {"faults": {"500": 1.5}},
        {"faults": {"500": 0.6, "503": 0.6}},
        {"faults": {"upload_500": 0.6, "upload_503": 0.6}},
        {"faults": {"model_404": 0.6, "model_500": 0.6}},
        {"faults": {"batch_429": 0.6, "batch_503": 0.6}},
        {"faults": {"batch_line_500": 0.6, "batch_line_lost": 0.6}},
        {"faults": {"500": float("nan")}},
        {"batch_latency_s": -1},
        {"batch_tokens": 0},
        {"latency_s": -1},
        {"jitter_s": -1},
        {"storage_bytes": -1},
        {"requests_per_minute": 0},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError):
        EmulatorOptions(**options)


def test_each_class_of_faults_has_probabilities_of_its_own():
    names = ("500", "upload_500", "model_500", "batch_503", "batch_line_500")
    EmulatorOptions(faults=dict.fromkeys(names, 1.0))


def test_an_unknown_fault_can_neither_be_scripted_nor_stand(api: Api, emulator: Emulator):
    for refuse in (emulator.script, emulator.always):
        with pytest.raises(ConfigError, match="unknown fault 'oops'"):
            refuse("500", "oops")
    assert api.ask().status_code == 200


def test_every_fault_is_described_and_tested():
    assert all(FAULTS.values())
    refusals = {"429", "429_bare", "429_text", "429_interactions", "429_daily", "500", "503", "504", "408", "blocked"}
    refusals |= {"bad_key", "key_revoked_403", "file_gone_403", "not_active_400", "invalid_image_400"}
    refusals |= {"429_list", "502_html", "html_200", "not_json_200", "timeout", "reset", "cut"}
    refusals |= {"429_huge", "429_retry_after", "429_zero", "429_zero_unsaid", "huge_answer"}
    answers = {name for name in FAULTS if class_of(name) == "interaction"}
    assert answers == refusals | FRAMES.keys() | ITEMS.keys() | MASK_FAULTS.keys() | CONTAINERS.keys()


# --- books and life


def test_the_books_tell_what_was_done(api: Api, emulator: Emulator):
    uploaded = api.upload(SQUARE, name="files/a", display_name="one.png")
    api.ask(stored(uploaded), IMAGE)
    api.ask(model="gpt-5")
    sha256 = hashlib.sha256(SQUARE).hexdigest()
    [upload] = emulator.books.uploads
    assert (upload.name, upload.sha256, upload.display_name) == ("files/a", sha256, "one.png")
    good, bad = emulator.books.questions
    assert (good.images, good.status, good.text) == ((sha256, sha256), 200, "Detect all objects.")
    assert (bad.images, bad.status) == ((), 404)
    assert good.digest != bad.digest
    assert good.at_s <= bad.at_s <= time.monotonic()
    assert emulator.books.by_endpoint == {"upload.start": 1, "upload.bytes": 1, "interactions.create": 2}
    assert emulator.books.by_status == {200: 3, 404: 1}
    assert emulator.books.totals().startswith("1 uploads, 2 questions (1 answered, 2245 tokens in")
    emulator.books.reset()
    assert (emulator.books.uploads, emulator.books.questions, emulator.books.by_status) == ([], [], {})


def test_the_latency_is_that_of_answers_and_not_of_refusals():
    with Emulator(EmulatorOptions(latency_s=0.2)) as emulator, connect() as http:
        api = Api(http, emulator.url)
        assert api.ask().elapsed.total_seconds() >= 0.2
        assert api.ask(model="gpt-5").elapsed.total_seconds() < 0.2


def test_the_jitter_of_answers_is_drawn_from_the_seed():
    draws = random.Random(1)
    with Emulator(EmulatorOptions(jitter_s=0.2, seed=1)) as emulator, connect() as http:
        for _ in range(3):  # 0.03 s, 0.17 s, 0.15 s
            assert Api(http, emulator.url).ask().elapsed.total_seconds() >= draws.uniform(0, 0.2)


def test_a_question_tells_when_it_came_in_and_not_when_it_was_answered():
    with Emulator(EmulatorOptions(latency_s=0.2)) as emulator, connect() as http:
        before_s = time.monotonic()
        Api(http, emulator.url).ask()
        [question] = emulator.books.questions
        assert before_s <= question.at_s <= time.monotonic() - 0.2


def test_a_client_that_leaves_before_the_answer_is_in_the_books():
    with Emulator(EmulatorOptions(latency_s=30)) as emulator, connect() as http:
        http.timeout = httpx.Timeout(0.2)
        with pytest.raises(httpx.ReadTimeout):
            Api(http, emulator.url).ask()
        http.close()
    assert [question.status for question in emulator.books.questions] == [499]


def test_a_taken_port_is_an_error_of_start(emulator: Emulator):
    port = int(emulator.url.rpartition(":")[2])
    with pytest.raises(OSError, match="address already in use"):
        Emulator(EmulatorOptions(port=port)).start()


def test_a_broken_upload_leaves_nothing_behind(api: Api, emulator: Emulator, caplog: pytest.LogCaptureFixture):
    url = api.start(3000).headers["X-Goog-Upload-URL"]
    host, port = emulator.url.removeprefix("http://").split(":")
    path = url.removeprefix(emulator.url)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3000\r\nX-Goog-Upload-Command: upload, finalize\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}X-Goog-Upload-Offset: 0\r\n\r\n".encode() + bytes(1000))
    assert api.send(url, "query").headers["X-Goog-Upload-Size-Received"] == "0"
    assert api.send(url, "upload, finalize", bytes(3000)).status_code == 200
    assert len(emulator.books.uploads) == 1
    assert caplog.records == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_served_for_ever_ends_with_a_signal_and_the_totals(number: signal.Signals):
    code = "from pixscribe.emulator import EmulatorOptions, serve_forever; serve_forever(EmulatorOptions())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        assert request("GET", f"{url}/v1beta/files?key=k").json() == {}
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert errors.decode() == (
        "0 uploads, 0 questions (0 answered, 0 tokens in, 0 out); calls: files.list 1; statuses: 200 x 1\n"
    )
