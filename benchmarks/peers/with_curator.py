"""Bespoke Curator, whose cache is its way to resume.

By its own client for OpenAI's dialect, which Gemini has too and which costs it least; `litellm` goes by Gemini's own
API.
"""

import time
from pathlib import Path

import tiktoken


class _Offline:
    """In place of an encoding that would be downloaded: it is only estimated with."""

    def encode(self, text: str, **_: object) -> range:
        return range(len(text) // 4)


tiktoken.get_encoding = lambda name: _Offline()  # type: ignore[assignment,return-value]

from bespokelabs import curator  # noqa: E402
from question import MODEL, PROMPT, SCHEMA, Job, read_job, report  # noqa: E402

LITELLM_MODEL = "gemini/gemini-3-flash-preview"
"""The newest flash of which its litellm knows that it can see."""


class Detector(curator.LLM):
    def prompt(self, row: dict[str, str]) -> tuple[str, curator.types.Image]:
        return PROMPT, curator.types.Image(url=row["path"], mime_type="image/jpeg")

    def parse(self, row: dict[str, str], response: str) -> dict[str, str]:
        return {"file_name": Path(row["path"]).name, "text": response}


def main(job: Job) -> list[object]:
    is_litellm = "litellm" in job.options
    schema = {"type": "json_schema", "json_schema": {"name": "boxes", "schema": SCHEMA}}
    detector = Detector(
        model_name=LITELLM_MODEL if is_litellm else MODEL,
        backend="litellm" if is_litellm else "openai",
        generation_params={"max_tokens": 8192, "response_format": schema},
        backend_params={
            "base_url": f"{job.url}/v1beta" if is_litellm else f"{job.url}/v1beta/openai",
            "api_key": "bench",
            "max_concurrent_requests": job.concurrency,
            "max_requests_per_minute": 1_000_000,
            "max_tokens_per_minute": 10_000_000_000,
        },
    )
    response = detector([{"path": str(path)} for path in job.paths()])
    return response.dataset["text"]


if __name__ == "__main__":
    started_s = time.monotonic()
    report(started_s, main(read_job()))
