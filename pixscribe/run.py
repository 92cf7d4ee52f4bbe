"""A run: its id and folder, how it is opened or taken up again, and what is written when it is complete.

<output>/runs/<id>/config.yaml        written first; complete, so that the run can be repeated from it
<output>/runs/<id>/manifest.parquet   what the scan found; the run is about exactly these images
<output>/runs/<id>/journal/           answers of shards that are not committed yet
<output>/runs/<id>/batches/           jobs of the Batch API, in batch mode
<output>/runs/<id>/claims/            which worker is at which shard; only there while it is
<output>/runs/.<config digest>.lock   which process is at work on this config; only there while one is
<output>/runs/<id>/report.html        the page, which may be missing
<output>/runs/<id>/run.json           written last: its presence means that the run is complete
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import httpx
import orjson

from pixscribe import __version__
from pixscribe.archive import Archive, asked_since
from pixscribe.asking import Asker
from pixscribe.batch_api import BatchClient
from pixscribe.batch_asking import BatchAsker
from pixscribe.batch_jobs import BatchJobs
from pixscribe.batch_store import BatchStore
from pixscribe.breaker import Breaker
from pixscribe.config import (
    EMULATOR,
    RunConfig,
    config_digest,
    dump_config,
    environment_key,
    make_config,
    parse_yaml,
    with_absolute_uris,
)
from pixscribe.engine import engine
from pixscribe.errors import (
    AuthenticationError,
    ConfigError,
    ImageError,
    LockLost,
    OutputError,
    PermissionRefused,
    QuotaExhausted,
)
from pixscribe.gemini import GeminiClient, open_transport
from pixscribe.journal import Journal
from pixscribe.labelling import Labeller
from pixscribe.limits import PACIFIC, Limiter, SharedBudget, SharedQuota
from pixscribe.lock import LeadersLock, RunLock
from pixscribe.prices import find_price
from pixscribe.progress import Tally, Totals
from pixscribe.prompts import Question, make_question
from pixscribe.retry import RetryPolicy
from pixscribe.source import Shards, count_manifest, count_skipped, require_images, write_manifest
from pixscribe.storage import Storage, open_storage
from pixscribe.tables import add_up, check_parts, written_shards
from pixscribe.uploads import Uploader

if TYPE_CHECKING:
    from pixscribe.known import KnownImages

logger = logging.getLogger(__name__)

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# a number or a date would be read as one where `run` is a Hive partition
CHOSEN_RUN_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,127}")
TABLES = ("images", "responses", "annotations")
ANEW = "anew"
"""The name of a file that is there as long as a run is to ask everything anew."""
REPLAY = "replay"
"""The name of a file that is there as long as a run is an unfinished replay, and names the run that it replays."""
WATCH_EVERY_S = 0.5
PAGE_LIMIT_S = 20.0
"""How long the pictures of the page may take: a run that has all its tables should end."""
CHECK_LIMIT_S = 10.0
"""How long the look at the model may take before the run begins without it."""


@dataclass(frozen=True, slots=True)
class Run:
    """What tasks pass to each other: small, and enough to find everything else."""

    id: str
    output_uri: str
    is_resumed: bool = False
    lead: "Lead | None" = None
    """Set when other processes do the work."""

    def key(self, name: str) -> str:
        """Where a file of the run lies below the output."""
        return f"runs/{self.id}/{name}"


@dataclass(frozen=True, slots=True)
class Lead:
    """What the workers of a run are told by the process that leads it, beside what it froze."""

    lock_key: str
    token: str
    """Of the lock's owner: it names the attempt at the run."""
    base_url: str
    shared_as: str
    """What the limits are called that the workers share."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run came to: `run.json`."""

    run: str
    name: str
    status: Literal["complete"]
    output: str
    tables: dict[str, str]
    model: str
    totals: Totals
    started_at: str
    finished_at: str
    elapsed_s: float
    """Of the process that completed the run, without Prefect's start."""
    images_per_s: float
    config_digest: str
    version: str
    images_skipped: int = 0
    """Images that were left out because the output answers them already (`source.only_new`)."""
    report: str | None = None
    """Where the page is, if there is one."""

    @property
    def is_all_ok(self) -> bool:
        """Whether every image was answered in full."""
        return self.totals.images_ok == self.totals.images

    def to_markdown(self) -> str:
        """A summary table, for Prefect's page of the run."""
        totals = self.totals
        rows = {
            "images": f"{totals.images_ok} ok, {totals.images_partial} partial, {totals.images_failed} failed",
            **({"known": f"{self.images_skipped} images, left out"} if self.images_skipped else {}),
            "objects": f"{totals.objects} in {totals.responses} responses",
            "requests": f"{totals.requests} questions, {totals.uploads} uploads, {totals.reused} answers reused",
            "tokens": f"{totals.input_tokens} in, {totals.output_tokens + totals.thought_tokens} out",
            "cost": f"{totals.cost_usd:.4f} USD, {self.model}",
            "time": f"{self.elapsed_s:.0f} s, {self.images_per_s:.1f} images/s",
            **{f"`{code}`": f"{count} responses" for code, count in totals.errors.items()},
            **{f"table `{table}`": _as_code(f"{uri}/run={self.run}") for table, uri in self.tables.items()},
            **({"page": _as_code(self.report)} if self.report else {}),
        }
        lines = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
        return f"**{self.run}**\n\n| | |\n|---|---|\n{lines}"


