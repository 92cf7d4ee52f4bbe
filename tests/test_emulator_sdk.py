"""Google's own SDK against the emulator, unchanged: what it can do here it can do with the service."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import errors
from PIL import Image

from pixscribe.emulator import Emulator
from pixscribe.emulator.vision import BACKGROUND, PALETTE
from tests.conftest import BOXES

MODEL = "gemini-3.5-flash"
PROMPT = {"type": "text", "text": "Detect the objects."}
FORMAT = {"type": "text", "mime_type": "application/json", "schema": BOXES}
RED_SQUARE = {"boxes": [{"box_2d": [250, 100, 750, 500], "label": "red square"}]}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:google", "ignore::UserWarning:google")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture(params=["v1beta", None], ids=["v1beta", "default-version"])
def client(emulator: Emulator, request: pytest.FixtureRequest) -> Iterator[genai.Client]:
    options: dict[str, Any] = {"base_url": emulator.url}
    if request.param:
        options["api_version"] = request.param
    client = genai.Client(api_key="x", http_options=options)  # type: ignore[arg-type]
    yield client
    client.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """100 x 80 px, a red square from (10, 20) to (50, 60)."""
    image = Image.new("RGB", (100, 80), BACKGROUND)
    image.paste(PALETTE["red"], (10, 20, 50, 60))
    image.save(tmp_path / "square.png")
    return tmp_path / "square.png"


def inline(picture: Path) -> dict[str, str]:
    return {"type": "image", "data": base64.b64encode(picture.read_bytes()).decode(), "mime_type": "image/png"}


def ask(client: genai.Client, content: Any, **fields: Any) -> Any:
    return client.interactions.create(model=MODEL, input=content, **fields)


def test_a_path_is_uploaded_and_its_uri_asked_about(client: genai.Client, picture: Path):
    file = client.files.upload(file=str(picture))
    assert base64.b64decode(file.sha256_hash or "").decode() == hashlib.sha256(picture.read_bytes()).hexdigest()
    image = {"type": "image", "uri": file.uri, "mime_type": file.mime_type}
    answer = ask(client, [PROMPT, image], response_format=FORMAT)
    assert answer.status == "completed"
    assert json.loads(answer.output_text) == RED_SQUARE


def test_bytes_are_uploaded_under_a_chosen_name(client: genai.Client, picture: Path):
    stream = io.BytesIO(picture.read_bytes())
    config: Any = {"name": "img-0001", "display_name": "a/1.png", "mime_type": "image/png"}
    file = client.files.upload(file=stream, config=config)
    assert (file.name, file.display_name) == ("files/img-0001", "a/1.png")
    assert client.files.get(name="files/img-0001").size_bytes == picture.stat().st_size


def test_20_mib_are_uploaded_in_chunks(client: genai.Client, emulator: Emulator, tmp_path: Path):
    big = tmp_path / "big.jpg"
    big.write_bytes(b"\xff\xd8\xff" + bytes(20 * 1024 * 1024))
    client.files.upload(file=str(big))
    assert emulator.books.by_endpoint["upload.bytes"] == 3
    assert emulator.books.uploads[0].sha256 == hashlib.sha256(big.read_bytes()).hexdigest()


def test_a_name_that_is_taken_is_an_api_error(client: genai.Client, picture: Path):
    config: Any = {"name": "same"}
    client.files.upload(file=str(picture), config=config)
    with pytest.raises(errors.APIError) as caught:
        client.files.upload(file=str(picture), config=config)
    assert caught.value.code == 409


def test_files_are_listed_over_pages_and_deleted(client: genai.Client, picture: Path):
    for number in range(5):
        config: Any = {"name": f"f{number}"}
        client.files.upload(file=str(picture), config=config)
    names = [file.name for file in client.files.list(config={"page_size": 2})]
    assert names == [f"files/f{number}" for number in (4, 3, 2, 1, 0)]
    client.files.delete(name="files/f3")
    with pytest.raises(errors.ClientError) as caught:
        client.files.get(name="files/f3")
    assert caught.value.code == 403


@pytest.mark.parametrize("image_first", [False, True])
def test_an_inline_image_may_stand_before_or_after_the_text(client: genai.Client, picture: Path, image_first: bool):
    content = [PROMPT, inline(picture)]
    answer = ask(client, content[::-1] if image_first else content, response_format=[FORMAT])
    assert json.loads(answer.output_text) == RED_SQUARE


def test_several_images_go_into_one_question(client: genai.Client, picture: Path):
    question = {"type": "text", "text": "What is different?"}
    answer = ask(client, [question, inline(picture), inline(picture)])
    assert answer.output_text == "Picture 1 shows a red square. Picture 2 shows a red square."
    assert answer.usage.total_input_tokens == 5 + 2 * 1120


def test_every_setting_that_we_send_passes_the_sdk(emulator: Emulator, picture: Path):
    client = genai.Client(api_key="x", http_options={"base_url": emulator.url, "api_version": "v1beta"})
    config = {"thinking_level": "minimal", "max_output_tokens": 8192, "seed": 7, "temperature": 0.5}
    image = {**inline(picture), "resolution": "low"}
    settings = {"store": False, "service_tier": "flex", "labels": {"run": "r1"}, "system_instruction": "Be brief."}
    answer = ask(client, [PROMPT, image], response_format=FORMAT, generation_config=config, **settings)
    assert json.loads(answer.output_text) == RED_SQUARE
    assert not answer.id
    client.close()


def test_a_stored_interaction_is_read_and_deleted(client: genai.Client):
    created = ask(client, "Hello")
    assert client.interactions.get(created.id).output_text == created.output_text
    client.interactions.delete(created.id)
    with pytest.raises(Exception, match="Requested entity was not found"):
        client.interactions.get(created.id)


def test_the_sdk_gets_over_a_server_error(client: genai.Client, emulator: Emulator, picture: Path):
    emulator.script("503", "ok")
    assert ask(client, [PROMPT, inline(picture)]).output_text.startswith("```json")
    assert [question.status for question in emulator.books.questions] == [503, 200]


def test_a_refused_key_is_a_client_error(emulator: Emulator):
    client = genai.Client(api_key="bad", http_options={"base_url": emulator.url})
    with pytest.raises(errors.ClientError, match="API key not valid"):
        client.files.get(name="files/a")
    client.close()
