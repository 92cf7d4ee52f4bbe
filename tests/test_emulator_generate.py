"""generateContent: Google's own SDK says what is right, plain HTTP what is refused."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types
from PIL import Image
from pydantic import BaseModel

from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.emulator.faults import FAULTS, class_of
from pixscribe.emulator.vision import BACKGROUND, PALETTE
from tests.conftest import BOXES

MODEL = "gemini-3.5-flash"
PROMPT = "Detect the objects."
AS_JSON = {"response_mime_type": "application/json", "response_json_schema": BOXES}
RED_SQUARE = {"boxes": [{"box_2d": [250, 100, 750, 500], "label": "red square"}]}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:google", "ignore::UserWarning:google")


class Box(BaseModel):
    box_2d: list[int]
    label: str


class Boxes(BaseModel):
    boxes: list[Box]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture(params=["v1beta", None], ids=["v1beta", "default-version"])
def client(emulator: Emulator, request: pytest.FixtureRequest) -> Iterator[genai.Client]:
    options = types.HttpOptions(base_url=emulator.url, api_version=request.param)
    client = genai.Client(api_key="x", http_options=options)
    yield client
    client.close()


@pytest.fixture
def post(emulator: Emulator):
    """One POST as it comes: `post(body)`, or with another model or query."""
    with httpx.Client(timeout=20, verify=False, headers={"x-goog-api-key": "k"}) as http:

        def send(body: Any, model: str = MODEL, version: str = "v1beta") -> httpx.Response:
            url = f"{emulator.url}/{version}/models/{model}:generateContent"
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            return http.post(url, content=data, headers={"Content-Type": "application/json"})

        yield send


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """100 x 80 px, a red square from (10, 20) to (50, 60)."""
    image = Image.new("RGB", (100, 80), BACKGROUND)
    image.paste(PALETTE["red"], (10, 20, 50, 60))
    image.save(tmp_path / "square.png")
    return tmp_path / "square.png"


def inline(picture: Path) -> types.Part:
    return types.Part.from_bytes(data=picture.read_bytes(), mime_type="image/png")


def ask(client: genai.Client, contents: Any, **config: Any) -> types.GenerateContentResponse:
    return client.models.generate_content(
        model=MODEL, contents=contents, config=types.GenerateContentConfig.model_validate(config)
    )


def body_with(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": PROMPT}, *parts]}], **fields}


def config_with(**config: Any) -> dict[str, Any]:
    return body_with(generationConfig=config)


def json_with(**config: Any) -> dict[str, Any]:
    return config_with(responseMimeType="application/json", **config)


# --- Google's SDK


def test_an_inline_image_is_looked_at(client: genai.Client, picture: Path, emulator: Emulator):
    answer = ask(client, [PROMPT, inline(picture)], **AS_JSON)
    assert json.loads(answer.text or "") == RED_SQUARE
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason is types.FinishReason.STOP
    assert answer.model_version == MODEL
    assert len(emulator.books.answered()[0].images) == 1


def test_an_uploaded_image_is_looked_at(client: genai.Client, picture: Path):
    file = client.files.upload(file=str(picture))
    assert json.loads(ask(client, [file, PROMPT], **AS_JSON).text or "") == RED_SQUARE


async def test_the_asynchronous_client_asks_many_at_once(emulator: Emulator, picture: Path):
    options = types.HttpOptions(base_url=emulator.url, api_version="v1beta")
    client = genai.Client(api_key="x", http_options=options).aio
    config = types.GenerateContentConfig.model_validate(AS_JSON)
    contents: Any = [PROMPT, inline(picture)]
    answers = await asyncio.gather(
        *(client.models.generate_content(model=MODEL, contents=contents, config=config) for _ in range(8))
    )
    await client.aclose()
    assert [json.loads(answer.text or "") for answer in answers] == [RED_SQUARE] * 8
    assert len({answer.response_id for answer in answers}) == 8


def test_a_schema_of_classes_comes_back_parsed(client: genai.Client, picture: Path):
    answer = ask(client, [PROMPT, inline(picture)], response_mime_type="application/json", response_schema=Boxes)
    assert answer.parsed == Boxes(boxes=[Box(box_2d=[250, 100, 750, 500], label="red square")])


def test_a_schema_in_capitals_is_understood(client: genai.Client, picture: Path):
    schema = types.Schema(
        type=types.Type.OBJECT,
        properties={"caption": types.Schema(type=types.Type.STRING, nullable=True, max_length=200)},
        property_ordering=["caption"],
    )
    answer = ask(client, ["Describe.", inline(picture)], response_mime_type="application/json", response_schema=schema)
    assert json.loads(answer.text or "") == {"caption": "A picture of a red square on a plain light background."}


def test_every_setting_that_a_labeller_needs_is_taken(client: genai.Client, picture: Path):
    answer = ask(
        client,
        [PROMPT, inline(picture)],
        **AS_JSON,
        system_instruction="Answer with JSON.",
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        seed=7,
        candidate_count=1,
        max_output_tokens=8192,
        stop_sequences=["END"],
        media_resolution="MEDIA_RESOLUTION_LOW",
        thinking_config={"thinking_level": "LOW"},
        safety_settings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
    )
    usage = answer.usage_metadata
    assert usage is not None
    # 19 characters, and an image of low resolution
    assert (usage.prompt_token_count, usage.thoughts_token_count) == (5 + 280, 32)
    assert usage.total_token_count == 5 + 280 + 32 + (usage.candidates_token_count or 0)


def test_the_resolution_of_a_part_counts_before_that_of_all(client: genai.Client, picture: Path):
    part = inline(picture)
    part.media_resolution = types.PartMediaResolution(level=types.PartMediaResolutionLevel.MEDIA_RESOLUTION_ULTRA_HIGH)
    usage = ask(client, [PROMPT, part], media_resolution="MEDIA_RESOLUTION_LOW").usage_metadata
    assert usage is not None
    assert usage.prompt_token_count == 5 + 2240


@pytest.mark.parametrize("budget", [pytest.param(0, id="off"), pytest.param(-1, id="dynamic")])
def test_a_budget_of_thinking_is_taken_instead_of_a_level(client: genai.Client, picture: Path, budget: int):
    usage = ask(client, [PROMPT, inline(picture)], thinking_config={"thinking_budget": budget}).usage_metadata
    assert usage is not None
    assert usage.thoughts_token_count == (None if budget == 0 else 128)


def test_what_does_not_fit_is_cut(client: genai.Client, picture: Path):
    thinking = {"thinking_level": "MINIMAL"}
    answer = ask(client, [PROMPT, inline(picture)], **AS_JSON, max_output_tokens=5, thinking_config=thinking)
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason is types.FinishReason.MAX_TOKENS
    assert answer.text == '{"boxes":[{"box_2d":'[:20]


def test_thinking_may_leave_nothing_for_words(client: genai.Client, picture: Path):
    answer = ask(client, [PROMPT, inline(picture)], max_output_tokens=20, thinking_config={"thinking_level": "HIGH"})
    assert answer.candidates is not None
    assert answer.candidates[0].content == types.Content(role="model")
    assert answer.text is None


# --- faults, in the form of google.rpc


def test_a_quota_is_shared_with_interactions_and_told_with_its_details(picture: Path):
    with Emulator(EmulatorOptions(requests_per_minute=1)) as emulator:
        options = types.HttpOptions(base_url=emulator.url, api_version="v1beta")
        with genai.Client(api_key="x", http_options=options) as client:
            client.interactions.create(model=MODEL, input=PROMPT)
            with pytest.raises(errors.ClientError) as caught:
                ask(client, [PROMPT, inline(picture)])
    assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")
    kinds = [detail["@type"].rpartition(".")[2] for detail in caught.value.details["error"]["details"]]
    assert kinds == ["QuotaFailure", "Help", "RetryInfo"]


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        ("500", 500, "INTERNAL"),
        ("503", 503, "UNAVAILABLE"),
        ("504", 504, "DEADLINE_EXCEEDED"),
        ("429_bare", 429, "RESOURCE_EXHAUSTED"),
        ("429_interactions", 429, "RESOURCE_EXHAUSTED"),
        ("bad_key", 400, "INVALID_ARGUMENT"),
        ("file_gone_403", 403, "PERMISSION_DENIED"),
        ("not_active_400", 400, "FAILED_PRECONDITION"),
        ("invalid_image_400", 400, "INVALID_ARGUMENT"),
    ],
)
def test_an_error_has_a_number_and_a_status(
    client: genai.Client, emulator: Emulator, fault: str, code: int, status: str
):
    emulator.script(fault)
    with pytest.raises(errors.APIError) as caught:
        ask(client, PROMPT)
    assert (caught.value.code, caught.value.status) == (code, status)
    assert emulator.books.questions[-1].fault == fault


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("failed_200", "SAFETY"), ("incomplete", "MAX_TOKENS"), ("incomplete_empty", "MAX_TOKENS"), ("fenced", "STOP")],
)
def test_a_spoiled_answer_says_how_it_ended(client: genai.Client, emulator: Emulator, fault: str, reason: str):
    emulator.script(fault)
    answer = ask(client, PROMPT, **AS_JSON)
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason == reason
    assert (answer.text is None) == (fault in ("failed_200", "incomplete_empty"))


def test_a_blocked_prompt_has_no_candidates(client: genai.Client, emulator: Emulator):
    emulator.script("blocked")
    answer = ask(client, PROMPT)
    assert answer.candidates is None
    assert answer.prompt_feedback is not None
    assert answer.prompt_feedback.block_reason is types.BlockedReason.PROHIBITED_CONTENT


SILENT = ("timeout", "reset", "cut")


@pytest.mark.parametrize("fault", [n for n in FAULTS if class_of(n) == "interaction" and n not in SILENT])
def test_every_fault_is_answered_in_the_layout_of_this_endpoint(post: Any, emulator: Emulator, fault: str):
    emulator.script(fault)
    answer = post(json_with(responseJsonSchema=BOXES))
    assert len(emulator.books.questions) == 1
    if answer.headers["Content-Type"].startswith("application/json") and fault != "not_json_200":
        body = answer.json()
        assert "steps" not in body
        if answer.status_code >= 400:
            assert isinstance((body[0] if isinstance(body, list) else body)["error"]["code"], int)


# --- what is refused


PNG = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"{", "Invalid JSON payload received", id="no-json"),
        pytest.param([], "expected an object", id="a-list"),
        pytest.param({}, "contents", id="nothing"),
        pytest.param({"contents": []}, "contents", id="no-contents"),
        pytest.param({"contents": [{"parts": []}]}, "contents[0].parts", id="no-parts"),
        pytest.param({"contents": [{"parts": [{"text": " "}]}]}, "text", id="blank"),
        pytest.param({"contents": [{"role": "system", "parts": [{"text": "x"}]}]}, "role", id="role"),
        pytest.param({"contents": [{"role": "model", "parts": [{"text": "x"}]}]}, "last turn", id="ends-with-model"),
        pytest.param(body_with(input="x"), 'Unknown name "input"', id="field-of-interactions"),
        pytest.param(body_with({"text": "a", **PNG}), "exactly one", id="text-and-image"),
        pytest.param(body_with({"image": {}}), "Unknown name \"image\" at 'contents[0].parts[1]'", id="unknown-part"),
        pytest.param(body_with({"inlineData": {"data": "AAAA"}}), "mimeType", id="no-type"),
        pytest.param(body_with({"inlineData": {"mimeType": "image/gif", "data": "AAAA"}}), "image/gif", id="gif"),
        pytest.param(body_with({"inlineData": {"mimeType": "image/png", "data": "A*A="}}), "base64", id="no-base64"),
        pytest.param(body_with({"inlineData": {"mimeType": "image/png", "data": "AAAA"}}), "invalid", id="no-image"),
        pytest.param(body_with({"inlineData": {**PNG["inlineData"], "mimeType": "image/jpeg"}}), "png", id="jpeg"),
        pytest.param(body_with({"fileData": {"mimeType": "image/png", "fileUri": "http://x/1"}}), "fetch", id="uri"),
        pytest.param(config_with(maxOutputTokens=0), "maxOutputTokens", id="no-tokens"),
        pytest.param(config_with(temperature=3), "temperature", id="hot"),
        pytest.param(config_with(thinkingConfig={"thinkingLevel": "xhigh"}), "thinkingLevel", id="level"),
        pytest.param(config_with(thinkingConfig={"thinkingLevel": "LOW", "thinkingBudget": 0}), "one of", id="two"),
        pytest.param(config_with(mediaResolution="MEDIA_RESOLUTION_ULTRA_HIGH"), "mediaResolution", id="ultra-for-all"),
        pytest.param(config_with(responseJsonSchema=BOXES), "application/json", id="schema-of-text"),
        pytest.param(json_with(responseJsonSchema={"typ": "x"}), "typ", id="schema"),
        pytest.param(json_with(responseSchema={"oneOf": []}), "oneOf", id="openapi"),
        pytest.param(config_with(max_output_tokens=5, maxOutputTokens=5), "given twice", id="twice"),
        pytest.param(body_with(safetySettings=[{"category": "ALL", "threshold": "OFF"}]), "category", id="safety"),
        pytest.param(body_with(serviceTier="fast"), "serviceTier", id="tier"),
        pytest.param(body_with(model="models/gemini-3.8-flash"), "model", id="two-models"),
    ],
)  # fmt: skip
def test_what_is_not_in_the_reference_is_refused(post: Any, emulator: Emulator, body: Any, words: str):
    answer = post(body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT"), answer.text
    assert words in error["message"]
    assert emulator.books.answered() == []


def test_the_details_name_the_unknown_field(post: Any):
    details = post(config_with(responseFormat1=1)).json()["error"]["details"]
    assert details[0]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert details[0]["fieldViolations"][0]["field"] == "generationConfig"


def test_both_ways_to_write_a_name_are_one(post: Any, picture: Path):
    data = base64.b64encode(picture.read_bytes()).decode()
    body = {
        "contents": [{"parts": [{"text": PROMPT}, {"inline_data": {"mime_type": "image/png", "data": data}}]}],
        "generation_config": {"response_mime_type": "application/json", "response_json_schema": BOXES},
    }
    assert json.loads(post(body).json()["candidates"][0]["content"]["parts"][0]["text"]) == RED_SQUARE


def test_names_inside_a_schema_are_left_as_they_are(post: Any):
    schema = {"type": "object", "properties": {"how_many": {"type": "integer"}}}
    answer = post(json_with(responseJsonSchema=schema))
    assert json.loads(answer.json()["candidates"][0]["content"]["parts"][0]["text"]) == {"how_many": 0}


@pytest.mark.parametrize(
    ("model", "version"), [("gemini-2.5-flash", "v1beta"), ("gpt-5", "v1beta"), ("gemini-flash-latest", "v1")]
)
def test_a_model_that_is_not_offered_is_not_found(post: Any, model: str, version: str):
    answer = post(body_with(), model=model, version=version)
    assert (answer.status_code, answer.json()["error"]["status"]) == (404, "NOT_FOUND")


def test_tools_are_not_emulated_and_say_so(post: Any):
    answer = post(body_with(tools=[]))
    assert (answer.status_code, answer.json()["error"]["status"]) == (501, "UNIMPLEMENTED")


def test_no_key_no_answer(emulator: Emulator):
    answer = httpx.post(f"{emulator.url}/v1beta/models/{MODEL}:generateContent", json=body_with(), verify=False)
    assert (answer.status_code, answer.json()["error"]["status"]) == (403, "PERMISSION_DENIED")


def test_the_books_can_be_read_from_another_process(emulator: Emulator, client: genai.Client, picture: Path):
    emulator.script("503")
    with pytest.raises(errors.ServerError):
        ask(client, [PROMPT, inline(picture)])
    for _ in range(2):
        ask(client, [PROMPT, inline(picture)])
    books = httpx.get(f"{emulator.url}/emulator/books", verify=False).json()
    assert (books["questions"], books["answered"], books["images"]) == (3, 2, 1)
    assert books["by_status"] == {"503": 1, "200": 2}
    assert (books["in_flight"], books["peak_in_flight"]) == (0, 1)
    assert books["asking_s"] > 0


# --- the same in OpenAI's dialect


@pytest.fixture
def chat(emulator: Emulator):
    """`chat(body)`, with the key where OpenAI's clients put it."""
    with httpx.Client(timeout=20, verify=False, headers={"Authorization": "Bearer k"}) as http:
        yield lambda body: http.post(f"{emulator.url}/v1beta/openai/chat/completions", json=body)


