"""Batches of the emulator: Google's own SDK says what is right, plain HTTP what is refused and what goes wrong."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types
from PIL import Image

from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.emulator.faults import FAULTS, class_of
from pixscribe.emulator.spool import Spool
from pixscribe.emulator.vision import BACKGROUND, PALETTE
from tests.conftest import BOXES

MODEL = "gemini-3.5-flash"
PROMPT = "Detect the objects."
HOUR_S = 3600
OVER = {f"BATCH_STATE_{state}" for state in ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:google", "ignore::UserWarning:google")


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Api:
    """The calls that a batch needs, as they come."""

    def __init__(self, emulator: Emulator, key: str = "k") -> None:
        self.emulator, self.url, self.others = emulator, emulator.url, list[Api]()
        # there is no TLS here, and loading certificates takes 30 ms
        self.http = httpx.Client(timeout=20, verify=False, headers={"x-goog-api-key": key})

    def of_another_project(self) -> "Api":
        self.others.append(Api(self.emulator, "other"))
        return self.others[-1]

    def close(self) -> None:
        for api in (self, *self.others):
            api.http.close()

    def upload(self, data: bytes, mime_type: str = "application/jsonl", **file: Any) -> dict[str, Any]:
        headers = {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(len(data)),
            "X-Goog-Upload-Header-Content-Type": mime_type,
        }
        started = self.http.post(f"{self.url}/upload/v1beta/files", headers=headers, json={"file": file})
        headers = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "0"}
        answer = self.http.post(started.headers["X-Goog-Upload-URL"], headers=headers, content=data)
        return dict(answer.json()["file"])

    def create(self, batch: Any, model: str = MODEL) -> httpx.Response:
        return self.post({"batch": batch}, model)

    def post(self, body: Any, model: str = MODEL) -> httpx.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"{self.url}/v1beta/models/{model}:batchGenerateContent"
        return self.http.post(url, content=data, headers={"Content-Type": "application/json"})

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self.http.get(f"{self.url}/v1beta/{path}", params=query)

    def cancel(self, name: str) -> httpx.Response:
        return self.http.post(f"{self.url}/v1beta/{name}:cancel")

    def delete(self, name: str) -> httpx.Response:
        return self.http.delete(f"{self.url}/v1beta/{name}")

    def start(self, *requests: dict[str, Any]) -> str:
        """The name of a job whose requests came in a file, with the keys k0, k1, ..."""
        answer = self.create(from_file(self.upload(to_jsonl(requests))["name"]))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["name"])

    def state(self, name: str) -> str:
        return str(self.get(name).json()["metadata"]["state"])

    def finish(self, name: str) -> dict[str, Any]:
        """The job when it is over."""
        for _ in range(10_000):
            job: dict[str, Any] = self.get(name).json()
            if job.get("error", {}).get("code") == 404 or job["metadata"]["state"] in OVER:
                return job
        raise AssertionError(job)

    def output(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self.get(job["response"]["responsesFile"] + ":download", alt="media")
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    def run(self, *requests: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The lines of the output, by key."""
        return {line["key"]: line for line in self.output(self.finish(self.start(*requests)))}


