from prefect import flow

from flows.engines import label_shards
from pixscribe.config import RunConfig
from pixscribe.run import RunSummary, open_run
from tasks.progress import progress_shown
from tasks.publish import publish_results
from tasks.scan import scan_images
from tasks.surroundings import look_around


@flow(name="annotate", flow_run_name="annotate {config.name}")
async def annotate(config: RunConfig, run_id: str | None = None, new: bool = False) -> RunSummary:
    """Label every image of the source with every prompt, and leave three Parquet tables at the output."""
    async with open_run(config, run_id=run_id, new=new, surroundings=await look_around(config)) as run:
        shards = await scan_images(run)
        async with progress_shown(run):
            await label_shards(run, shards)
        return await publish_results(run)
