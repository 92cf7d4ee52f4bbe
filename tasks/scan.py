import asyncio

from prefect import task
from prefect.cache_policies import NO_CACHE

from pixscribe.run import Run, scan_source
from pixscribe.source import Shards


@task(name="scan", task_run_name="scan source", cache_policy=NO_CACHE)
async def scan_images(run: Run) -> Shards:
    """List the source into the run's manifest and cut it into shards; those that are still to do are returned."""
    return await asyncio.to_thread(scan_source, run)
