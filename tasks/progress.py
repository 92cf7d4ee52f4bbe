import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

from pixscribe.run import Run, session_of

logger = logging.getLogger(__name__)

UPDATE_EVERY_S = 5.0
LAST_UPDATE_LIMIT_S = 5.0


@asynccontextmanager
async def progress_shown(run: Run) -> AsyncIterator[None]:
    """Show in Prefect how far the run is, as a progress artifact of the flow run, as long as the context is open."""
    has_ended = asyncio.Event()
    showing = asyncio.create_task(_show(run, has_ended))
    try:
        yield
        has_ended.set()
        await asyncio.wait([showing], timeout=LAST_UPDATE_LIMIT_S)
    finally:
        showing.cancel()


async def _show(run: Run, has_ended: asyncio.Event) -> None:
    tally = session_of(run).tally
    try:
        artifact = await acreate_progress_artifact(tally.percent_done, "pixscribe-progress", tally.describe())
        while not has_ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(has_ended.wait(), UPDATE_EVERY_S)
            await aupdate_progress_artifact(artifact, tally.percent_done, tally.describe())
    except httpx.HTTPError as error:
        # a server that does not answer is no reason to stop
        logger.warning("Prefect does not show the progress of this run: %s", str(error) or type(error).__name__)
