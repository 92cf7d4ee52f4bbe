"""The command `pixscribe`: what it takes, what it says, and how it ends.

Exit codes: 0 done, every image ok; 1 done, some rows failed; 2 bad usage or config; 3 stopped before the end and
resumable; 130 and 143 interrupted by Ctrl-C and SIGTERM, resumable.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import cyclopts
import orjson
from cyclopts import App, Parameter

from flows.arguments import ConfigPath, Limit, OutputUri, Sets, SourceUri, Verbose, read_changes, set_up_logging
from flows.console import print_changed, print_files, print_run, print_runs, print_summary, say, stderr, stdout
from flows.plan_cli import plan
from flows.results_cli import RunName, add_commands
from flows.schedule_cli import deploy, serve
from pixscribe import __version__
from pixscribe.config import DEFAULT_BASE_URL, RunConfig, environment_key, json_schema, load_config
from pixscribe.errors import ConfigError, RunError

if TYPE_CHECKING:
    from pixscribe.run import RunSummary

logger = logging.getLogger("pixscribe")

app = App(
    name="pixscribe",
    help="Label image datasets with Gemini: a folder or bucket in, Parquet tables out.",
    version=__version__,
    help_format="plaintext",
    console=stdout,
)

SummaryAsJson = Annotated[
    bool, Parameter(name="--json", help="The last line of stdout is the summary, one JSON object.", negative="")
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    _replace_closed_streams()
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        code = _refuse(f"{error}; see pixscribe --help")
    except RunError as error:
        code = _refuse(str(error), error.exit_code)
    except BrokenPipeError:
        _leave_stdout()
        code = 1
    except Exception as error:
        # a fault of ours or of the surroundings: still one sentence, and no exit code that means "done"
        logger.debug("what led to it", exc_info=error)
        code = _refuse(f"unexpected {type(error).__name__}: {error}; -v shows where".replace("\n", " "), 3)
    except KeyboardInterrupt:
        code = _refuse("interrupted", 130)
    try:
        sys.stdout.flush()
    except OSError:
        _leave_stdout()
    sys.exit(code if isinstance(code, int) else 0)


@app.command
def run(
    config: ConfigPath,
    *,
    source: SourceUri = None,
    output: OutputUri = None,
    limit: Limit = None,
    set_: Sets = (),
    run_id: Annotated[str | None, Parameter(help="Name the run; an unfinished one of that name is resumed.")] = None,
    new: Annotated[
        bool, Parameter(help="Start afresh: take up no unfinished run, and ask again what was answered.", negative="")
    ] = False,
    as_json: SummaryAsJson = False,
    verbose: Verbose = False,
) -> int:
    """Label every image of the source: the main job.

    A run of the same config that did not finish is taken up where it stopped. What any run of the same output was
    answered is not asked again.

    Example: pixscribe run configs/demo.yaml --limit 10 --set limits.concurrency=8
    """
    set_up_logging(verbose)
    settings = load_config(
        config, read_changes(set_, {"source.uri": source, "output.uri": output, "source.limit": limit})
    )
    from flows.runner import run_here

    return _show_summary(run_here(settings, run_id=run_id, new=new), settings, as_json)


@app.command
def rerun(
    run: RunName,
    *,
    replay: Annotated[
        bool, Parameter(help="Use the stored answers only: no request, no key, and no image is read.", negative="")
    ] = False,
    failed: Annotated[bool, Parameter(help="Only the images that are not ok.", negative="")] = False,
    model: Annotated[str | None, Parameter(help="Instead of model.name.")] = None,
    set_: Sets = (),
    run_id: Annotated[str | None, Parameter(help="Name the new run.")] = None,
    new: Annotated[bool, Parameter(help="Ask again what was answered.", negative="")] = False,
    as_json: SummaryAsJson = False,
    verbose: Verbose = False,
) -> int:
    """Do a run again from its frozen config, about the very images of its manifest.

    What was answered is not asked again, so that only what failed, or what --set and --model make another question,
    costs anything; `pixscribe diff` compares the two. Says which images are unreadable or changed since.

    Example: pixscribe rerun data/runs@demo-20261122-101500-3fa94c1e --replay
    """
    set_up_logging(verbose)
    from pixscribe.replay import replay as replay_run
    from pixscribe.rerun import find_changed, rerun_config
    from pixscribe.results import open_results

    before = open_results(run)
    if replay:
        _refuse_idle(failed=failed, model=model, set=set_, new=new)
        return _show_summary(replay_run(before, run_id), before.config, as_json)
    changes = read_changes(set_, {"model.name": model})
    settings = rerun_config(before, changes, only_failed=failed)
    from flows.runner import run_here

    summary = run_here(settings, run_id=run_id, new=new)
    print_changed(find_changed(before, open_results(f"{summary.output}@{summary.run}")))
    return _show_summary(summary, settings, as_json)


@app.command
def check(config: ConfigPath) -> int:
    """Validate a config without running it.

    Example: pixscribe check configs/demo.yaml
    """
    from pixscribe.run import check_asking

    settings = load_config(config)
    check_asking(settings)
    prompts = ", ".join(f"{prompt.name} ({prompt.kind})" for prompt in settings.prompts)
    print(f"{config}: ok: {settings.source.uri} -> {settings.output.uri}, prompts {prompts}, {settings.model.name}")
    return 0


@app.command
def schema() -> int:
    """Print the JSON Schema of a config file, for editors.

    Example: pixscribe schema > pixscribe.schema.json
    """
    print(json.dumps(json_schema(), indent=2))
    return 0


@app.command
def runs(
    output: Annotated[str, Parameter(help="The output.uri of the runs.")],
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="One JSON object per line.", negative="")] = False,
) -> int:
    """List the runs of an output, oldest first.

    Example: pixscribe runs data/runs
    """
    from pixscribe.run import list_runs

    found = list_runs(output)
    if not found:
        say(f"{output}: there are no runs")
    if as_json:
        _print_json_lines(found)
    elif found:
        print_runs(found)
    return 0


@app.command
def show(
    run: Annotated[str, Parameter(help="OUTPUT@RUN_ID, or the folder OUTPUT/runs/RUN_ID.")],
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="One JSON object.", negative="")] = False,
) -> int:
    """Show one run: counts, errors by code, cost, throughput.

    Example: pixscribe show data/runs@demo-20261122-101500-3fa94c1e
    """
    from pixscribe.run import describe_run, locate_run

    found = describe_run(*locate_run(run))
    if as_json:
        _print_json_lines([found])
    else:
        print_run(found)
    return 0


for _command in (plan, serve, deploy):
    app.command(_command)
add_commands(app)


@app.command
def emulate(
    *,
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0 takes a free one.")] = 8765,
    latency: Annotated[float, Parameter(help="Seconds before each answer of the model.")] = 0.0,
    batch_latency: Annotated[float, Parameter(help="Seconds until a batch is answered.")] = 0.0,
    rpm: Annotated[float | None, Parameter(help="Questions per minute; above it 429, as Gemini words it.")] = None,
    fault: Annotated[str, Parameter(help="NAME=PROBABILITY, several with commas, such as 429=0.05,503=0.01.")] = "",
    masks: Annotated[Literal["polygon", "png"], Parameter(help="How outlines are answered.")] = "polygon",
    look: Annotated[bool, Parameter(help="--no-look answers two fixed objects without decoding images.")] = True,
) -> int:
    """Serve a local Gemini-compatible API that looks at the images it is sent, until Ctrl-C.

    Example: pixscribe emulate --port 8765 --latency 0.3 --fault 429=0.05
    """
    from pixscribe.emulator import FAULTS, EmulatorOptions, serve_forever

    faults = _read_faults(fault, FAULTS)
    if latency < 0 or (rpm is not None and rpm <= 0) or not 0 <= port < 65536 or not 0 <= batch_latency <= 604_800:
        raise ConfigError(
            "--latency should be at least 0, --rpm above 0, --port from 0 to 65535, --batch-latency from 0 to 604800"
        )
    options = EmulatorOptions(
        host=host,
        port=port,
        latency_s=latency,
        batch_latency_s=batch_latency,
        requests_per_minute=rpm,
        faults=faults,
        masks=masks,
        look=look,
    )
    say("the emulator's URL, for model.base_url, is on stdout; Ctrl-C ends it and shows its books")
    try:
        serve_forever(options)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot be listened on: {error.strerror}") from error
    return 0


files = App(name="files", help="What pixscribe stores in the Files API: 20 GB for a project, each file for 48 hours.")
app.command(files)

BaseUrl = Annotated[str, Parameter(help="The API's origin, as in model.base_url.")]


@files.command(name="list")
def list_files(
    *,
    base_url: BaseUrl = DEFAULT_BASE_URL,
    as_json: Annotated[bool, Parameter(name="--json", help="One JSON object per file.", negative="")] = False,
) -> int:
    """Show how much of the storage is in use, and how much of that is ours.

    Example: pixscribe files list
    """
    from pixscribe.uploads import describe_files

    found, totals = asyncio.run(describe_files(_checked_origin(base_url), environment_key()))
    if as_json:
        _print_json_lines(found)
    else:
        print_files(totals)
    return 0


@files.command
def clean(*, base_url: BaseUrl = DEFAULT_BASE_URL) -> int:
    """Delete the files that pixscribe has uploaded, and no others. A run that still needs one uploads it again.

    Example: pixscribe files clean
    """
    from pixscribe.uploads import delete_ours

    count, size_bytes = asyncio.run(delete_ours(_checked_origin(base_url), environment_key()))
    print(f"{count} files deleted, {size_bytes / 1e9:.3f} GB")
    return 0


def _checked_origin(base_url: str) -> str:
    if not base_url.startswith(("http://", "https://")) or not urlsplit(base_url).netloc:
        raise ConfigError(f"--base-url: {base_url!r}: should be an http(s) URL")
    return base_url


def _replace_closed_streams() -> None:
    """Python has no stream at all where the shell has closed one (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (open as long as the process lives)


def _leave_stdout() -> None:
    """Nobody reads it any more; Python would complain about that once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_summary(summary: "RunSummary", config: RunConfig, as_json: bool) -> int:
    """Print what a run came to, and return the exit code."""
    try:
        print_summary(summary, config, stderr if as_json else stdout)
        if as_json:
            print(orjson.dumps(asdict(summary)).decode(), flush=True)
    except OSError as error:
        # the run is complete, whatever becomes of its summary
        say(f"pixscribe: run {summary.run} is complete, but stdout cannot be written: {error.strerror}")
        _leave_stdout()
    return 0 if summary.is_all_ok else 1


def _refuse_idle(**options: object) -> None:
    """Refuse options that --replay would do nothing with."""
    for name, value in options.items():
        if value:
            raise ConfigError(
                f"--{name}: --replay asks nothing, so that it would change nothing; leave one of them out"
            )


def _read_faults(text: str, known: Any) -> dict[str, float]:
    faults = {}
    for item in filter(None, text.split(",")):
        name, _, probability = item.partition("=")
        try:
            faults[name.strip()] = float(probability)
        except ValueError:
            raise ConfigError(f"--fault {item}: should be NAME=PROBABILITY") from None
        if name.strip() not in known:
            raise ConfigError(f"--fault {name}: unknown; allowed: {', '.join(known)}")
        if not 0 <= faults[name.strip()] <= 1:
            raise ConfigError(f"--fault {item}: the probability should be from 0 to 1")
    return faults


def _print_json_lines(values: Sequence[Any]) -> None:
    for value in values:
        print(orjson.dumps(value).decode())


def _refuse(sentence: str, code: int = 2) -> int:
    say(f"pixscribe: {sentence}")
    return code


if __name__ == "__main__":
    main()
