"""The command that says what a run will be before it is begun."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
from cyclopts import Parameter

from flows.arguments import ConfigPath, Limit, OutputUri, Sets, SourceUri, Verbose, read_changes, set_up_logging
from flows.console import print_plan, print_summary, say, stderr
from pixscribe.config import RunConfig, load_config


def plan(
    config: ConfigPath,
    *,
    source: SourceUri = None,
    output: OutputUri = None,
    limit: Limit = None,
    set_: Sets = (),
    sample: Annotated[
        int | None,
        Parameter(help="Ask about N images first, spread over the source, and take the length of their answers."),
    ] = None,
    exact: Annotated[
        bool, Parameter(help="Read every image, also of a source with more than 2000 or 1 GiB.", negative="")
    ] = False,
    as_json: Annotated[bool, Parameter(name="--json", help="One JSON object on stdout.", negative="")] = False,
    verbose: Verbose = False,
) -> int:
    """Say what a run will be: images, what is answered already, tokens, USD, hours, and storage in the Files API.

    Asks the model nothing, needs no key and writes nothing. With --sample, answers are paid for and kept at the output,
    where the run finds them.

    Example: pixscribe plan configs/backfill.yaml --sample 50
    """
    set_up_logging(verbose)
    changes = read_changes(set_, {"source.uri": source, "output.uri": output, "source.limit": limit})
    settings = load_config(config, changes)
    if sample is not None:
        _ask_sample(config, changes, sample)
    from pixscribe.plan import make_plan

    made = make_plan(settings, exact=exact, tell=say)
    if as_json:
        print(orjson.dumps(asdict(made)).decode())
    else:
        print_plan(made, settings)
    return 0


def _ask_sample(path: Path, changes: dict[str, Any], count: int) -> None:
    """Run the config on a few of its images, in this process. Raises `RunError`."""
    from flows.runner import run_here

    # a job of the Batch API may take a day for as many, to save a few cents
    now = {"source.sample": count, "execution": {}, "model.mode": "interactive"}
    settings: RunConfig = load_config(path, {**changes, **now})
    print_summary(run_here(settings, run_id=None, new=False), settings, stderr)
