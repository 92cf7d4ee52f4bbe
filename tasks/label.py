from prefect import task
from prefect.cache_policies import NO_CACHE

from pixscribe.engine import engine
from pixscribe.progress import Totals
from pixscribe.run import Run, labeller_of
from pixscribe.source import Shard
from pixscribe.worker import label_as_worker
from tasks.surroundings import look_around_as_worker


@task(name="label", task_run_name="label shard {shard.name}", cache_policy=NO_CACHE)
async def label_shard(run: Run, shard: Shard) -> Totals:
    """Upload the images of a shard, ask every prompt about each of them, and commit the shard's rows."""
    if run.lead is None:
        return await engine().run(labeller_of(run).label(shard))
    return await label_as_worker(run, shard, look_around_as_worker)
