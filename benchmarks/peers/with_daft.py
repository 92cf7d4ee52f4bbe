"""Daft: a frame of paths, downloaded, prompted and written as Parquet. `batches` goes through it image by image."""

import time

import daft
from daft.ai.google.provider import GoogleProvider
from daft.functions import prompt
from question import CONFIG, MODEL, PROMPT, Job, read_job, report


def main(job: Job) -> list[object]:
    provider = GoogleProvider(api_key="bench", http_options={"base_url": job.url, "api_version": "v1beta"})
    frame = daft.from_glob_path(str(job.images / "*.jpg")).select("path")
    frame = frame.with_column("image", daft.col("path").download())
    if "batches" in job.options:
        frame = frame.into_batches(1)
    answer = prompt(
        [daft.lit(PROMPT), daft.col("image")], provider=provider, model=MODEL, concurrency=job.concurrency, **CONFIG
    )
    table = frame.with_column("answer", answer).exclude("image")
    table.write_parquet(str(job.store / "answers"), write_mode="overwrite")
    return daft.read_parquet(str(job.store / "answers")).to_pydict()["answer"]


if __name__ == "__main__":
    started_s = time.monotonic()
    report(started_s, main(read_job()))