def _as_code(place: str) -> str:
    """As one word of a table in Markdown, whatever signs it has."""
    return f"`{place.replace('`', '%60').replace('|', '%7C')}`"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run takes from whoever starts it, beside its config: `api_key` None means GEMINI_API_KEY."""

    api_key: str | None = field(default=None, repr=False)
    shared_quota: SharedQuota | None = None
    shared_budget: SharedBudget | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What of the limits is used up already."""

    spent_usd: float = 0.0
    asked_today: int = 0


@dataclass(slots=True)
class Session:
    """A run that is open in this process."""

    run: Run
    config: RunConfig
    storage: Storage
    transport: httpx.AsyncBaseTransport
    labeller: Labeller
    background: list[asyncio.Task[None]]
    limiter: Limiter
    tally: Tally
    past: Past
    started_s: float
    summary: RunSummary | None = None
    """Set when the run is complete."""


_sessions: dict[str, Session] = {}


def open_sessions() -> list[Session]:
    """The runs that are open in this process, for whoever shows their progress."""
    return list(_sessions.values())


def session_of(run: Run) -> Session:
    """The open session of a run."""
    return _sessions[run.id]


def labeller_of(run: Run) -> Labeller:
    """What the stages of the run's shards share in this process."""
    return session_of(run).labeller


def check_before(config: RunConfig, run_id: str | None = None) -> None:
    """Refuse, before anything is started or paid for, what could not work. Raises `ConfigError` or `OutputError`."""
    check_run_id(run_id)
    if config.model.api_key_block is None:
        api_key(config)
    check_asking(config)
    _require_engine(config.execution.engine)
    require_images(config.source)
    open_storage(config.output.uri).probe()


def check_asking(config: RunConfig) -> None:
    """Refuse what could not work on any machine. Raises `ConfigError`."""
    if config.limits.budget_usd is not None and find_price(config.model.name, config.prices) is None:
        raise ConfigError(
            f"limits.budget_usd: the price of {config.model.name!r} is not known, so it cannot be kept; "
            "say it in prices.models"
        )
    make_questions(config)


def check_run_id(run_id: str | None) -> None:
    """Raise `ConfigError` for what no run may be called; None stands for a name that is made."""
    if run_id is not None and not CHOSEN_RUN_ID.fullmatch(run_id):
        raise ConfigError(
            f"--run-id: {run_id!r} should begin with a letter and hold letters, digits, `.`, `_` and `-`, 128 at most"
        )


def _require_engine(engine: str) -> None:
    # found, not imported: that takes a second, and is for whoever uses it
    if engine != "local" and find_spec(f"prefect_{engine}") is None:
        raise ConfigError(f"execution.engine: {engine} needs prefect-{engine}: pip install 'pixscribe[{engine}]'")


@asynccontextmanager
async def open_run(
    config: RunConfig, *, run_id: str | None = None, new: bool = False, surroundings: Surroundings | None = None
) -> AsyncIterator[Run]:
    """Find the unfinished run of this config, or begin one, and hold open what its tasks need.

    `run_id` names the run; `new` begins one even if an older one could be taken up, and asks everything anew. Raises
    `RunError`.
    """
    config, surroundings = with_absolute_uris(config), surroundings or Surroundings()
    await asyncio.to_thread(check_before, config, run_id)
    key = surroundings.api_key or api_key(config)
    storage = open_storage(config.output.uri)
    lock = RunLock(storage, f"runs/.{config_digest(config)}.lock")
    with lock.held(), _emulator_if_named(config) as base_url:
        run = _find_or_name(storage, config, run_id, new)
        config = _freeze(storage, run, config, new)
        run = _with_lead(run, config, lock, base_url)
        session = await engine().run(_open_session(_Opening(run, config, storage, lock, base_url, key, surroundings)))
        _sessions[run.id] = session
        try:
            yield run
        finally:
            del _sessions[run.id]
            await engine().run(close_session(session))


