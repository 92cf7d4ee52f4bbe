"""Scheduled runs: from one process that stays, or from the workers of a Prefect work pool."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import httpx

from flows.prefect_server import configured_api_url
from pixscribe.config import RunConfig, with_absolute_uris
from pixscribe.errors import ConfigError
from pixscribe.run import check_asking, check_before

if TYPE_CHECKING:
    from prefect.schedules import Schedule

    from flows.schedule_cli import Overlap

CONNECT_LIMIT_S = 20.0


def serve(
    config: RunConfig, cron: str | None, timezone: str | None, overlap: "Overlap", say: Callable[[str], None]
) -> None:
    """Run the config by the schedule, and whenever Prefect is told to, until Ctrl-C or SIGTERM.

    Raises `ConfigError` for what could not work.
    """
    schedule = _schedule(cron, timezone)
    check_before(config)
    _require_server("serve")
    from flows.annotate import annotate

    say(f"serving {annotate.name}/{config.name}{f' by {cron!r}' if cron else ''}; Ctrl-C ends it")
    annotate.serve(**_settings(config, overlap), schedule=schedule, print_starting_message=False)


def deploy(
    config: RunConfig, pool: str, cron: str | None, timezone: str | None, overlap: "Overlap", image: str | None
) -> str:
    """Register the config on a work pool, and return the name of the deployment. Raises `ConfigError`.

    Its workers, or the image that they start, have pixscribe installed.
    """
    schedule = _schedule(cron, timezone)
    check_asking(config)
    _require_server("deploy")
    from prefect.deployments.runner import DeploymentApplyError

    try:
        return asyncio.run(_deploy(_settings(config, overlap), schedule, pool, image))
    except (DeploymentApplyError, ValueError) as error:
        raise ConfigError(f"--pool {pool}: {' '.join(str(error).split())}") from error


async def _deploy(settings: dict[str, Any], schedule: "Schedule | None", pool: str, image: str | None) -> str:
    from flows.annotate import annotate

    limit = settings.pop("global_limit")
    deployment = await annotate.ato_deployment(**settings, concurrency_limit=limit, schedule=schedule)
    await deployment.aapply(work_pool_name=pool, image=image)
    return f"{annotate.name}/{deployment.name}"


def _settings(config: RunConfig, overlap: "Overlap") -> dict[str, Any]:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    strategy = ConcurrencyLimitStrategy.ENQUEUE if overlap == "wait" else ConcurrencyLimitStrategy.CANCEL_NEW
    return {
        "name": config.name,
        "parameters": {"config": with_absolute_uris(config).model_dump(mode="json")},
        "global_limit": ConcurrencyLimitConfig(limit=1, collision_strategy=strategy),
        # wherever pixscribe is installed, whatever the folder
        "entrypoint_type": EntrypointType.MODULE_PATH,
    }


def _schedule(cron: str | None, timezone: str | None) -> "Schedule | None":
    if cron is None and timezone is not None:
        raise ConfigError("--timezone: says nothing without --cron")
    if cron is None:
        return None
    from prefect.schedules import Cron

    try:
        ZoneInfo(timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"--timezone {timezone!r}: is no time zone, such as Europe/Berlin") from error
    try:
        return Cron(cron, timezone=timezone or "UTC")
    except ValueError as error:
        raise ConfigError(
            f"--cron {cron!r}: should be five fields, such as '0 2 * * *' for each night at two"
        ) from error


def _require_server(command: str) -> None:
    url = configured_api_url()
    if url is None:
        raise ConfigError(
            f"{command}: schedules live in a Prefect server; start one with `prefect server start` and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        # whatever it answers, it is there
        httpx.get(f"{url}/health", timeout=CONNECT_LIMIT_S)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ConfigError(f"PREFECT_API_URL={url}: no Prefect server can be reached there ({error})") from error
