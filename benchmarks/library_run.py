"""A run without Prefect, with what else `pixscribe run` does: python -m benchmarks.library_run CONFIG

The summary is the last line of stdout, as with `pixscribe run --json`.
"""

import asyncio
import gc
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from pixscribe.concurrency import each_in_window
from pixscribe.config import RunConfig, load_config
from pixscribe.engine import engine
from pixscribe.run import RunSummary, labeller_of, open_run, publish, scan_source
from pixscribe.source import Shard


async def annotate(config: RunConfig, **options: Any) -> RunSummary:
    """The flow's steps in their order; `options` are those of `open_run`."""
    async with open_run(config, **options) as run:

        async def label(shard: Shard) -> None:
            await engine().run(labeller_of(run).label(shard))

        shards = await asyncio.to_thread(scan_source, run)
        await each_in_window(label, shards, size=labeller_of(run).shards_in_flight)
        return await asyncio.to_thread(publish, run)


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    print(orjson.dumps(asdict(asyncio.run(annotate(load_config(Path(sys.argv[1])))))).decode())