async def join_run(run: Run, config: RunConfig, surroundings: Surroundings) -> Session:
    """Open the session of a worker, on the engine's loop; `config` is what the leader froze. Raises `RunError`."""
    assert run.lead is not None
    storage = open_storage(run.output_uri)
    lock = LeadersLock(storage, run.lead.lock_key, run.lead.token)
    key = surroundings.api_key or api_key(config)
    return await _open_session(_Opening(run, config, storage, lock, run.lead.base_url, key, surroundings))


def scan_source(run: Run) -> Shards:
    """Fix the manifest, unless an earlier attempt did, and return the shards that are still to do."""
    session = session_of(run)
    storage, shard_size, tally = session.storage, session.config.execution.shard_size, session.tally
    key = run.key("manifest.parquet")
    if not storage.exists(key):
        known = _find_known(session) if session.config.source.only_new else None
        write_manifest(storage, key, session.config.source, shard_size, session.labeller.lock.check, known)
    tally.images_skipped = count_skipped(storage, key)
    tally.images_total = count_manifest(storage, key)
    shards = Shards(tally.images_total, shard_size, frozenset(written_shards(storage, run.id)))
    tally.images_before = tally.images_total - shards.count_images()
    tally.shards_total = len(shards)
    return shards


def _find_known(session: Session) -> "KnownImages":
    from pixscribe.known import find_known

    return find_known(session.storage, session.config, session.run.id)


def publish(run: Run) -> RunSummary:
    """Add up the shards, write the page, and then `run.json`, which makes the run complete."""
    session = session_of(run)
    elapsed_s = time.monotonic() - session.started_s
    summary = summarize(session.storage, run.id, session.config, elapsed_s, session.tally.images_done)
    summary = replace(summary, images_skipped=session.tally.images_skipped)
    session.labeller.lock.check()
    if run.lead is not None:
        _sweep(session.storage, run)
    _forget_claims(session.storage, run)
    session.storage.tidy(run.key("journal"))
    if session.config.output.report:
        session.tally.stage = "drawing the page"
        summary = with_page(session.storage, summary, session.labeller.lock.check, session.labeller.is_over)
        session.labeller.lock.check()
    write_summary(session.storage, summary)
    session.storage.delete(run.key(ANEW))
    session.summary = summary
    return summary


def summarize(storage: Storage, run_id: str, config: RunConfig, elapsed_s: float, images_done: int) -> RunSummary:
    """What the committed shards of a run come to, which took so long for so many images, until now."""
    now = datetime.now(UTC)
    return RunSummary(
        run=run_id,
        name=config.name,
        status="complete",
        output=storage.uri,
        tables={table: storage.uri_of(table) for table in TABLES},
        model=config.model.name,
        totals=add_up(storage, run_id),
        started_at=datetime.fromtimestamp(now.timestamp() - elapsed_s, UTC).isoformat(timespec="seconds"),
        finished_at=now.isoformat(timespec="seconds"),
        elapsed_s=round(elapsed_s, 3),
        images_per_s=round(images_done / max(elapsed_s, 1e-9), 3),
        config_digest=config_digest(config),
        version=__version__,
    )


def write_summary(storage: Storage, summary: RunSummary) -> None:
    """Make a run complete."""
    storage.write(f"runs/{summary.run}/run.json", orjson.dumps(asdict(summary), option=orjson.OPT_INDENT_2))


def with_page(
    storage: Storage, summary: RunSummary, check: Callable[[], None], is_over: Callable[[], bool] = lambda: False
) -> RunSummary:
    """Write the page of a run whose parts are all there, and say where it is, unless it could not be written.

    `check` raises if the run is not ours any more. The page is given up soon after `is_over`, and pictures that are
    slow to come are left out of it.
    """
    from pixscribe.report import make_report  # brings what draws, which other processes do without
    from pixscribe.results import RunResults

    key = f"runs/{summary.run}/report.html"
    try:
        results = RunResults(storage, summary.run)
        page = make_report(results, summary=asdict(summary), limit_s=PAGE_LIMIT_S, is_over=is_over)
        storage.commit(key, page, check)
    except LockLost:
        raise
    except Exception as error:
        # whatever it is, the tables are there, and `pixscribe report` can be tried again
        logger.error("the page of the run could not be written: %s: %s", type(error).__name__, error)
        return summary
    return replace(summary, report=storage.uri_of(key))


