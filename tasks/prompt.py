from prefect import task
from prefect.cache_policies import NO_CACHE

from pixscribe.engine import engine
from pixscribe.labelling import StageTally
from pixscribe.run import Run, labeller_of
from pixscribe.source import Shard


@task(name="prompt", task_run_name="ask {prompt} about shard {shard.name}", cache_policy=NO_CACHE)
async def prompt_shard(run: Run, shard: Shard, prompt: str) -> StageTally:
    """Ask one prompt about every image of the shard, each as soon as it is uploaded."""
    return await engine().run(labeller_of(run).ask(shard, prompt))
