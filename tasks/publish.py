import asyncio

from prefect import task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE

from pixscribe.run import Run, RunSummary, publish


@task(name="publish", task_run_name="publish results", cache_policy=NO_CACHE)
async def publish_results(run: Run) -> RunSummary:
    """Add up the shards, write run.json, and show the result in Prefect."""
    summary = await asyncio.to_thread(publish, run)
    await acreate_markdown_artifact(markdown=summary.to_markdown(), key="pixscribe-run", description=summary.run)
    return summary
