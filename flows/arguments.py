"""What several commands take, and what becomes of it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter

from flows.console import stderr
from pixscribe.errors import ConfigError

ConfigPath = Annotated[Path, Parameter(help="A YAML file; `pixscribe schema` describes it.")]
SourceUri = Annotated[str | None, Parameter(help="Instead of source.uri.")]
OutputUri = Annotated[str | None, Parameter(help="Instead of output.uri.")]
Limit = Annotated[int | None, Parameter(help="Instead of source.limit: only the first N images.")]
Sets = Annotated[
    tuple[str, ...],
    Parameter(name="--set", help="key.path=value, the value in YAML; may be given again.", negative=""),
]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"], help="Say more on stderr.", negative="")]


def read_changes(sets: Sequence[str], named: Mapping[str, Any]) -> dict[str, Any]:
    """What --set and options of their own change in a config, by key path; of `named`, what is not None."""
    changes: dict[str, Any] = {}
    for text in sets:
        key_path, equals, value = text.partition("=")
        if not equals or not key_path:
            raise ConfigError(f"--set {text}: should be key.path=value")
        try:
            changes[key_path.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"--set {key_path}: the value is not YAML") from error
    return changes | {key_path: value for key_path, value in named.items() if value is not None}


def set_up_logging(verbose: bool) -> None:
    """Show errors of the library on stderr, or all that it says."""
    from rich.logging import RichHandler

    logger = logging.getLogger("pixscribe")
    handler = RichHandler(console=stderr, show_path=False, show_level=False, markup=False, rich_tracebacks=False)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR)
