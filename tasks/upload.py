from prefect import task
from prefect.cache_policies import NO_CACHE

from pixscribe.engine import engine
from pixscribe.labelling import StageTally
from pixscribe.run import Run, labeller_of
from pixscribe.source import Shard


@task(name="upload", task_run_name="upload images of shard {shard.name}", cache_policy=NO_CACHE)
async def upload_shard(run: Run, shard: Shard) -> StageTally:
    """Read, check, turn upright and upload every image of the shard, or find out why not."""
    return await engine().run(labeller_of(run).make_ready(shard))
