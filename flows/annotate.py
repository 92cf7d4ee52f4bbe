from prefect import flow

from flows.surroundings import look_around
from pixscribe.concurrency import gather_or_cancel, map_in_window
from pixscribe.config import RunConfig
from pixscribe.run import Run, RunSummary, open_run
from pixscribe.source import Shard
from tasks.prompt import prompt_shard
from tasks.publish import publish_results
from tasks.scan import scan_images
from tasks.upload import upload_shard
from tasks.write import write_tables


@flow(name="annotate", flow_run_name="annotate {config.name}")
async def annotate(config: RunConfig, run_id: str | None = None, new: bool = False) -> RunSummary:
    """Label every image of the source with every prompt, and leave three Parquet tables at the output."""
    async with open_run(config, run_id=run_id, new=new, surroundings=await look_around(config)) as run:
        shards = await scan_images(run)
        await map_in_window(
            lambda shard: annotate_shard(run, shard, config), shards, size=config.execution.shards_in_flight
        )
        return await publish_results(run)


async def annotate_shard(run: Run, shard: Shard, config: RunConfig) -> None:
    """Upload and ask at the same time: a question goes out as soon as its image is up. Then write."""
    prompts = [prompt_shard(run, shard, prompt.name) for prompt in config.prompts]
    await gather_or_cancel([upload_shard(run, shard), *prompts])
    await write_tables(run, shard)