def _forget_claims(storage: Storage, run: Run) -> None:
    """Remove what workers that were killed have left, of this attempt or of one before."""
    for name in (*storage.list(run.key("claims")), ".guard"):
        storage.delete(run.key(f"claims/{name}"))
    storage.tidy(run.key("claims"))


def list_runs(output_uri: str) -> list[dict[str, Any]]:
    """Every run of an output, oldest first: `run.json` of the complete ones, counts so far of the others."""
    storage = open_storage(output_uri)
    names = [name for name in storage.list("runs") if RUN_ID.fullmatch(name)]
    return [_describe_or_say(output_uri, name) for name in names if storage.exists(f"runs/{name}/config.yaml")]


def describe_run(output_uri: str, run_id: str) -> dict[str, Any]:
    """One run as a mapping with the keys of `RunSummary`. Raises `ConfigError` if there is no such run."""
    storage = open_storage(output_uri)
    try:
        summary = orjson.loads(storage.read(f"runs/{run_id}/run.json"))
    except FileNotFoundError:
        return _describe_unfinished(storage, run_id)
    except (OSError, orjson.JSONDecodeError) as error:
        raise OutputError(f"{storage.uri_of(f'runs/{run_id}/run.json')}: cannot be read: {error}") from error
    if not isinstance(summary, dict) or not {"run", "status", "totals"} <= summary.keys():
        raise OutputError(f"{storage.uri_of(f'runs/{run_id}/run.json')}: is no account of a run")
    return summary


def _describe_or_say(output_uri: str, run_id: str) -> dict[str, Any]:
    """One run that cannot be read must not hide the others."""
    try:
        return describe_run(output_uri, run_id)
    except (ConfigError, OutputError) as error:
        logger.error("%s", error)
        return {"run": run_id, "status": "unreadable", "totals": asdict(Totals())}


def locate_run(run: str) -> tuple[str, str]:
    """(output URI, run id) of `OUTPUT@RUN_ID`, or of the path of a run's folder. Raises `ConfigError`."""
    output_uri, at, run_id = run.rpartition("@")
    if not at or "/" in run_id:
        output_uri, _, run_id = run.rstrip("/").rpartition("/runs/")
    if not output_uri or not RUN_ID.fullmatch(run_id):
        raise ConfigError(f"{run!r} names no run; write OUTPUT@RUN_ID or the path of OUTPUT/runs/RUN_ID")
    return output_uri, run_id


def make_questions(config: RunConfig) -> list[Question]:
    """The prompts of a config with their texts and schemas filled in. Raises `ConfigError`."""
    return [make_question(prompt.name, prompt.kind, prompt.text, prompt.labels) for prompt in config.prompts]


def api_key(config: RunConfig) -> str:
    """The key from the environment; the built-in emulator takes any. Raises `ConfigError`, which never shows it."""
    return "emulator" if config.model.base_url == EMULATOR else environment_key()


@contextmanager
def _emulator_if_named(config: RunConfig) -> Iterator[str]:
    if config.model.base_url != EMULATOR:
        yield config.model.base_url
        return
    from pixscribe.emulator import Emulator  # only a demo needs it, and it takes a while to import

    with Emulator() as emulator:
        yield emulator.url


@dataclass(frozen=True, slots=True)
class _Opening:
    """Everything that a session is made of."""

    run: Run
    config: RunConfig
    storage: Storage
    lock: RunLock | LeadersLock
    base_url: str
    api_key: str = field(repr=False)
    surroundings: Surroundings

    @property
    def is_worker(self) -> bool:
        """Whether another process leads the run."""
        return isinstance(self.lock, LeadersLock)