def to_jsonl(requests: Any) -> bytes:
    lines = [{"key": f"k{number}", "request": request} for number, request in enumerate(requests)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def from_file(name: str) -> dict[str, Any]:
    return {"displayName": "job", "inputConfig": {"fileName": name}}


def inlined(*entries: Any) -> dict[str, Any]:
    return {"displayName": "job", "inputConfig": {"requests": {"requests": list(entries)}}}


def asking(text: str = PROMPT, *parts: dict[str, Any], **config: Any) -> dict[str, Any]:
    """A request of the model that answers boxes."""
    config = {"responseMimeType": "application/json", "responseJsonSchema": BOXES, **config}
    return {"contents": [{"role": "user", "parts": [{"text": text}, *parts]}], "generationConfig": config}


def file_part(file: dict[str, Any]) -> dict[str, Any]:
    return {"fileData": {"mimeType": file["mimeType"], "fileUri": file["uri"]}}


def text_of(line: dict[str, Any]) -> str:
    return str(line["response"]["candidates"][0]["content"]["parts"][0]["text"])


def draw(colour: str) -> bytes:
    """100 x 80 px, a square of that colour from (10, 20) to (50, 60)."""
    image, data = Image.new("RGB", (100, 80), BACKGROUND), io.BytesIO()
    image.paste(PALETTE[colour], (10, 20, 50, 60))
    image.save(data, "PNG")
    return data.getvalue()


def square(colour: str) -> dict[str, Any]:
    return {"boxes": [{"box_2d": [250, 100, 750, 500], "label": f"{colour} square"}]}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def serve(clock: Clock) -> Iterator[Callable[..., Api]]:
    """Start an emulator with these options."""
    running: list[Api] = []

    def start(**options: Any) -> Api:
        emulator = Emulator(EmulatorOptions(**options), clock=clock)
        emulator.start()
        running.append(Api(emulator))
        return running[-1]

    yield start
    for api in running:
        api.close()
        api.emulator.stop()


@pytest.fixture
def emulator(clock: Clock) -> Iterator[Emulator]:
    with Emulator(clock=clock) as running:
        yield running


@pytest.fixture
def api(emulator: Emulator) -> Iterator[Api]:
    api = Api(emulator)
    yield api
    api.close()


@pytest.fixture(params=["v1beta", None], ids=["v1beta", "default-version"])
def client(emulator: Emulator, request: pytest.FixtureRequest) -> Iterator[genai.Client]:
    options = types.HttpOptions(base_url=emulator.url, api_version=request.param)
    client = genai.Client(api_key="k", http_options=options)
    yield client
    client.close()


def wait(client: genai.Client, job: types.BatchJob) -> types.BatchJob:
    for _ in range(10_000):
        job = client.batches.get(name=job.name or "")
        if job.done:
            return job
    raise AssertionError(job)


# --- Google's SDK


def test_inline_requests_are_answered_as_they_would_be_at_once(client: genai.Client):
    config: Any = {"response_mime_type": "application/json", "response_json_schema": BOXES}
    pictures = {colour: types.Part.from_bytes(data=draw(colour), mime_type="image/png") for colour in ("red", "blue")}
    src: Any = [
        {"contents": [PROMPT, picture], "config": config, "metadata": {"key": colour}}
        for colour, picture in pictures.items()
    ]
    job = client.batches.create(model=MODEL, src=src, config={"display_name": "job"})
    assert (job.state, job.display_name, job.model) == (types.JobState.JOB_STATE_PENDING, "job", f"models/{MODEL}")
    job = wait(client, job)
    assert job.state is types.JobState.JOB_STATE_SUCCEEDED
    assert job.dest is not None
    answers = {(line.metadata or {})["key"]: line.response for line in job.dest.inlined_responses or []}
    for colour, picture in pictures.items():
        contents: Any = [PROMPT, picture]
        at_once = client.models.generate_content(model=MODEL, contents=contents, config=config)
        batched = answers[colour]
        assert batched is not None
        assert json.loads(batched.text or "") == square(colour)
        assert (batched.text, batched.usage_metadata) == (at_once.text, at_once.usage_metadata)


def test_a_file_of_requests_comes_back_as_a_file_of_answers(client: genai.Client, emulator: Emulator):
    pictures = {
        colour: client.files.upload(file=io.BytesIO(draw(colour)), config={"mime_type": "image/png"})
        for colour in ("red", "blue", "green")
    }
    lines = [
        {"key": colour, "request": asking(PROMPT, {"file_data": {"mime_type": "image/png", "file_uri": picture.uri}})}
        for colour, picture in pictures.items()
    ]
    source = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
    uploaded = client.files.upload(file=source, config={"display_name": "requests", "mime_type": "jsonl"})
    job = wait(client, client.batches.create(model=MODEL, src=uploaded.name or "", config={"display_name": "job"}))
    assert job.dest is not None
    content = client.files.download(file=job.dest.file_name or "")
    answers = [json.loads(line) for line in content.splitlines()]
    assert {line["key"]: json.loads(text_of(line)) for line in answers} == {c: square(c) for c in pictures}
    assert [line["key"] for line in answers] == ["blue", "red", "green"]
    documented = f"{emulator.url}/download/v1beta/{job.dest.file_name}:download?alt=media"
    assert httpx.get(documented, headers={"x-goog-api-key": "k"}, verify=False).content == content


def test_an_error_of_a_request_is_read_by_the_sdk(client: genai.Client):
    thinking: Any = {"thinking_config": {"thinking_level": "MINIMAL"}}
    src: Any = [{"contents": "hi", "config": thinking}]
    job = wait(client, client.batches.create(model="gemini-3.8-flash", src=src, config={"display_name": "job"}))
    assert job.state is types.JobState.JOB_STATE_SUCCEEDED
    assert job.dest is not None
    [line] = job.dest.inlined_responses or []
    assert line.response is None
    assert line.error is not None
    assert line.error.code == 3
    assert "not supported" in (line.error.message or "")


def test_jobs_are_listed_over_pages_cancelled_and_deleted(client: genai.Client, emulator: Emulator):
    emulator.script("batch_stuck", "batch_stuck", "batch_stuck")
    src: Any = [{"contents": "hi"}]
    for number in range(3):
        client.batches.create(model=MODEL, src=src, config={"display_name": f"job {number}"})
    jobs = list(client.batches.list(config={"page_size": 2}))
    assert [job.display_name for job in jobs] == ["job 2", "job 1", "job 0"]
    client.batches.cancel(name=jobs[0].name or "")
    assert client.batches.get(name=jobs[0].name or "").state is types.JobState.JOB_STATE_CANCELLED
    client.batches.delete(name=jobs[1].name or "")
    with pytest.raises(errors.ClientError) as caught:
        client.batches.get(name=jobs[1].name or "")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    assert [job.name for job in client.batches.list()] == [jobs[0].name, jobs[2].name]


def test_what_is_refused_is_an_error_of_the_sdk(client: genai.Client):
    with pytest.raises(errors.ClientError) as caught:
        client.batches.create(model=MODEL, src="files/none", config={"display_name": "job"})
    assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")


# --- the operation


def test_a_job_is_an_operation_whose_numbers_are_strings(serve: Callable[..., Api], clock: Clock):
    api = serve(batch_latency_s=100)
    file = api.upload(to_jsonl([asking(), asking()]))["name"]
    job = api.create({**from_file(file), "priority": 3}).json()
    metadata = {
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
        "model": f"models/{MODEL}",
        "displayName": "job",
        "createTime": "2027-01-15T08:00:00.000000Z",
        "updateTime": "2027-01-15T08:00:00.000000Z",
        "batchStats": {"requestCount": "2", "pendingRequestCount": "2"},
        "state": "BATCH_STATE_PENDING",
        "name": job["name"],
        "inputConfig": {"fileName": file},
        "priority": "3",
    }
    assert job == {"name": job["name"], "metadata": metadata}
    clock.now_s += 100
    output = {"responsesFile": job["name"].replace("batches/", "files/batch-")}
    ended = {
        "state": "BATCH_STATE_SUCCEEDED",
        "updateTime": "2027-01-15T08:01:40.000000Z",
        "endTime": "2027-01-15T08:01:40.000000Z",
        "batchStats": {"requestCount": "2", "successfulRequestCount": "2"},
        "output": output,
    }
    kind = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatchOutput"
    assert api.finish(job["name"]) == {
        "name": job["name"],
        "metadata": {**metadata, **ended},
        "done": True,
        "response": {"@type": kind, **output},
    }


def test_a_job_waits_then_runs_then_is_over(serve: Callable[..., Api], clock: Clock):
    api = serve(batch_latency_s=100)
    name = api.start(asking())
    states = []
    for _ in range(3):
        clock.now_s += 33
        states.append(api.state(name))
    assert states == ["BATCH_STATE_PENDING", "BATCH_STATE_RUNNING", "BATCH_STATE_RUNNING"]
    clock.now_s += 1
    assert api.finish(name)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"


def test_inline_responses_are_not_in_a_list(api: Api):
    job = api.create(inlined({"request": asking()}, {"request": asking(), "metadata": {"key": "b", "page": 7}})).json()
    job = api.finish(job["name"])
    lines = job["response"]["inlinedResponses"]["inlinedResponses"]
    assert [line.get("metadata") for line in lines] == [{"key": "b", "page": 7}, None]
    assert job["metadata"]["output"] == {"inlinedResponses": job["response"]["inlinedResponses"]}
    [listed] = api.get("batches").json()["operations"]
    assert (listed["done"], "output" in listed["metadata"], listed["response"].keys()) == (True, False, {"@type"})


def test_no_jobs_are_an_empty_object(api: Api):
    assert api.get("batches").json() == {}
    assert api.get("batches", pageSize=0).status_code == 400
    assert api.get("batches", pageToken="?").status_code == 400


def test_lines_come_in_another_order_than_they_went(api: Api):
    keys = [line["key"] for line in api.output(api.finish(api.start(*[asking()] * 5)))]
    assert keys == ["k1", "k3", "k0", "k2", "k4"]


# --- what is refused


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"{", "Invalid JSON payload", id="no-json"),
        pytest.param({}, "batch", id="nothing"),
        pytest.param({"batch": {}, "requests": []}, 'Unknown name "requests"', id="unknown"),
        pytest.param({"batch": []}, "batch", id="a-list"),
        pytest.param({"batch": {"inputConfig": {"fileName": "files/a"}}}, "displayName", id="no-name"),
        pytest.param({"batch": {"displayName": "job"}}, "inputConfig", id="no-input"),
        pytest.param({"batch": {**from_file("files/a"), "state": "x"}}, 'Unknown name "state"', id="output-only"),
        pytest.param({"batch": {**from_file("files/a"), "display_name": "x"}}, "given twice", id="twice"),
        pytest.param({"batch": {**from_file("files/a"), "priority": "high"}}, "priority", id="priority"),
        pytest.param({"batch": {**from_file("files/a"), "model": "models/gemini-3.8-flash"}}, "model", id="two-models"),
        pytest.param({"batch": from_file("a")}, "files/", id="no-prefix"),
        pytest.param({"batch": {"displayName": "j", "inputConfig": {}}}, "oneof", id="no-source"),
        pytest.param({"batch": {"displayName": "j", "inputConfig": {"fileName": "files/a", "requests": {}}}}, "oneof",
                     id="two-sources"),
        pytest.param({"batch": {"displayName": "j", "inputConfig": {"requests": [{}]}}}, "expected an object",
                     id="no-wrapper"),
        pytest.param({"batch": inlined()}, "0 entries", id="no-requests"),
        pytest.param({"batch": inlined({})}, "request", id="no-request"),
        pytest.param({"batch": inlined({"request": asking(), "key": "k"})}, 'Unknown name "key"', id="key-outside"),
        pytest.param({"batch": inlined({"request": asking(), "metadata": "k"})}, "metadata", id="metadata"),
        pytest.param({"batch": inlined({"request": asking()}, {"request": {"contents": []}})},
                     "batch.inputConfig.requests.requests[1].request.contents", id="no-contents"),
        pytest.param({"batch": inlined({"request": {**asking(), "serviceTier": "flex"}})}, "serviceTier", id="tier"),
        pytest.param({"batch": inlined({"request": asking(maxOutputTokens=0)})}, "maxOutputTokens", id="no-tokens"),
        pytest.param(b'{"batch": "' + b"x" * 20_971_520 + b'"}', "exceeds the limit", id="20-mib"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_in_the_reference_is_refused(api: Api, body: Any, words: str):
    error = api.post(body).json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert words in error["message"]
    assert api.get("batches").json() == {}


GOOD_LINE = to_jsonl([asking()])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "no requests", id="empty"),
        pytest.param(b"{\n", "Error on line 1: invalid JSON, near column", id="no-json"),
        pytest.param(GOOD_LINE + b"[]\n", "Error on line 2: ", id="a-list"),
        pytest.param(GOOD_LINE + b"\n", "Error on line 2: invalid JSON", id="blank"),
        pytest.param(b"\xef\xbb\xbf" + GOOD_LINE, "Error on line 1: invalid JSON", id="byte-order-mark"),
        pytest.param(b'{"key": "\xff", "request": {}}', "Error on line 1: invalid JSON", id="latin-1"),
        pytest.param(json.dumps({"request": asking()}).encode(), "'key'", id="no-key"),
        pytest.param(json.dumps({"key": "", "request": asking()}).encode(), "key", id="empty-key"),
        pytest.param(json.dumps({"key": 7, "request": asking()}).encode(), "key", id="number-as-key"),
        pytest.param(json.dumps({"key": "a"}).encode(), "'request'", id="no-request"),
        pytest.param(json.dumps({"custom_id": "a", "request": asking()}).encode(), '"custom_id"', id="unknown"),
        pytest.param(2 * GOOD_LINE, "Error on line 2: The key 'k0'", id="same-key"),
        pytest.param(to_jsonl([asking(), {**asking(), "thinking_config": {}}]), "Error on line 2: ", id="misplaced"),
        pytest.param(to_jsonl([{**asking(), "service_tier": "flex"}]), "serviceTier", id="tier"),
        pytest.param(b'{"key": "' + b"x" * 20_971_520 + b'"}', "exceeds the limit", id="20-mib"),
    ],
)
def test_one_bad_line_refuses_the_file(api: Api, content: bytes, words: str):
    error = api.create(from_file(api.upload(content)["name"])).json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert words in error["message"]


