"""What two runs were told differently: the first question when their labels differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pixscribe.config import RunConfig

FIRST = ("prompts", "model", "image", "source")
"""The sections that decide what comes out; those of the others that differ come after them."""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One key and its two values. None is also the value of a key that is not there."""

    key: str
    before: Any
    after: Any


def config_changes(before: RunConfig, after: RunConfig) -> tuple[ConfigChange, ...]:
    """The keys whose values differ, those that decide what comes out first.

    Prompts are told by their names (`prompts.objects.text`). One that only one run asks is said elsewhere, and all its
    keys are left out here.
    """
    old, new = (_flat_config(config) for config in (before, after))
    asked = {prompt.name for prompt in before.prompts} ^ {prompt.name for prompt in after.prompts}
    keys = [key for key in dict.fromkeys([*old, *new]) if key[:1] != ("prompts",) or key[1] not in asked]
    keys.sort(key=lambda key: FIRST.index(key[0]) if key[0] in FIRST else len(FIRST))
    changes = (ConfigChange(".".join(key), old.get(key), new.get(key)) for key in keys)
    return tuple(change for change in changes if change.before != change.after)


def _flat_config(config: RunConfig) -> dict[tuple[str, ...], Any]:
    values = config.model_dump(mode="json")
    values["prompts"] = {prompt.pop("name"): prompt for prompt in values["prompts"]}
    return dict(_flat(values, ()))


def _flat(values: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, (*path, key))
        else:
            yield (*path, key), value
