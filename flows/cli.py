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
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import cyclopts
import orjson
import yaml
from cyclopts import App, Parameter

from flows.console import print_files, print_run, print_runs, print_summary, say, stderr, stdout
from pixscribe import __version__
from pixscribe.config import DEFAULT_BASE_URL, environment_key, json_schema, load_config
from pixscribe.errors import ConfigError, RunError
from pixscribe.prompts import make_question

logger = logging.getLogger("pixscribe")

app = App(
    name="pixscribe",
    help="Label image datasets with Gemini: a folder or bucket in, Parquet tables out.",
    version=__version__,
    help_format="plaintext",
    console=stdout,
)

ConfigPath = Annotated[Path, Parameter(help="A YAML file; `pixscribe schema` describes it.")]


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
    source: Annotated[str | None, Parameter(help="Instead of source.uri.")] = None,
    output: Annotated[str | None, Parameter(help="Instead of output.uri.")] = None,
    limit: Annotated[int | None, Parameter(help="Instead of source.limit: only the first N images.")] = None,
    set_: Annotated[
        tuple[str, ...],
        Parameter(name="--set", help="key.path=value, the value in YAML; may be given again.", negative=""),
    ] = (),
    run_id: Annotated[str | None, Parameter(help="Name the run; an unfinished one of that name is resumed.")] = None,
    new: Annotated[
        bool, Parameter(help="Start afresh: take up no unfinished run, and ask again what was answered.", negative="")
    ] = False,
    json: Annotated[
        bool, Parameter(help="The last line of stdout is the summary, one JSON object.", negative="")
    ] = False,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], help="Say more on stderr.", negative="")] = False,
) -> int:
    """Label every image of the source: the main job.

    A run of the same config that did not finish is taken up where it stopped. What any run of the same output was
    answered is not asked again.

    Example: pixscribe run configs/demo.yaml --limit 10 --set limits.concurrency=8
    """
    _set_up_logging(verbose)
    settings = load_config(config, _changes(source, output, limit, set_))
    from flows.runner import run_here

    summary = run_here(settings, run_id=run_id, new=new)
    code = 0 if summary.is_all_ok else 1
    try:
        print_summary(summary, settings.model.base_url, stderr if json else stdout)
        if json:
            print(orjson.dumps(asdict(summary)).decode(), flush=True)
    except OSError as error:
        # the run is complete, whatever becomes of its summary
        say(f"pixscribe: run {summary.run} is complete, but stdout cannot be written: {error.strerror}")
        _leave_stdout()
    return code


@app.command
def check(config: ConfigPath) -> int:
    """Validate a config without running it.

    Example: pixscribe check configs/demo.yaml
    """
    settings = load_config(config)
    for prompt in settings.prompts:
        make_question(prompt.name, prompt.kind, prompt.text, prompt.labels)
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


@app.command
def emulate(
    *,
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="0 takes a free one.")] = 8765,
    latency: Annotated[float, Parameter(help="Seconds before each answer of the model.")] = 0.0,
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
    if latency < 0 or (rpm is not None and rpm <= 0) or not 0 <= port < 65536:
        raise ConfigError("--latency should be at least 0, --rpm above 0, --port from 0 to 65535")
    options = EmulatorOptions(
        host=host, port=port, latency_s=latency, requests_per_minute=rpm, faults=faults, masks=masks, look=look
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


def _changes(source: str | None, output: str | None, limit: int | None, sets: Sequence[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for text in sets:
        key_path, equals, value = text.partition("=")
        if not equals or not key_path:
            raise ConfigError(f"--set {text}: should be key.path=value")
        try:
            changes[key_path.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"--set {key_path}: the value is not YAML") from error
    named = {"source.uri": source, "output.uri": output, "source.limit": limit}
    return changes | {key_path: value for key_path, value in named.items() if value is not None}


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


def _set_up_logging(verbose: bool) -> None:
    from rich.logging import RichHandler

    handler = RichHandler(console=stderr, show_path=False, show_level=False, markup=False, rich_tracebacks=False)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)


def _print_json_lines(values: Sequence[Any]) -> None:
    for value in values:
        print(orjson.dumps(value).decode())


def _refuse(sentence: str, code: int = 2) -> int:
    say(f"pixscribe: {sentence}")
    return code


if __name__ == "__main__":
    main()