async def _open_session(opening: _Opening) -> Session:
    """On the engine's loop, to which the HTTP client and the limiter then belong."""
    run, config, storage = opening.run, opening.config, opening.storage
    tally = Tally()
    journal = Journal(storage, run.id)
    archive = Archive(storage, run.id)
    past = await asyncio.to_thread(_look_back, opening, journal, archive)
    store = BatchStore(storage, run.id)
    records = await asyncio.to_thread(store.read)
    transport = open_transport(opening.base_url, concurrency=config.limits.concurrency)
    try:
        client = GeminiClient(
            transport, base_url=opening.base_url, api_key=opening.api_key, timeout_s=config.retry.timeout_s
        )
        if not opening.is_worker:
            await _check_model(client, config)
    except BaseException:
        await transport.aclose()
        raise
    limiter = Limiter(
        config.limits,
        spent_usd=past.spent_usd + sum(record.lost_usd for record in records),
        asked_today=past.asked_today,
        shared=opening.surroundings.shared_quota,
        money=opening.surroundings.shared_budget,
    )
    policy = RetryPolicy.from_config(config.retry, tally.count_retry)
    answering, uploading = (
        Breaker.from_config(f"{opening.base_url}: {what}", config.retry) for what in ("the model", "the Files API")
    )
    questions = make_questions(config)
    uploader = Uploader(client, limiter, policy, uploading, tally, looks_first=run.is_resumed or not archive.is_empty)
    asker: Asker | BatchAsker
    if config.model.mode == "batch":
        jobs = BatchJobs(BatchClient(client), uploader, limiter, policy, answering, config)
        asker = BatchAsker(jobs, store, limiter, policy, config, tally, journal, archive, opening.lock.check)
        asker.open(records, questions)
    else:
        price = find_price(config.model.name, config.prices)
        asker = Asker(client, limiter, policy, answering, config.model, price, tally)
    labeller = Labeller(
        run_id=run.id,
        manifest_key=run.key("manifest.parquet"),
        config=config,
        questions=questions,
        storage=storage,
        asker=asker,
        uploader=uploader,
        journal=journal,
        archive=archive,
        lock=opening.lock,
        tally=tally,
    )
    background = [asyncio.create_task(journal.flush_for_ever()), asyncio.create_task(_watch(opening.lock, labeller))]
    return Session(run, config, storage, transport, labeller, background, limiter, tally, past, time.monotonic())


async def close_session(session: Session) -> None:
    """Whatever ended the run, what was answered is written before the connections go."""
    for task in session.background:
        task.cancel()
    try:
        await session.labeller.finish()
    finally:
        await session.transport.aclose()
        await session.limiter.close()


async def _check_model(client: GeminiClient, config: RunConfig) -> None:
    """Let a wrong key or model cost nothing, not even uploads. What else goes wrong, the run itself can deal with."""
    try:
        async with asyncio.timeout(CHECK_LIMIT_S):
            await client.check_model(config.model.name)
    except PermissionRefused as error:
        raise AuthenticationError(f"GEMINI_API_KEY may not use the model ({error})") from error
    except (ImageError, QuotaExhausted, TimeoutError) as error:
        logger.info("the model could not be looked up: %s", error)


async def _watch(lock: RunLock | LeadersLock, labeller: Labeller) -> None:
    """Send nothing more once the lock is lost: its new owner asks the same questions, and both would pay."""
    while not lock.is_lost:
        await asyncio.sleep(WATCH_EVERY_S)
        if isinstance(lock, LeadersLock):  # the leader's own has a heartbeat that looks at it
            with suppress(LockLost):
                await asyncio.to_thread(lock.check)
    labeller.give_up(LockLost("another process has taken over this run, because nothing was heard of this one"))


def _look_back(opening: _Opening, journal: Journal, archive: Archive) -> Past:
    """Find what was paid for, and what it cost this run: in the shards it committed, and in those it was at.

    Where workers do the work, each of them looks for answers, and the leader for costs.
    """
    storage, run = opening.storage, opening.run
    asks_anew = storage.exists(run.key(ANEW))
    if opening.is_worker:
        archive.open({}, only_this_run=asks_anew)
        return Past()
    _sweep(storage, run)
    committed = check_parts(storage, run.id)
    journal.drop(written_shards(storage, run.id))
    journaled = journal.answers()
    if run.lead is None:
        archive.open(journaled, only_this_run=asks_anew)
    journaled_usd = sum(answer.cost_usd or 0.0 for answer in journaled.values())
    asked_today = 0
    if opening.config.limits.requests_per_day is not None and opening.surroundings.shared_quota is None:
        today = datetime.combine(datetime.now(PACIFIC).date(), datetime.min.time(), PACIFIC)
        asked_today = asked_since(storage, today) + sum(
            answer.attempts for answer in journaled.values() if answer.asked_at and answer.asked_at >= today
        )
    return Past(committed.cost_usd + journaled_usd, asked_today)


