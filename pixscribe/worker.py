"""A worker process: it labels the shards that it is handed, of a run that another process leads.

What it needs it opens when the first shard of a run comes, from what the leader froze at the output, and keeps for the
next ones. Each shard is claimed by a lock of its own:

    <output>/runs/<id>/claims/<shard>.lock

so that a worker that was only thought lost and the one that was given its shard do not both pay for it. Whoever gets a
claim begins with the answers that others have journaled of the shard.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

from pixscribe.config import RunConfig
from pixscribe.engine import engine
from pixscribe.errors import LockHeld, LockLost, RunError
from pixscribe.lock import LeadersLock, RunLock
from pixscribe.progress import Totals
from pixscribe.run import Run, Session, Surroundings, close_session, join_run, read_config
from pixscribe.source import Shard
from pixscribe.storage import open_storage
from pixscribe.tables import find_totals

logger = logging.getLogger(__name__)

CLAIM_EVERY_S = 1.0
"""How often a shard is asked after that another worker is at."""
WATCH_EVERY_S = 0.5
COMMIT_LOOK_S = 2.0
"""How old the last look at the leader's lock may be when a part is committed."""

LookAround = Callable[[Run, RunConfig], Awaitable[Surroundings]]
"""Finds the key and the limits that the workers of a run share."""


async def label_as_worker(run: Run, shard: Shard, look_around: LookAround) -> Totals:
    """Label a shard in this process. Cancelling ends all that this process does for the run. Raises `RunError`."""
    assert run.lead is not None
    try:
        return await engine().run(_label(run, shard, look_around))
    except asyncio.CancelledError:
        await stop_working(run.lead.token)
        raise


async def stop_working(token: str) -> None:
    """Send nothing more for this attempt at a run, write down what is answered, and take no more shards of it."""
    await engine().run(_stop(token))


class Worker:
    """One attempt at a run, as far as this process takes part in it. Belongs on the engine's loop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._run = session.run
        self._labelling: set[asyncio.Task[Totals]] = set()

    async def label(self, shard: Shard) -> Totals:
        """Label a shard unless, or until, another worker has. Raises `RunError`."""
        labelling = asyncio.create_task(self._label(shard))
        self._labelling.add(labelling)
        try:
            return await labelling
        finally:
            self._labelling.discard(labelling)
            if self.is_idle:
                await self._session.limiter.rest()

    @property
    def is_idle(self) -> bool:
        """Whether there is no shard here."""
        return not self._labelling

    async def close(self) -> None:
        """Give up the shards that are here, and write what was answered about them."""
        self._session.labeller.send_no_more()
        labelling = set(self._labelling)
        for each in labelling:
            each.cancel()
        await close_session(self._session)
        await asyncio.gather(*labelling, return_exceptions=True)

    async def _label(self, shard: Shard) -> Totals:
        while (totals := await self._find_totals(shard)) is None:
            key = self._run.key(f"claims/{shard.name}.lock")
            claim = RunLock(self._session.storage, key, subject=f"shard {shard.name}")
            try:
                async with _held(claim):
                    return await self._find_totals(shard) or await self._label_claimed(shard, claim)
            except LockHeld as error:
                logger.info("waiting: %s", error)
            except LockLost:
                if not claim.is_lost:
                    raise
                logger.warning("shard %s was given to another worker", shard.name)
            await asyncio.sleep(CLAIM_EVERY_S)
        return totals

    async def _find_totals(self, shard: Shard) -> Totals | None:
        return await asyncio.to_thread(find_totals, self._session.storage, self._run.id, shard)

    async def _label_claimed(self, shard: Shard, claim: RunLock) -> Totals:
        labeller = self._session.labeller

        def check() -> None:
            if isinstance(labeller.lock, LeadersLock):
                labeller.lock.check(COMMIT_LOOK_S)
            claim.check()

        await asyncio.to_thread(self._take_up, shard)
        return await _unless_lost(claim, labeller.label(shard, check))

    def _take_up(self, shard: Shard) -> None:
        """What others were answered: in this shard before they were lost, and in those that they have committed."""
        labeller = self._session.labeller
        labeller.lock.check()
        labeller.archive.take_up(labeller.journal.answers(shard.name))
        labeller.archive.refresh()


_workers: dict[str, Worker] = {}
_stopped: set[str] = set()
_opening = asyncio.Lock()


async def _label(run: Run, shard: Shard, look_around: LookAround) -> Totals:
    worker = await _worker_of(run, look_around)
    return await worker.label(shard)


async def _worker_of(run: Run, look_around: LookAround) -> Worker:
    assert run.lead is not None
    token = run.lead.token
    async with _opening:
        if token in _stopped:
            raise RunError(f"run {run.id} was stopped")
        if token not in _workers:
            await _leave_other_runs()
            config = await asyncio.to_thread(read_config, open_storage(run.output_uri), run.id)
            _workers[token] = Worker(await join_run(run, config, await look_around(run, config)))
        return _workers[token]


async def _leave_other_runs() -> None:
    for token in [token for token, worker in _workers.items() if worker.is_idle]:
        await _workers.pop(token).close()


async def _stop(token: str) -> None:
    _stopped.add(token)
    async with _opening:
        worker = _workers.pop(token, None)
    if worker is not None:
        await worker.close()


@asynccontextmanager
async def _held(claim: RunLock) -> AsyncIterator[None]:
    """`claim.held`, which waits for the storage, on threads."""
    stack = ExitStack()
    await asyncio.to_thread(stack.enter_context, claim.held())
    try:
        yield
    finally:
        await asyncio.to_thread(stack.close)


async def _unless_lost(claim: RunLock, labelling: Awaitable[Totals]) -> Totals:
    """Await it, but give it up when the claim is lost. Raises `LockLost`."""
    task, lost = asyncio.ensure_future(labelling), asyncio.create_task(_wait_until_lost(claim))
    try:
        await asyncio.wait((task, lost), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise LockLost(f"{claim.subject} was claimed by another worker, because nothing was heard of this one")
        return task.result()
    finally:
        for each in (task, lost):
            each.cancel()
        await asyncio.gather(task, lost, return_exceptions=True)


async def _wait_until_lost(claim: RunLock) -> None:
    while not claim.is_lost:
        await asyncio.sleep(WATCH_EVERY_S)
