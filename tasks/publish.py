import asyncio
from contextlib import suppress

from prefect import task
from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE

from pixscribe.run import Run, RunSummary, publish
from pixscribe.storage import as_link


@task(name="publish", task_run_name="publish results", cache_policy=NO_CACHE)
async def publish_results(run: Run) -> RunSummary:
    """Add up the shards, write the page and run.json, and show the result in Prefect."""
    publishing = asyncio.create_task(asyncio.to_thread(publish, run))
    try:
        summary = await asyncio.shield(publishing)
    except asyncio.CancelledError:
        # its thread goes on, however often this is cancelled, and the lock must not be let go of before it has ended
        while not publishing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(publishing)
        raise
    if summary.report:
        await acreate_link_artifact(link=as_link(summary.report), link_text="the run's page", key="pixscribe-report")
    await acreate_markdown_artifact(markdown=summary.to_markdown(), key="pixscribe-run", description=summary.run)
    return summary
