"""Which response schemas are taken: the documented subset of JSON Schema, and nothing beside it.

`maxItems` on an array of objects, or a sum of `maxItems` above 960, is too complex for the service, and refused
without a hint. Source: Gemini API docs, "Structured output", and issues of its SDKs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pixscribe.emulator.checks import Check, each, integer, join, number, string
from pixscribe.emulator.replies import INVALID_ARGUMENT, invalid

_MAX_DEPTH = 32
_MAX_ITEMS_SUM = 960
_TYPES = ("string", "number", "integer", "boolean", "object", "array", "null")
_COUNT = integer(0, 2**31 - 1)
_LIMIT = number(-1e308, 1e308)


def check_schema(path: str, schema: Any) -> None:
    """Raises `Refused` (400)."""
    _check_node(path, schema, 0)
    nodes = list(_nodes(schema))
    names = {f"#/$defs/{name}" for name in schema.get("$defs", {})}
    for node in nodes:
        if "$ref" in node and node["$ref"] not in names:
            raise invalid(f"Invalid schema at '{path}': unknown reference {node['$ref']!r}.")
    limited = [node for node in nodes if "maxItems" in node]
    if any(_holds_objects(node, schema) for node in limited) or sum(n["maxItems"] for n in limited) > _MAX_ITEMS_SUM:
        raise invalid(INVALID_ARGUMENT)


def resolve(node: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow `$ref`s of a checked schema; a cycle ends at an empty schema."""
    for _ in range(_MAX_DEPTH):
        if "$ref" not in node:
            return node
        node = root["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return {}


def _check_node(path: str, node: Any, depth: int) -> None:
    if not isinstance(node, dict):
        raise invalid(f"Invalid schema at '{path}': expected an object.")
    if depth > _MAX_DEPTH:
        raise invalid(INVALID_ARGUMENT)
    for keyword, value in node.items():
        at = join(path, keyword)
        if keyword in _PLAIN:
            _PLAIN[keyword](at, value)
        elif keyword not in _NESTED:
            raise invalid(f"Unknown schema keyword '{at}'.")
        else:
            _check_nested(at, keyword, value, depth)
    _check_consistency(path, node)


def _check_nested(at: str, keyword: str, value: Any, depth: int) -> None:
    if keyword in ("properties", "$defs"):
        if not isinstance(value, dict):
            raise invalid(f"Invalid schema at '{at}': expected an object.")
        for name, child in value.items():
            _check_node(join(at, name), child, depth + 1)
    elif keyword in ("anyOf", "oneOf", "prefixItems"):
        each(lambda where, child: _check_node(where, child, depth + 1), least=1)(at, value)
    elif not (keyword == "additionalProperties" and isinstance(value, bool)):
        _check_node(at, value, depth + 1)


def _check_consistency(path: str, node: dict[str, Any]) -> None:
    if "$ref" in node and any(not key.startswith("$") for key in node):
        raise invalid(f"Invalid schema at '{path}': '$ref' allows no keys beside it.")
    for name in node.get("required", ()):
        if name not in node.get("properties", {}):
            raise invalid(f"Invalid schema at '{join(path, 'required')}': property {name!r} is not defined.")


def _check_type(path: str, value: Any) -> None:
    for name in value if isinstance(value, list) and value else [value]:
        if name not in _TYPES:
            raise invalid(f"Invalid schema at '{path}': {name!r}. Supported values: {', '.join(_TYPES)}.")


def _check_enum(path: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise invalid(f"Invalid schema at '{path}': expected a list that is not empty.")
    if any(isinstance(v, bool) or not isinstance(v, str | int | float) for v in value):
        raise invalid(f"Invalid schema at '{path}': only strings and numbers.")


_NESTED = frozenset(
    {"properties", "items", "prefixItems", "anyOf", "oneOf", "additionalProperties", "$defs", "contains"}
)
_PLAIN: dict[str, Check] = {
    "type": _check_type,
    "enum": _check_enum,
    "required": each(string),
    "propertyOrdering": each(string),
    "uniqueItems": lambda path, value: None,
    **dict.fromkeys(("format", "title", "description", "$id", "$ref", "$anchor", "$schema"), string),
    **dict.fromkeys(("minimum", "maximum"), _LIMIT),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("minContains", "maxContains"), _COUNT),
}


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    yield node
    for keyword in _NESTED & node.keys():
        value = node[keyword]
        children = (
            value.values() if keyword in ("properties", "$defs") else value if isinstance(value, list) else [value]
        )
        for child in children:
            if isinstance(child, dict):
                yield from _nodes(child)


def _holds_objects(node: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    items = node.get("items")
    return isinstance(items, dict) and resolve(items, root).get("type") == "object"
