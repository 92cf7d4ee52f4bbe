"""The baseline: what one would write with Google's SDK in an afternoon. Upload, two questions, one JSON line each.

python -m benchmarks.sdk_script URL FOLDER OUTPUT CONCURRENCY
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from google import genai
from google.genai import types

from benchmarks.peers.question import SCHEMA

PROMPTS = ("Detect all objects.", "Give the segmentation masks of all objects.")


async def main(url: str, folder: Path, output: Path, concurrency: int) -> None:
    options = types.HttpOptions(base_url=url, api_version="v1beta")
    client = genai.Client(api_key="bench", http_options=options).aio
    places = asyncio.Semaphore(concurrency)
    with output.open("w") as lines:

        async def label(path: Path) -> None:
            async with places:
                file = await client.files.upload(file=path)
                texts = await asyncio.gather(*(ask(client, prompt, file) for prompt in PROMPTS))
                lines.write(
                    json.dumps({"file_name": path.name, "answers": [json.loads(text) for text in texts]}) + "\n"
                )

        await asyncio.gather(*(label(path) for path in sorted(folder.iterdir())))


async def ask(client: Any, prompt: str, file: Any) -> str:
    interaction = await client.interactions.create(
        model="gemini-3.5-flash",
        input=[
            {"type": "text", "text": prompt},
            {"type": "image", "uri": file.uri, "mime_type": file.mime_type},
        ],
        response_format={"type": "text", "mime_type": "application/json", "schema": SCHEMA},
        store=False,
    )
    return str(interaction.output_text)


if __name__ == "__main__":
    started_s = time.monotonic()
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
    print(json.dumps({"elapsed_s": time.monotonic() - started_s}))
