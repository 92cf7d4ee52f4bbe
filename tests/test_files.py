"""What we store in the Files API: shown, and cleaned up without touching what others have there."""

import asyncio
import json
from collections.abc import Sequence

import pytest

from pixscribe.config import RunConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import QuotaExhausted
from pixscribe.gemini import File, GeminiClient, open_transport, upload_file
from pixscribe.uploads import is_ours
from tests.conftest import SAMPLES, MakeConfig, annotate, pixscribe
from tests.test_end_to_end import FILES

KEY = "test-key-4f1c"


def put_foreign(emulator: Emulator, *names: str, size_bytes: int = 1000) -> None:
    async def put() -> None:
        async with open_transport(emulator.url, concurrency=4) as transport:
            client = GeminiClient(transport, base_url=emulator.url, api_key=KEY, timeout_s=5)
            for name in names:
                data = name.encode().ljust(size_bytes, b"\0")
                await upload_file(client, data, name=name, mime_type="image/png", display_name=name)

    asyncio.run(put())


def names(emulator: Emulator) -> Sequence[File]:
    async def list_all() -> Sequence[File]:
        async with open_transport(emulator.url, concurrency=4) as transport:
            client = GeminiClient(transport, base_url=emulator.url, api_key=KEY, timeout_s=5)
            return [file async for file in client.list_files()]

    return asyncio.run(list_all())


def run(config: RunConfig) -> None:
    asyncio.run(annotate(config))


def test_files_are_listed_by_whose_they_are_and_only_ours_are_deleted(make: MakeConfig, emulator: Emulator):
    put_foreign(emulator, "holiday", "0123456789abcdef0123456789abcdef01234567")
    run(make())
    ours = len(FILES) - 1
    shown = pixscribe("files", "list", "--base-url", emulator.url)
    assert shown.returncode == 0, shown.stderr
    assert f"ours     {ours} files, " in shown.stdout
    assert "others'  2 files, 0.000 GB, expiring from " in shown.stdout
    assert "% of 20 GB" in shown.stdout
    listed = [
        json.loads(line)
        for line in pixscribe("files", "list", "--base-url", emulator.url, "--json").stdout.splitlines()
    ]
    assert sum(file["is_ours"] for file in listed) == ours == len(listed) - 2
    cleaned = pixscribe("files", "clean", "--base-url", emulator.url)
    assert cleaned.stdout.startswith(f"{ours} files deleted, ")
    assert {file.name for file in names(emulator)} == {"holiday", "0123456789abcdef0123456789abcdef01234567"}
    assert "0 files deleted" in pixscribe("files", "clean", "--base-url", emulator.url).stdout


def test_a_refused_key_or_a_wrong_address_is_one_sentence(emulator: Emulator):
    refused = pixscribe("files", "list", "--base-url", emulator.url, GEMINI_API_KEY="bad-key-777")
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert "GEMINI_API_KEY is refused" in refused.stderr
    assert "777" not in refused.stderr
    nobody = pixscribe("files", "clean", "--base-url", "http://127.0.0.1:9")
    assert (nobody.returncode, nobody.stderr.count("\n")) == (3, 1)
    missing = pixscribe("files", "list", GEMINI_API_KEY="")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


def test_a_full_storage_is_emptied_of_what_we_do_not_need_any_more(make: MakeConfig):
    with Emulator(EmulatorOptions(storage_bytes=400_000)) as emulator:
        put_foreign(emulator, "holiday", size_bytes=100_000)
        config = make(model={"base_url": emulator.url}, execution={"shard_size": 2, "shards_in_flight": 1})
        run(config)
        assert len(emulator.books.uploads) == len(FILES)  # and the foreign one
        assert "holiday" in {file.name for file in names(emulator)}
        assert emulator.books.by_endpoint["files.delete"] > 0


def test_a_storage_full_of_others_files_ends_the_run_and_says_so(make: MakeConfig):
    with Emulator(EmulatorOptions(storage_bytes=100_000)) as emulator:
        put_foreign(emulator, "holiday", size_bytes=100_000)
        config = make(model={"base_url": emulator.url})
        with pytest.raises(QuotaExhausted, match="storage is full, and nothing in it is ours to delete"):
            run(config)
        assert [file.name for file in names(emulator)] == ["holiday"]


def test_with_a_full_storage_auto_sends_images_inside_the_questions(make: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pixscribe.labelling.AUTO_INLINE_BYTES", 0)
    with Emulator(EmulatorOptions(storage_bytes=100_000)) as emulator:
        put_foreign(emulator, "holiday", size_bytes=100_000)
        config = make(model={"base_url": emulator.url, "transport": "auto"}, source={"uri": str(SAMPLES), "limit": 3})
        run(config)
        assert len(emulator.books.answered()) == 6


def test_auto_goes_on_while_only_the_upload_service_is_down(make: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pixscribe.labelling.AUTO_INLINE_BYTES", 0)
    with Emulator() as emulator:
        emulator.always("upload_503")
        run(make(model={"base_url": emulator.url, "transport": "auto"}))
        assert len(emulator.books.answered()) == 2 * (len(FILES) - 1)
        assert emulator.books.uploads == []
        # found out once, and not by six attempts of each image
        assert emulator.books.by_endpoint["upload.start"] <= 40


def test_a_file_is_ours_if_it_is_named_by_its_content():
    sha256 = "ab" * 32
    ours = File("ab" * 20, "u", "image/png", 1, sha256, "ACTIVE", None)
    assert is_ours(ours)
    assert not is_ours(File("ab" * 20, "u", "image/png", 1, "cd" * 32, "ACTIVE", None))
    assert not is_ours(File("", "u", "image/png", 1, "", "ACTIVE", None))
