"""The commands that leave a config with Prefect, which then runs it by a schedule."""

from typing import Annotated, Literal

from cyclopts import Parameter

from flows.arguments import ConfigPath
from flows.console import say
from pixscribe.config import load_config

Overlap = Literal["wait", "skip"]
Cron = Annotated[str | None, Parameter(help='When, such as "0 2 * * *" for each night at two.')]
Timezone = Annotated[str | None, Parameter(help="Of the schedule, such as Europe/Berlin; UTC if left out.")]
WhenBusy = Annotated[Overlap, Parameter(help="What a run does that is due while the one before still goes on.")]


def serve(config: ConfigPath, *, cron: Cron = None, timezone: Timezone = None, overlap: WhenBusy = "wait") -> int:
    """Run a config by a schedule from this process, until Ctrl-C. Needs a Prefect server (PREFECT_API_URL).

    Example: pixscribe serve configs/nightly.yaml --cron "0 2 * * *" --timezone Europe/Berlin
    """
    from flows.serving import serve as serve_config

    serve_config(load_config(config), cron, timezone, overlap, say)
    return 0


def deploy(
    config: ConfigPath,
    *,
    pool: Annotated[str, Parameter(help="The work pool whose workers run it.")],
    cron: Cron = None,
    timezone: Timezone = None,
    overlap: WhenBusy = "wait",
    image: Annotated[str | None, Parameter(help="For pools of containers: an image with pixscribe in it.")] = None,
) -> int:
    """Register a config on a work pool; its workers run it by the schedule. Needs a Prefect server (PREFECT_API_URL).

    Example: pixscribe deploy configs/nightly.yaml --pool here --cron "0 2 * * *" --timezone Europe/Berlin
    """
    from flows.serving import deploy as deploy_config

    name = deploy_config(load_config(config), pool, cron, timezone, overlap, image)
    print(f"{name} is deployed; a worker of the pool runs it: prefect worker start --pool {pool}")
    print(f"now and by hand: prefect deployment run '{name}'")
    return 0
