"""The ceiling: for each image the four HTTP requests, on the transport that pixscribe uses, and nothing else.

No hash, no check, no retry, no limit, no row: python -m benchmarks.bare_loop URL FOLDER CONCURRENCY
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson

from pixscribe.gemini import open_transport

PROMPTS = ("Detect all objects.", "Give the segmentation masks of all objects.")


async def main(url: str, folder: Path, concurrency: int) -> None:
    paths = sorted(folder.iterdir())
    remaining = iter(enumerate(paths))
    started_s = time.monotonic()
    async with open_transport(url, concurrency=concurrency) as transport:
        loop = _Loop(transport, url, asyncio.Semaphore(concurrency))
        await asyncio.gather(*(loop.work(remaining) for _ in range(2 * concurrency)))
    print(json.dumps({"elapsed_s": time.monotonic() - started_s}))


class _Loop:
    def __init__(self, transport: httpx.AsyncBaseTransport, url: str, places: asyncio.Semaphore) -> None:
        self._transport = transport
        self._upload_url = httpx.URL(f"{url}/upload/v1beta/files")
        self._question_url = httpx.URL(f"{url}/v1beta/interactions")
        self._places = places

    async def work(self, remaining: Iterator[tuple[int, Path]]) -> None:
        for index, path in remaining:
            await self._label(index, path.read_bytes())

    async def _label(self, index: int, data: bytes) -> None:
        started, _ = await self._post(self._upload_url, _start_headers(len(data)), _start_body(index, len(data)))
        finalize = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
        _, body = await self._post(started["x-goog-upload-url"], finalize, data)
        uri = orjson.loads(body)["file"]["uri"]
        await asyncio.gather(*(self._ask(prompt, uri) for prompt in PROMPTS))

    async def _ask(self, prompt: str, uri: str) -> None:
        image = {"type": "image", "mime_type": "image/jpeg", "uri": uri}
        question = {"model": "gemini-3.5-flash", "input": [{"type": "text", "text": prompt}, image], "store": False}
        await self._post(self._question_url, {"content-type": "application/json"}, orjson.dumps(question))

    async def _post(self, url: httpx.URL | str, headers: dict[str, str], content: bytes) -> tuple[Any, bytes]:
        async with self._places:
            request = httpx.Request("POST", url, headers={"x-goog-api-key": "bench", **headers}, content=content)
            response = await self._transport.handle_async_request(request)
            body = await response.aread()
            await response.aclose()
        assert response.status_code == 200, body
        return response.headers, body


def _start_headers(size_bytes: int) -> dict[str, str]:
    return {
        "content-type": "application/json",
        "x-goog-upload-protocol": "resumable",
        "x-goog-upload-command": "start",
        "x-goog-upload-header-content-length": str(size_bytes),
        "x-goog-upload-header-content-type": "image/jpeg",
    }


def _start_body(index: int, size_bytes: int) -> bytes:
    return orjson.dumps({"file": {"name": f"files/bare-{index}", "mime_type": "image/jpeg", "size_bytes": size_bytes}})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
