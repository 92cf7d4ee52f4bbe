from prefect import task
from prefect.cache_policies import NO_CACHE

from pixscribe.engine import engine
from pixscribe.progress import Totals
from pixscribe.run import Run, labeller_of
from pixscribe.source import Shard


@task(name="write", task_run_name="write tables of shard {shard.name}", cache_policy=NO_CACHE)
async def write_tables(run: Run, shard: Shard) -> Totals:
    """Turn the answers into source pixels and commit the shard's three parts."""
    return await engine().run(labeller_of(run).write(shard))