def chat_body(content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def test_a_chat_about_an_image_is_answered_as_json(chat: Any, picture: Path):
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    content = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}]
    response_format = {"type": "json_schema", "json_schema": {"name": "boxes", "schema": BOXES}}
    answer = chat(chat_body(content, response_format=response_format, max_tokens=8192, reasoning_effort="low")).json()
    choice = answer["choices"][0]
    assert json.loads(choice["message"]["content"]) == RED_SQUARE
    assert (choice["finish_reason"], choice["message"]["role"]) == ("stop", "assistant")
    words = answer["usage"]["completion_tokens"]
    assert answer["usage"] == {"prompt_tokens": 1125, "completion_tokens": words, "total_tokens": 1125 + words + 32}


def test_a_chat_that_is_cut_says_length(chat: Any):
    answer = chat(chat_body(PROMPT, max_completion_tokens=2, reasoning_effort="none")).json()
    assert answer["choices"][0]["finish_reason"] == "length"


def test_an_error_of_a_chat_stands_in_an_array(chat: Any, emulator: Emulator):
    emulator.script("429")
    answer = chat(chat_body(PROMPT))
    assert answer.status_code == 429
    assert answer.json()[0]["error"]["status"] == "RESOURCE_EXHAUSTED"
    assert answer.json()[0]["error"]["details"][2]["retryDelay"] == "1.5s"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"model": MODEL, "messages": []}, id="no-messages"),
        pytest.param(chat_body(PROMPT, contents=[]), id="unknown"),
        pytest.param(chat_body(PROMPT, n=2), id="two-answers"),
        pytest.param(chat_body(PROMPT, temperature=3), id="hot"),
        pytest.param(chat_body([{"type": "image_url", "image_url": {"url": "https://x/1.png"}}]), id="url"),
        pytest.param(chat_body([{"type": "input_image"}]), id="unknown-part"),
    ],
)
def test_a_chat_is_as_strict(chat: Any, emulator: Emulator, body: Any):
    answer = chat(body)
    assert (answer.status_code, answer.json()[0]["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert emulator.books.answered() == []


def test_a_bearer_is_no_key_elsewhere(emulator: Emulator):
    url = f"{emulator.url}/v1beta/models/{MODEL}:generateContent"
    answer = httpx.post(url, json=body_with(), headers={"Authorization": "Bearer k"}, verify=False)
    assert answer.status_code == 401
