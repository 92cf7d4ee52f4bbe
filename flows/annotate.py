from functools import partial

from prefect import flow

from flows.surroundings import look_around
from pixscribe.concurrency import each_in_window
from pixscribe.config import RunConfig
from pixscribe.run import RunSummary, open_run
from tasks.label import label_shard
from tasks.publish import publish_results
from tasks.scan import scan_images


@flow(name="annotate", flow_run_name="annotate {config.name}")
async def annotate(config: RunConfig, run_id: str | None = None, new: bool = False) -> RunSummary:
    """Label every image of the source with every prompt, and leave three Parquet tables at the output."""
    async with open_run(config, run_id=run_id, new=new, surroundings=await look_around(config)) as run:
        shards = await scan_images(run)
        await each_in_window(partial(label_shard, run), shards, size=config.execution.shards_in_flight)
        return await publish_results(run)
