"""The floor: Google's own SDK, asyncio and a semaphore, one JSON line for each answer. It remembers nothing."""

import asyncio
import json
import time
from pathlib import Path

from google import genai
from google.genai import types
from question import CONFIG, MODEL, PROMPT, Job, read_job, report


async def main(job: Job) -> list[str | None]:
    options = types.HttpOptions(base_url=job.url, api_version="v1beta", retry_options=types.HttpRetryOptions())
    client = genai.Client(api_key="bench", http_options=options).aio
    config = types.GenerateContentConfig(**CONFIG)
    places = asyncio.Semaphore(job.concurrency)
    with (job.store / "answers.jsonl").open("w") as lines:

        async def ask(path: Path) -> str | None:
            async with places:
                image = types.Part.from_bytes(data=path.read_bytes(), mime_type="image/jpeg")
                answer = await client.models.generate_content(model=MODEL, contents=[PROMPT, image], config=config)
                lines.write(json.dumps({"file_name": path.name, "text": answer.text}) + "\n")
                return answer.text

        answers = await asyncio.gather(*map(ask, job.paths()), return_exceptions=True)
    return [None if isinstance(answer, BaseException) else answer for answer in answers]


if __name__ == "__main__":
    started_s = time.monotonic()
    report(started_s, asyncio.run(main(read_job())))