def test_each_bad_line_is_named_up_to_20_of_them(api: Api):
    lines = api.create(from_file(api.upload(b"?\n" * 30)["name"])).json()["error"]["message"].splitlines()
    assert [line.split(":")[0] for line in lines] == [f"Error on line {number}" for number in range(1, 21)]


def test_what_is_not_emulated_says_so(api: Api):
    with_tools = to_jsonl([{**asking(), "tools": []}])
    for batch in (from_file(api.upload(with_tools)["name"]), inlined({"request": {**asking(), "tools": []}})):
        assert api.create(batch).json()["error"]["status"] == "UNIMPLEMENTED"
    assert api.create({**from_file("files/a"), "webhookConfig": {}}).status_code == 501


@pytest.mark.parametrize("mime_type", ["application/jsonl", "text/plain", "jsonl", "application/json"])
def test_requests_may_be_uploaded_as_any_of_these(api: Api, mime_type: str):
    answer = api.create(from_file(api.upload(GOOD_LINE, mime_type)["name"]))
    assert api.output(api.finish(answer.json()["name"]))[0]["key"] == "k0"


@pytest.mark.parametrize("mime_type", ["text/csv", "image/png"])
def test_other_files_are_no_requests(api: Api, mime_type: str):
    answer = api.create(from_file(api.upload(GOOD_LINE, mime_type)["name"]))
    assert answer.json()["error"]["message"] == f"Unsupported MIME type: {mime_type}"