def _sweep(storage: Storage, run: Run) -> None:
    for folder in (*(f"{table}/run={run.id}" for table in TABLES), run.key("journal")):
        storage.sweep(folder)


def _with_lead(run: Run, config: RunConfig, lock: RunLock, base_url: str) -> Run:
    if config.execution.engine == "local":
        return run
    shared_as = config.limits.shared_as or f"pixscribe-{run.id}"
    return replace(run, lead=Lead(lock.key, lock.owner.token, base_url, shared_as))


def _find_or_name(storage: Storage, config: RunConfig, run_id: str | None, new: bool) -> Run:
    found = None if new else find_unfinished(storage, config, run_id)
    if found is None:
        found = Run(run_id or _new_id(storage, config), storage.uri)
        if storage.exists(found.key("config.yaml")):
            raise ConfigError(
                f"--run-id: the run {found.id!r} exists already in {storage.uri}, complete or of another config"
            )
    return found


def begin_replay(storage: Storage, config: RunConfig, earlier: str, run_id: str | None = None) -> Run:
    """A new run about just the images of an earlier one, or that of `run_id` again, if it is its unfinished replay.

    Raises `ConfigError` if `run_id` is taken, or no name of a run.
    """
    check_run_id(run_id)
    if run_id is not None and _is_replay_of(storage, run_id, earlier):
        return Run(run_id, storage.uri)
    run = _find_or_name(storage, config, run_id, new=True)
    storage.write(run.key(REPLAY), earlier.encode())
    storage.write(run.key("config.yaml"), dump_config(config).encode())
    storage.write(run.key("manifest.parquet"), storage.read(f"runs/{earlier}/manifest.parquet"))
    return run


def _is_replay_of(storage: Storage, run_id: str, earlier: str) -> bool:
    try:
        return storage.read(f"runs/{run_id}/{REPLAY}") == earlier.encode()
    except FileNotFoundError:
        return False


def _freeze(storage: Storage, run: Run, config: RunConfig, new: bool) -> RunConfig:
    """Write down what the run is about. Shards stay cut as they were; limits, retries and engine may change."""
    if new:
        storage.write(run.key(ANEW), b"")
    if run.is_resumed:
        shard_size = read_config(storage, run.id).execution.shard_size
        execution = config.execution.model_copy(update={"shard_size": shard_size})
        config = config.model_copy(update={"execution": execution})
    storage.write(run.key("config.yaml"), dump_config(config).encode())
    return config


def read_config(storage: Storage, run_id: str) -> RunConfig:
    """The config that a run froze."""
    origin = storage.uri_of(f"runs/{run_id}/config.yaml")
    try:
        text = storage.read(f"runs/{run_id}/config.yaml").decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: is not UTF-8 text") from error
    return make_config(parse_yaml(text, origin=origin), origin=origin)


def find_unfinished(storage: Storage, config: RunConfig, run_id: str | None) -> Run | None:
    """The newest run that asks the same and was not completed."""
    names = [run_id] if run_id else reversed(storage.list("runs"))
    for name in names:
        if storage.exists(f"runs/{name}/run.json") or not storage.exists(f"runs/{name}/config.yaml"):
            continue
        if storage.exists(f"runs/{name}/{REPLAY}"):  # it was to ask nothing, and lists what there was then
            continue
        try:
            digest = config_digest(read_config(storage, name))
        except ConfigError as error:
            # of another version, or damaged: not to be taken up, and not to be passed over in silence either
            logger.error("an unfinished run is left alone: %s", error)
            continue
        if digest == config_digest(config):
            return Run(name, storage.uri, is_resumed=True)
    return None


def _new_id(storage: Storage, config: RunConfig) -> str:
    started = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    base = f"{config.name}-{started}-{config_digest(config)}"
    taken = set(storage.list("runs"))
    return next(name for name in [base, *(f"{base}.{n}" for n in range(2, 1000))] if name not in taken)


def _describe_unfinished(storage: Storage, run_id: str) -> dict[str, Any]:
    try:
        config = read_config(storage, run_id)
    except FileNotFoundError:
        raise ConfigError(f"{storage.uri}: there is no run {run_id!r}") from None
    totals = add_up(storage, run_id)
    return {
        "run": run_id,
        "name": config.name,
        "status": "unfinished",
        "output": storage.uri,
        "model": config.model.name,
        "totals": asdict(totals),
        "config_digest": config_digest(config),
    }