def test_a_file_that_is_not_ready_is_refused(api: Api, emulator: Emulator):
    emulator.script("upload_stuck")
    answer = api.create(from_file(api.upload(GOOD_LINE)["name"]))
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "FAILED_PRECONDITION")


def test_the_file_of_another_project_is_not_there(api: Api):
    name = api.upload(GOOD_LINE)["name"]
    assert api.of_another_project().create(from_file(name)).json()["error"]["status"] == "PERMISSION_DENIED"


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gpt-5"])
def test_a_model_that_is_not_offered_is_not_found(api: Api, model: str):
    answer = api.create(inlined({"request": asking()}), model)
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


def test_no_key_no_job(emulator: Emulator):
    with httpx.Client(verify=False) as http:
        url = f"{emulator.url}/v1beta/models/{MODEL}:batchGenerateContent"
        assert http.post(url, json={}).status_code == 403
        assert http.get(f"{emulator.url}/v1beta/batches/x").status_code == 403
        assert http.post(url, json={}, headers={"x-goog-api-key": "bad"}).status_code == 400


def test_a_job_is_only_there_for_its_project(api: Api):
    name, other = api.start(asking()), api.of_another_project()
    for answer in (other.get(name), other.cancel(name), other.delete(name), api.get("batches/none")):
        assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")
    assert other.get("batches").json() == {}


def test_the_101st_job_at_once_is_refused(api: Api, emulator: Emulator):
    emulator.always("batch_stuck")
    names = [api.create(inlined({"request": asking()})).json()["name"] for _ in range(100)]
    answer = api.create(inlined({"request": asking()}))
    assert (answer.status_code, answer.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert api.of_another_project().create(inlined({"request": asking()})).status_code == 200
    api.cancel(names[0])
    assert api.create(inlined({"request": asking()})).status_code == 200


def test_only_so_many_tokens_may_wait(serve: Callable[..., Api], clock: Clock):
    # 20 characters are 5 tokens
    api, request = serve(batch_tokens=11, batch_latency_s=10), {"request": asking("x" * 20)}
    assert api.create(inlined(request, request, request)).status_code == 429
    name = api.create(inlined(request, request)).json()["name"]
    assert api.create(inlined(request)).status_code == 429
    assert api.create(inlined(request), "gemini-3.8-flash").status_code == 200
    clock.now_s += 10
    api.finish(name)
    assert api.create(inlined(request, request)).status_code == 200


# --- requests and their files


def test_both_ways_to_write_a_name_are_one(api: Api):
    picture = {"inline_data": {"mime_type": "image/png", "data": base64.b64encode(draw("red")).decode()}}
    request = {
        "contents": [{"parts": [{"text": PROMPT}, picture]}],
        "generation_config": {"response_mime_type": "application/json", "response_json_schema": BOXES},
    }
    batch = {"display_name": "job", "input_config": {"requests": {"requests": [{"request": request}]}}}
    job = api.finish(api.create(batch).json()["name"])
    assert json.loads(text_of(job["response"]["inlinedResponses"]["inlinedResponses"][0])) == square("red")
    batch = {"display_name": "job", "input_config": {"file_name": api.upload(to_jsonl([request]))["name"]}}
    job = api.finish(api.create(batch).json()["name"])
    assert json.loads(text_of(api.output(job)[0])) == square("red")


def test_a_request_that_cannot_be_answered_is_a_line_and_the_job_succeeds(api: Api):
    nowhere = {"fileData": {"mimeType": "image/png", "fileUri": f"{api.url}/v1beta/files/none"}}
    broken = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}
    requests = asking(PROMPT, nowhere), asking(PROMPT, broken), asking(" "), asking(thinkingConfig={"thinkingBudget": 0,
        "thinkingLevel": "LOW"}), {**asking(), "model": "models/gemini-3.8-flash"}  # fmt: skip
    job = api.finish(api.start(*requests))
    assert job["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    assert job["metadata"]["batchStats"] == {"requestCount": "5", "failedRequestCount": "5"}
    lines = {line["key"]: line["error"] for line in api.output(job)}
    assert [lines[f"k{number}"]["code"] for number in range(5)] == [7, 3, 3, 3, 3]
    assert lines["k0"]["message"].startswith("You do not have permission to access the File none")


def test_images_must_live_until_the_job_is_run(serve: Callable[..., Api], clock: Clock):
    api = serve(batch_latency_s=2 * HOUR_S)
    old = api.upload(draw("red"), "image/png")
    clock.now_s += 47 * HOUR_S
    new = api.upload(draw("blue"), "image/png")
    name = api.start(asking(PROMPT, file_part(old)), asking(PROMPT, file_part(new)))
    clock.now_s += 2 * HOUR_S
    lines = {line["key"]: line for line in api.output(api.finish(name))}
    assert lines["k0"]["error"]["code"] == 7
    assert json.loads(text_of(lines["k1"])) == square("blue")


def test_a_job_whose_file_was_deleted_too_early_fails(serve: Callable[..., Api], clock: Clock):
    api = serve(batch_latency_s=100)
    file = api.upload(GOOD_LINE)["name"]
    name = api.create(from_file(file)).json()["name"]
    api.delete(file)
    clock.now_s += 100
    job = api.finish(name)
    assert (job["metadata"]["state"], job["error"]["code"]) == ("BATCH_STATE_FAILED", 7)


def test_a_large_file_comes_in_chunks_and_goes_out_in_pieces(serve: Callable[..., Api]):
    api = serve(look=False)
    requests = [asking(f"{PROMPT} {'x' * 9000}", maxOutputTokens=8192) for _ in range(1000)]
    with genai.Client(api_key="k", http_options=types.HttpOptions(base_url=api.url)) as client:
        # 9.6 MB: a chunk of 8 MiB and a rest
        file = client.files.upload(file=io.BytesIO(to_jsonl(requests)), config={"mime_type": "jsonl"})
        job = wait(client, client.batches.create(model=MODEL, src=file.name or "", config={"display_name": "job"}))
        assert job.dest is not None
        content = client.files.download(file=job.dest.file_name or "")
    assert sorted(json.loads(line)["key"] for line in content.splitlines()) == sorted(f"k{n}" for n in range(1000))


def test_an_upload_that_broke_off_leaves_nothing_in_the_requests(api: Api, emulator: Emulator):
    emulator.script("upload_half")
    content = to_jsonl([asking()] * 3)
    headers = {
        "X-Goog-Upload-Protocol": "resumable",
        "X-Goog-Upload-Command": "start",
        "X-Goog-Upload-Header-Content-Type": "application/jsonl",
    }
    url = api.http.post(f"{api.url}/upload/v1beta/files", headers=headers, json={}).headers["X-Goog-Upload-URL"]
    send = {"X-Goog-Upload-Command": "upload, finalize"}
    with pytest.raises(httpx.TransportError):
        api.http.post(url, headers={**send, "X-Goog-Upload-Offset": "0"}, content=content)
    # as long as what was kept, and less than what is refused here
    kept = len(content) // 2
    assert api.http.post(url, headers={**send, "X-Goog-Upload-Offset": "0"}, content=content).status_code == 400
    answer = api.http.post(url, headers={**send, "X-Goog-Upload-Offset": str(kept)}, content=content[kept:])
    assert len(api.output(api.finish(api.create(from_file(answer.json()["file"]["name"])).json()["name"]))) == 3


# --- the output


def test_the_output_is_a_file_that_files_do_not_find(api: Api):
    name = api.start(asking())
    job = api.finish(name)
    output = job["response"]["responsesFile"]
    assert (len(name), output) == (len("batches/") + 36, name.replace("batches/", "files/batch-"))
    for answer in (api.get(output), api.delete(output)):
        assert answer.status_code == 400
        assert "cannot be more than 40 characters" in answer.json()["error"]["message"]
    listed = api.get("files").json()["files"][0]
    content = api.get(f"{output}:download", alt="media").content
    assert (listed["name"], listed["source"], listed["sizeBytes"]) == (output, "GENERATED", str(len(content)))
    assert base64.b64decode(listed["sha256Hash"]).decode() == hashlib.sha256(content).hexdigest()
    assert api.http.get(listed["downloadUri"]).content == content


def test_the_output_is_given_to_its_project_as_media_for_48_hours(api: Api, clock: Clock):
    output = api.finish(api.start(asking()))["response"]["responsesFile"] + ":download"
    assert api.get(output).status_code == 400
    assert api.of_another_project().get(output, alt="media").status_code == 403
    clock.now_s += 48 * HOUR_S - 1
    assert api.get(output, alt="media").headers["Content-Type"] == "application/octet-stream"
    clock.now_s += 1
    assert api.get(output, alt="media").json()["error"]["status"] == "PERMISSION_DENIED"


def test_uploaded_requests_cannot_be_read_back(api: Api):
    name = api.upload(GOOD_LINE)["name"]
    for url in (f"{api.url}/v1beta/{name}:download", f"{api.url}/download/v1beta/{name}:download"):
        assert api.http.get(url, params={"alt": "media"}).status_code == 400


def test_the_output_takes_room_in_the_storage(serve: Callable[..., Api]):
    # the requests are 440 bytes, and without their answer there would be room for 700 more
    api = serve(storage_bytes=440 + 700)
    api.output(api.finish(api.start(asking())))
    answer = api.http.post(
        f"{api.url}/upload/v1beta/files",
        headers={"X-Goog-Upload-Command": "start", "X-Goog-Upload-Header-Content-Length": "700"},
    )
    assert answer.status_code == 429


def test_the_results_of_inline_requests_stay_for_six_weeks(api: Api, clock: Clock):
    name = api.create(inlined({"request": asking()})).json()["name"]
    api.finish(name)
    clock.now_s += 42 * 24 * HOUR_S - 1
    assert "inlinedResponses" in api.get(name).json()["response"]
    clock.now_s += 1
    assert api.get(name).status_code == 404


# --- the ends of a job


def test_a_cancelled_job_gives_nothing_out(serve: Callable[..., Api]):
    api = serve(batch_latency_s=100)
    name = api.start(asking())
    assert api.cancel(name).json() == {}
    job = api.get(name).json()
    assert (job["metadata"]["state"], job["done"], job["error"]["code"]) == ("BATCH_STATE_CANCELLED", True, 1)
    assert "response" not in job
    assert "output" not in job["metadata"]
    assert api.cancel(name).json()["error"]["status"] == "FAILED_PRECONDITION"


def test_a_job_that_is_over_cannot_be_cancelled(api: Api):
    name = api.start(asking())
    api.finish(name)
    assert api.cancel(name).status_code == 400
    assert api.state(name) == "BATCH_STATE_SUCCEEDED"


def test_a_job_that_takes_longer_than_48_hours_expires(serve: Callable[..., Api], clock: Clock):
    api = serve(batch_latency_s=50 * HOUR_S)
    name = api.start(asking())
    clock.now_s += 48 * HOUR_S
    job = api.get(name).json()
    assert (job["metadata"]["state"], job["error"]["code"], "response" in job) == ("BATCH_STATE_EXPIRED", 4, False)


def test_a_deleted_job_takes_its_output_with_it(api: Api):
    name = api.start(asking())
    output = api.finish(name)["response"]["responsesFile"]
    assert api.delete(name).json() == {}
    assert api.get(name).status_code == 404
    assert api.get(f"{output}:download", alt="media").status_code == 403


def test_to_delete_a_job_is_not_to_stop_it(serve: Callable[..., Api]):
    api = serve(batch_latency_s=100)
    api.delete(api.start(asking()))
    while not api.emulator.books.batch_ends:
        api.get("batches")
    assert api.emulator.books.summary()["batches"]["lost_answers"] == 1
    assert len(api.get("files").json()["files"]) == 1  # that of the requests


def test_an_emulator_may_stop_in_the_middle_of_a_job(serve: Callable[..., Api]):
    api = serve(look=False)
    assert api.state(api.start(*[asking()] * 5000)) == "BATCH_STATE_RUNNING"
    api.emulator.stop()
    assert len(api.emulator.books.batch_questions) < 5000


# --- faults


def test_a_creation_that_is_refused_makes_no_job(api: Api, emulator: Emulator):
    emulator.script("batch_429", "batch_503", "batch_ok")
    refused = [api.create(inlined({"request": asking()})) for _ in range(2)]
    assert [answer.status_code for answer in refused] == [429, 503]
    assert [detail["@type"] for detail in refused[0].json()["error"]["details"]] == [
        "type.googleapis.com/google.rpc.Help"
    ]
    assert api.get("batches").json() == {}
    assert api.create(inlined({"request": asking()})).status_code == 200


def test_a_job_may_be_there_although_its_creation_was_not_answered(api: Api, emulator: Emulator):
    emulator.script("batch_lost_create")
    with pytest.raises(httpx.TransportError):
        api.create({**inlined({"request": asking()}), "displayName": "run 7, part 3"})
    [job] = api.get("batches").json()["operations"]
    assert job["metadata"]["displayName"] == "run 7, part 3"
    assert api.finish(job["name"])["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"


def test_a_stuck_job_waits_until_it_expires(api: Api, emulator: Emulator, clock: Clock):
    emulator.script("batch_stuck")
    name = api.start(asking())
    clock.now_s += 48 * HOUR_S - 1
    assert api.state(name) == "BATCH_STATE_PENDING"
    clock.now_s += 1
    assert api.state(name) == "BATCH_STATE_EXPIRED"
    assert emulator.books.answered_in_batches() == []


@pytest.mark.parametrize(
    ("fault", "state", "code", "billed"),
    [
        ("batch_failed", "BATCH_STATE_FAILED", 13, 0),
        ("batch_expired", "BATCH_STATE_EXPIRED", 4, 5),
        ("batch_cancelled", "BATCH_STATE_CANCELLED", 1, 5),
    ],
)
def test_what_a_job_answered_before_its_end_is_billed_and_lost(
    api: Api, emulator: Emulator, fault: str, state: str, code: int, billed: int
):
    emulator.script(fault)
    job = api.finish(api.start(*[asking()] * 10))
    assert (job["metadata"]["state"], job["error"]["code"], "response" in job) == (state, code, False)
    assert int(job["metadata"]["batchStats"].get("successfulRequestCount", 0)) == billed
    assert len(emulator.books.answered_in_batches()) == emulator.books.lost_answers == billed


def test_a_job_may_vanish(api: Api, emulator: Emulator):
    emulator.script("batch_gone")
    name = api.start(*[asking()] * 10)
    assert api.finish(name)["error"]["status"] == "NOT_FOUND"
    assert api.get("batches").json() == {}
    assert emulator.books.batch_ends == {"GONE": 1}


def test_to_cancel_is_no_promise(serve: Callable[..., Api], clock: Clock):
    api = serve(batch_latency_s=100)
    api.emulator.script("batch_cancel_ignored")
    name = api.start(asking())
    assert api.cancel(name).json() == {}
    clock.now_s += 100
    assert api.finish(name)["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"


def test_the_first_look_may_fail(api: Api, emulator: Emulator):
    emulator.script("batch_look_503")
    name = api.start(asking())
    assert api.get(name).status_code == 503
    assert api.finish(name)["done"]


@pytest.mark.parametrize(("fault", "status"), [("batch_file_503", 503), ("batch_file_403", 403)])
def test_the_first_download_may_be_refused(api: Api, emulator: Emulator, fault: str, status: int):
    emulator.script(fault)
    job = api.finish(api.start(asking()))
    assert api.get(job["response"]["responsesFile"] + ":download", alt="media").status_code == status
    assert len(api.output(job)) == 1


def test_the_first_download_may_break_off(api: Api, emulator: Emulator):
    emulator.script("batch_file_cut")
    job = api.finish(api.start(asking()))
    with pytest.raises(httpx.TransportError):
        api.output(job)
    assert len(api.output(job)) == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [("batch_line_500", 13), ("batch_line_503", 14), ("batch_line_429", 8), ("batch_line_400", 3)],
)
def test_an_error_line_has_a_number_of_grpc_and_is_not_billed(api: Api, emulator: Emulator, fault: str, code: int):
    emulator.script(fault)
    lines = api.run(asking(), asking())
    assert lines["k1"].keys() == {"key", "error"}
    assert lines["k1"]["error"]["code"] == code
    assert lines["k0"].keys() == {"key", "response"}
    assert [question.fault for question in emulator.books.batch_questions] == [fault, None]
    assert len(emulator.books.answered_in_batches()) == 1


def test_lines_may_be_lost_or_come_twice_or_say_nothing(api: Api, emulator: Emulator):
    emulator.script("batch_line_lost", "batch_line_twice", "batch_line_bare")
    lines = api.output(api.finish(api.start(*[asking()] * 4)))
    # asked in the order k1, k3, k0, k2
    assert [line["key"] for line in lines] == ["k3", "k3", "k0", "k2"]
    assert lines[2] == {"key": "k0"}
    assert len(emulator.books.answered_in_batches()) == 4


def test_a_json_schema_may_be_answered_with_nothing_in_it(api: Api, emulator: Emulator):
    emulator.always("batch_line_json_schema")
    picture = file_part(api.upload(draw("red"), "image/png"))
    as_openapi = asking(PROMPT, picture, responseSchema={**BOXES, "type": "OBJECT"})
    del as_openapi["generationConfig"]["responseJsonSchema"]
    lines = api.run(asking(PROMPT, picture), as_openapi)
    assert json.loads(text_of(lines["k0"])) == {"boxes": []}
    assert json.loads(text_of(lines["k1"])) == square("red")


def test_every_mood_of_the_model_is_an_answer_or_an_error_in_a_batch(api: Api, emulator: Emulator):
    moods = [name for name in FAULTS if class_of(name) == "interaction" and name != "huge_answer"]
    emulator.script(*moods)
    lines = api.output(api.finish(api.start(*[asking()] * len(moods))))
    assert len(lines) == len(moods)
    said = dict(zip(moods, lines, strict=True))
    assert all(line.keys() in ({"key", "response"}, {"key", "error"}) for line in lines)
    assert said["429"]["error"]["code"] == 8
    assert said["timeout"]["error"] == {"code": 13, "message": "An internal error has occurred."}
    assert said["blocked"]["response"]["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT"}
    assert said["incomplete"]["response"]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert said["fenced"]["response"]["candidates"][0]["content"]["parts"][0]["text"].startswith("```")


def test_a_share_of_the_requests_fails(serve: Callable[..., Api]):
    api = serve(look=False, faults={"batch_line_500": 0.05})
    job = api.finish(api.start(*[asking()] * 200))
    assert job["metadata"]["batchStats"]["failedRequestCount"] == "10"
    assert sum("error" in line for line in api.output(job)) == 10


def test_every_fault_of_batches_is_tested_here():
    told = {"batch_429", "batch_503", "batch_lost_create", "batch_stuck", "batch_failed", "batch_expired"}
    told |= {"batch_cancelled", "batch_gone", "batch_cancel_ignored", "batch_look_503"}
    told |= {"batch_file_503", "batch_file_403", "batch_file_cut"}
    told |= {"batch_line_500", "batch_line_503", "batch_line_429", "batch_line_400"}
    told |= {"batch_line_lost", "batch_line_twice", "batch_line_bare", "batch_line_json_schema"}
    assert {name for name in FAULTS if class_of(name) in ("batch", "batch_line")} == told


# --- books


def test_batches_are_counted_apart_at_half_the_price(api: Api, emulator: Emulator):
    picture = file_part(api.upload(draw("red"), "image/png"))
    emulator.script("batch_line_500")
    request = asking(PROMPT, picture, thinkingConfig={"thinkingLevel": "LOW"})
    words = -(-len(text_of(api.run(request, request, request)["k0"])) // 4)
    url = f"{api.url}/v1beta/models/{MODEL}:generateContent"
    assert api.http.post(url, json=request).status_code == 200
    books = api.http.get(f"{api.url}/emulator/books").json()
    # 19 characters, an image, and 32 tokens of thought
    assert (books["questions"], books["input_tokens"]) == (1, 5 + 1120)
    assert books["batches"] == {
        "ends": {"SUCCEEDED": 1},
        "requests": 3,
        "answered": 2,
        "lost_answers": 0,
        "images": 1,
        "input_tokens": 2 * (5 + 1120),
        "output_tokens": 2 * (words + 32),
        "price_share": 0.5,
        "by_status": {"200": 2, "500": 1},
    }
    assert "in batches at half the price 3 requests (2 answered, 2250 tokens in" in emulator.books.totals()
    emulator.books.reset()
    assert emulator.books.summary()["batches"]["requests"] == 0
    assert "batches" not in emulator.books.totals().partition(";")[0]


def test_a_request_has_the_same_digest_in_a_batch(api: Api, emulator: Emulator):
    request = asking()
    data = json.dumps(request, separators=(",", ":")).encode()
    url, headers = f"{api.url}/v1beta/models/{MODEL}:generateContent", {"Content-Type": "application/json"}
    api.http.post(url, content=data, headers=headers)
    api.run(request)
    assert emulator.books.batch_questions[0].digest == emulator.books.questions[0].digest


def test_batches_are_outside_of_the_quotas(serve: Callable[..., Api]):
    api = serve(requests_per_minute=1, tokens_per_minute=1000, latency_s=3600)
    assert len(api.run(*[asking()] * 20)) == 20


# --- spools


def test_a_spool_reads_the_same_from_memory_and_from_disk():
    for size in (10, 3_000_000):
        spool = Spool()
        spool.write(b"a" * size + b"\n")
        spool.write(b"bc")
        assert list(spool.lines(10**7)) == [b"a" * size + b"\n", b"bc"]
        assert b"".join(spool.pieces(size)) == b"a" * size
        assert spool.read(size, size + 100) == b"\nbc"


def test_a_spool_forgets_what_came_after_the_place_that_is_written():
    spool = Spool()
    spool.write(b"abcdef")
    spool.write(b"X", 2)
    assert (spool.read(0, 100), spool.size_bytes) == (b"abX", 3)
    spool.cut(1)
    assert list(spool.lines(10)) == [b"a"]


def test_a_line_that_is_too_long_is_seen_by_one_byte_more():
    spool = Spool()
    spool.write(b"123456789\n12\n")
    assert list(spool.lines(5)) == [b"123456", b"789\n", b"12\n"]
