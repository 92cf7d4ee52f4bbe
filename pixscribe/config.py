"""What a run is told: the YAML file, its models, and one clear sentence when it is wrong."""

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import pathspec
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from pixscribe import azure
from pixscribe.errors import ConfigError
from pixscribe.objects import AZURE_SCHEMES, BUCKET_SCHEMES
from pixscribe.types import Kind

MAX_CONFIG_BYTES = 4 * 1024 * 1024
CONFIG_KEYS = "name, source, prompts and output"
EMULATOR = "emulator"
DEFAULT_BASE_URL = "https://generativelanguage.googleapis.com"
_AZURE_ACCOUNT = re.compile(r"[a-z0-9$-]{1,63}@([a-z0-9]{3,24}\.[a-z0-9.-]+)")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
IMAGE_GLOBS = tuple(
    f"*.{extension}"
    for extension in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "heic", "heif", "hif", "avif"),
        *("tif", "tiff", "bmp", "gif"),
    )
)


class Section(BaseModel):
    """A part of the configuration: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


Texts = Annotated[tuple[str, ...], Field(strict=False)]


class SourceConfig(Section):
    """Where the images are."""

    uri: Annotated[str, Field(min_length=1)]
    """A folder, or a prefix in a bucket of s3://, gs:// or abfs://, searched recursively. Or files in one, with `*`,
    `?`, `[...]` and `{000..009}`: a manifest of paths and URLs (.csv, .jsonl, .txt, each also .gz, .parquet), images in
    Parquet as Hugging Face datasets has them (.parquet), or plain tars as WebDataset has them (.tar)."""
    uri_column: Annotated[str, Field(min_length=1)] | None = None
    """The column of a manifest or a Parquet file that names or holds the images. null: `image` if it holds any, else
    the first there is of uri, url, path, image, image_url, file_name, filename."""
    name_column: Annotated[str, Field(min_length=1)] | None = None
    """The column that gives the value of `file_name`. null: the relative path, or host and path of a URL."""
    allow_private_hosts: bool = False
    """Whether a URL of a manifest may lead to this machine or into its network."""
    include: Texts = IMAGE_GLOBS
    """Gitignore-style globs on the relative path, without regard to case. Default: the supported extensions; in a
    manifest or a Parquet file, everything."""
    exclude: Texts = ()
    """Globs of what to leave out again."""
    limit: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Take only the first N images, in the order of their names or of the manifest."""
    sample: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Take only N of these images, spread evenly over them, and the same ones each time as long as none is added."""
    only_new: bool = False
    """Leave out what this output already answers: images that an earlier run found under the same URI, unchanged, and
    asked the same of the same model. Failures whose reason can pass are taken up again. An image in a list that tells
    no version (a URL, a URI in a bucket) is opened, to see whether it changed."""

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        if uri.startswith("hf://"):
            raise ValueError(
                "should be a local copy (`hf download --repo-type dataset`) or a manifest of its https:// URLs"
            )
        return _check_scheme(uri, "a folder or s3://bucket/prefix (or gs://, abfs://)")

    @field_validator("include", "exclude")
    @classmethod
    def _are_globs(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        for glob in globs:
            try:
                pathspec.PathSpec.from_lines("gitignore", [glob])
            except ValueError:
                raise ValueError(f"{glob!r} is no gitignore-style glob") from None
        return globs


class ImageConfig(Section):
    """What is sent of an image."""

    max_side_px: Annotated[int, Field(ge=16, le=10**9)] | None = None
    """Downscale what is sent to this longer side; boxes are unaffected."""
    max_pixels: Annotated[int, Field(ge=1, le=10**12)] = 200_000_000
    """A larger image is refused as too_large before it is decoded."""


class ModelConfig(Section):
    """Who is asked, and how."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "gemini-3.5-flash"
    """The model's name as the Gemini API spells it, without `models/`."""
    base_url: str = DEFAULT_BASE_URL
    """The API's origin, or `emulator` for the built-in one, which needs no key."""
    transport: Literal["files", "inline", "url", "auto"] = "files"
    """How an image travels: uploaded once (files), inside each request (inline), as its public URL (url; what has none
    or has to be converted is uploaded), or as its size and the number of prompts suggest (auto)."""
    mode: Literal["interactive", "batch"] = "interactive"
    """batch asks by jobs of the Batch API, at half the price: an answer takes minutes to a day. See `batch`."""
    service_tier: Literal["standard", "flex", "priority"] = "standard"
    """flex costs half and may take minutes."""
    thinking_level: Literal["minimal", "low", "medium", "high"] | None = "minimal"
    """Thinking is billed as output; boxes and masks do not get better by it. null leaves it to the model."""
    max_output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """The answer is cut here, thinking included."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1000)] | None = 7
    """Sent with each question. The service does not promise the same answer for it."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """null leaves it to the model, as is advised for Gemini 3."""
    resolution: Literal["low", "medium", "high", "ultra_high"] | None = None
    """How many tokens an image is turned into."""
    api_key_block: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] | None = None
    """The name of a Prefect Secret block that holds the key. null: the environment variable GEMINI_API_KEY."""

    @field_validator("base_url")
    @classmethod
    def _is_an_origin(cls, base_url: str) -> str:
        try:
            parts = urlsplit(base_url)
            _ = parts.port
        except ValueError:
            raise ValueError("should be an http(s) URL or `emulator`") from None
        if base_url != EMULATOR and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("should be an http(s) URL or `emulator`")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("should hold no user, password, query or fragment; the key comes from GEMINI_API_KEY")
        return base_url.rstrip("/")


class PromptConfig(Section):
    """One question, asked about every image."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    """The value of the column `prompt`."""
    kind: Kind
    """detect (boxes), segment (boxes and outlines), caption, classify or ask (a free question)."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """The words sent to the model; `{labels}` is replaced. null: the default text of the kind."""
    labels: Texts = ()
    """A closed vocabulary; empty: open."""

    @model_validator(mode="after")
    def _a_question_needs_its_words(self) -> Self:
        if self.kind == "ask" and self.text is None:
            raise ValueError(f"prompt {self.name!r} of kind ask needs a text")
        if len(set(self.labels)) != len(self.labels) or not all(label.strip() for label in self.labels):
            raise ValueError(f"labels of prompt {self.name!r} should be different and not empty")
        return self


class LimitsConfig(Section):
    """How hard to lean on the API."""

    requests_per_minute: Annotated[float, Field(gt=0, le=10_000_000)] = 1000
    """Sustained rate of questions, over all prompts and workers."""
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Input tokens, estimated before sending and corrected by the answer."""
    requests_per_day: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Questions from midnight to midnight Pacific time."""
    on_daily_quota: Literal["stop", "wait"] = "stop"
    """When a day's quota is used up, this one or the service's: end the run, resumable, or sit out the day."""
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Requests in flight, uploads included, in each process that labels: with Dask or Ray, in each worker process.
    Fewer while the service is overloaded."""
    budget_usd: Annotated[float, Field(gt=0)] | None = None
    """The run stops, resumable, before a request of any worker could pass this sum. What a worker that died had set
    aside of it, for requests in flight, is not used by the others."""
    shared_as: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] | None = None
    """Runs that give the same name here keep to these quotas together, on any number of machines, by way of global
    concurrency limits of that name in the Prefect server that PREFECT_API_URL names. The workers of one run do so
    without it."""


class BatchConfig(Section):
    """How `model.mode: batch` makes its jobs. No limit of questions per minute or day holds for them."""

    queue_tokens: Annotated[int, Field(ge=10_000, le=10**12)] = 3_000_000
    """Input tokens that the jobs of this run may have waiting together. The service has a bound for each model and
    tier; the default is that of tier 1, about 2,300 questions. A job takes a third of it at most."""
    gather_s: Annotated[float, Field(gt=0, le=3600)] = 20
    """A job that is not full is sent when no question has come for so long."""
    poll_s: Annotated[float, Field(gt=0, le=3600)] = 60
    """The longest pause between two looks at a job."""


class RetryConfig(Section):
    """How long to try."""

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 6
    """Requests sent for one question, all in all."""
    max_wait_s: Annotated[float, Field(gt=0, le=86_400)] = 60
    """The longest pause between two attempts."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120
    """For one attempt from the first byte sent to the last received."""
    max_retry_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Repeats among all requests, after the first hundred; what fails beyond that is left to the next run."""
    max_outage_s: Annotated[float, Field(ge=0, le=604_800)] = 7200
    """How long a service that has stopped answering is probed before the run ends, resumable."""


class ModelPrice(Section):
    """What a model costs, in USD per million tokens."""

    input_usd: Annotated[float, Field(ge=0, le=1_000_000)]
    """Standard tier."""
    output_usd: Annotated[float, Field(ge=0, le=1_000_000)]
    """Standard tier; what the model thinks is billed as output."""
    flex_factor: Annotated[float, Field(ge=0, le=100)] = 0.5
    """What the tier flex costs, as a multiple of standard."""
    batch_factor: Annotated[float, Field(ge=0, le=100)] = 0.5
    """The same for the Batch API."""
    priority_factor: Annotated[float, Field(ge=0, le=100)] = 2.0
    """The same for the tier priority; Google says 1.75 to 2."""


class PricesConfig(Section):
    """What models cost, where the table that comes with pixscribe is not right, or does not know the model."""

    as_of: date | None = None
    """Of which day these prices are, such as 2026-11-01; it stands beside every sum."""
    models: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], ModelPrice] = {}
    """By the model's name, as in `model.name`."""

    @field_validator("as_of", mode="before")
    @classmethod
    def _is_a_day(cls, as_of: object) -> object:
        try:
            # YAML has dates, what was frozen and JSON have texts
            return date.fromisoformat(str(as_of)) if isinstance(as_of, str | date) else as_of
        except ValueError:
            raise ValueError("should be a day, such as 2026-11-01") from None

    @model_validator(mode="after")
    def _have_a_date(self) -> Self:
        if self.models and self.as_of is None:
            raise ValueError("as_of should say of which day the prices of `models` are, such as 2026-11-01")
        return self


class ExecutionConfig(Section):
    """Where the work is done."""

    engine: Literal["local", "dask", "ray"] = "local"
    """This process, or the workers of a Dask or Ray cluster, which need `pip install 'pixscribe[dask]'` or `[ray]`."""
    address: Annotated[str, Field(min_length=1)] | None = None
    """Of a cluster that is there: tcp://host:8786 of Dask's scheduler; host:6379 of Ray's head, on a machine of the
    cluster, or ray://host:10001. Its workers need this package, GEMINI_API_KEY, the source, the output and a Prefect
    server that they can reach. null: a cluster on this machine, as long as the run."""
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Worker processes of a cluster on this machine. null: one for each core."""
    shard_size: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Images in one part file and one Prefect task run."""
    shards_in_flight: Annotated[int, Field(ge=1, le=64)] = 2
    """For each process that labels. Two let the uploads of the next shard overlap the prompts of this one."""

    @model_validator(mode="after")
    def _fits_the_engine(self) -> Self:
        for key, value in (("address", self.address), ("workers", self.workers)):
            if value is not None and self.engine == "local":
                raise ValueError(f"{key}: {value!r} is of use to the engines dask and ray only")
        if self.address is not None and self.workers is not None:
            raise ValueError(f"workers: {self.workers} is for a cluster on this machine; that at address has its own")
        return self


class OutputConfig(Section):
    """Where the tables go."""

    uri: Annotated[str, Field(min_length=1)]
    """A folder, or a prefix in a bucket of s3://, gs:// or abfs://; many runs share one."""
    report: bool = True
    """Whether a run ends with its page, `runs/<id>/report.html`, for which some hundred images are read once more."""

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        return _check_scheme(uri, "a folder or s3://bucket/prefix (or gs://, abfs://)")


class RunConfig(Section):
    """Everything a run needs to know, except secrets."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    """Part of the run id: lower-case letters, digits, `.`, `_` and `-`."""
    source: SourceConfig
    image: ImageConfig = ImageConfig()
    model: ModelConfig = ModelConfig()
    prompts: Annotated[tuple[PromptConfig, ...], Field(min_length=1, strict=False)]
    limits: LimitsConfig = LimitsConfig()
    batch: BatchConfig = BatchConfig()
    retry: RetryConfig = RetryConfig()
    prices: PricesConfig = PricesConfig()
    execution: ExecutionConfig = ExecutionConfig()
    output: OutputConfig

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [prompt.name for prompt in self.prompts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"prompts: two are named {name!r}; each needs a name of its own")
        if self.model.mode == "batch":
            self._check_batch()
        if _overlaps(self.source.uri, self.output.uri):
            raise ValueError(
                f"output.uri: {self.output.uri!r} lies in source.uri {self.source.uri!r}; "
                "the tables need a place outside the images"
            )
        return self

    def _check_batch(self) -> None:
        needed = (
            ("execution.engine", self.execution.engine, "local"),
            ("model.transport", self.model.transport, "files"),
            ("model.service_tier", self.model.service_tier, "standard"),
        )
        for key, value, allowed in needed:
            if value != allowed:
                raise ValueError(f"{key}: {value!r} does not go with model.mode: batch, which needs {allowed!r}")


def load_config(path: Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a YAML file, apply `changes` (dotted key path -> value), and validate.

    Raises `ConfigError` with one sentence that names the file, the full key path, the value and what is allowed.
    """
    values = read_yaml(path)
    for key_path, value in (changes or {}).items():
        _set_value(values, key_path, value)
    return make_config(values, origin=str(path))


def make_config(values: Mapping[str, Any], *, origin: str = "config") -> RunConfig:
    """Validate a plain mapping. Raises `ConfigError` as `load_config` does."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        # `from None`: the cause repeats every value at length
        raise ConfigError(f"{origin}: {_sentence(error)}") from None


def change_config(config: RunConfig, changes: Mapping[str, Any], *, origin: str) -> RunConfig:
    """The config with `changes` (dotted key path -> value). Raises `ConfigError` as `load_config` does."""
    values = config.model_dump(mode="json")
    for path, value in changes.items():
        _set_value(values, path, value)
    return make_config(values, origin=origin)


def read_yaml(path: Path, keys: str = CONFIG_KEYS) -> dict[str, Any]:
    """Read one YAML mapping of `keys`: at most 4 MiB, plain types only, no key twice, no aliases."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)  # a pipe tells no size beforehand
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, which no configuration is")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    return parse_yaml(text, origin=str(path), keys=keys)


def parse_yaml(text: str, *, origin: str = "config", keys: str = CONFIG_KEYS) -> dict[str, Any]:
    """Parse the text of a configuration into plain values. Raises `ConfigError`."""
    try:
        values = yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ConfigError(f"{origin}: {error.problem}{line}") from error
    # PyYAML's constructors trust their input: `!!bool maybe` is a KeyError, `!!timestamp soon` an AttributeError
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{origin}: is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: should be a mapping of keys to values, with {keys}")
    return values


def dump_config(config: RunConfig) -> str:
    """The whole configuration, defaults filled in, as YAML that `load_config` reads back to an equal one."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=_ExactDumper, sort_keys=False, allow_unicode=True, width=120)


def with_absolute_uris(config: RunConfig) -> RunConfig:
    """The same config, meaning the same places from every working directory."""
    source = config.source.model_copy(update={"uri": _absolute(config.source.uri)})
    output = config.output.model_copy(update={"uri": _absolute(config.output.uri)})
    return config.model_copy(update={"source": source, "output": output})


def environment_key() -> str:
    """The key from GEMINI_API_KEY. Raises `ConfigError`, which never shows it."""
    key = os.environ.get("GEMINI_API_KEY", "").strip()
    if not key:
        raise ConfigError(
            "GEMINI_API_KEY is not set; export your key, or try `model.base_url: emulator`, which needs none"
        )
    return checked_key(key, "GEMINI_API_KEY")


def checked_key(key: str, origin: str) -> str:
    """The key, if it can be one at all. Raises `ConfigError`, which never shows it."""
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(f"{origin} holds spaces, line breaks or characters outside ASCII, which no key does")
    return key


def config_digest(config: RunConfig) -> str:
    """Eight hex digits that are equal for configs that ask the same about the same images into the same place.

    Limits, retries, prices, the place of the key, the cut into shards and the page do not count: whoever raises the
    budget of a stopped run wants to go on.
    """
    unasked: dict[str, Any] = {
        "limits": True,
        "batch": True,
        "retry": True,
        "prices": True,
        "execution": True,
        "model": {"api_key_block"},
        "output": {"report"},
    }
    asked = config.model_dump(mode="json", exclude=unasked)
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, and aliases (which let ten lines unfold to gigabytes)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key should be plain text", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                problem = f"the key {key_node.value!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _ExactDumper(yaml.SafeDumper):
    """SafeDumper that escapes the line breaks of Unicode, which would come back as other ones."""


def _represent_text(dumper: _ExactDumper, text: str) -> yaml.ScalarNode:
    style = '"' if set("\x85\u2028\u2029") & set(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_ExactDumper.add_representer(str, _represent_text)


def _set_value(values: dict[str, Any], key_path: str, value: Any) -> None:
    *parents, last = re.sub(r"\[(\d+)\]", r".\1", key_path).split(".")
    place: Any = values
    for key in parents:
        place = _step_into(place, key, key_path)
    if isinstance(place, list):
        place[_position(place, last, key_path)] = value
    else:
        place[last] = value


def _step_into(place: Any, key: str, key_path: str) -> Any:
    child = place[_position(place, key, key_path)] if isinstance(place, list) else place.setdefault(key, {})
    if child is None:
        child = place[key] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {key_path}: {key} is a value, not a section")
    return child


def _position(place: Sequence[Any], key: str, key_path: str) -> int:
    if not key.isdigit() or int(key) >= len(place):
        raise ConfigError(f"--set {key_path}: {key!r} should be a position from 0 to {len(place) - 1}")
    return int(key)


def _sentence(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    # "prompts: too short" only repeats that its one item is wrong
    details = [outer for outer in found if not any(_is_inside(inner["loc"], outer["loc"]) for inner in found)]
    # an unknown key explains a missing one beside it, so it comes first
    first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return _explain(first) + more


def _is_inside(inner: Sequence[int | str], outer: Sequence[int | str]) -> bool:
    return len(inner) > len(outer) and tuple(inner[: len(outer)]) == tuple(outer)


def _explain(detail: ErrorDetails) -> str:
    loc = detail["loc"]
    path = key_path(loc)
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key{_nearest(loc)}"
    if detail["type"] == "missing":
        return f"{path}: missing"
    message = re.sub(r"^(Value error, |Input )", "", detail["msg"])
    if detail["type"] == "model_type":
        return f"{path}: {shortened(detail['input'])}: should be a mapping of keys to values"
    if not path or isinstance(detail["input"], dict) or _may_hold_a_secret(path, detail["input"]):
        return f"{path}: {message}".lstrip(": ")
    return f"{path}: {shortened(detail['input'])}: {message}"


def _may_hold_a_secret(path: str, value: Any) -> bool:
    """A URL may hold a password, which is not to be repeated."""
    return path == "model.base_url" or (path.endswith(".uri") and ":" in str(value).removeprefix("file:"))


def key_path(loc: Sequence[int | str]) -> str:
    """The way to a value as messages spell it: `prompts[0].name`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def shortened(value: Any) -> str:
    """A value as messages repeat it: on one line of at most 80 characters."""
    if isinstance(value, dict | list | tuple):
        return f"a {'mapping' if isinstance(value, dict) else 'list'}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write out such a one
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(loc: Sequence[int | str]) -> str:
    """For a typo: the key of the same section that is most like it, or of any section that has just this key."""
    *parents, wrong = loc
    section = _section_at(parents)
    allowed = list(section.model_fields) if section else []
    for candidate in difflib.get_close_matches(str(wrong), allowed, n=1, cutoff=0.6):
        return f"; did you mean {key_path([*parents, candidate])}?"
    for path in _all_key_paths(RunConfig, ""):
        if path.rsplit(".", 1)[-1] == str(wrong):
            return f"; did you mean {path}?"
    return f"; allowed: {', '.join(allowed)}"


def _section_at(loc: Sequence[int | str]) -> type[Section] | None:
    section: type[Section] = RunConfig
    for part in loc:
        if isinstance(part, str):
            inner = _inner_section(section, part)
            if inner is None:
                return None
            section = inner
    return section


def _inner_section(section: type[Section], name: str) -> type[Section] | None:
    if section is RunConfig and name == "prompts":
        return PromptConfig
    if section is PricesConfig and name == "models":
        return ModelPrice
    if section is ModelPrice and name not in section.model_fields:  # the name of a model
        return ModelPrice
    field = section.model_fields.get(name)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _all_key_paths(section: type[Section], prefix: str) -> Iterator[str]:
    for name in section.model_fields:
        inner = _inner_section(section, name)
        yield f"{prefix}{name}"
        if inner:
            yield from _all_key_paths(inner, f"{prefix}{name}.")


def _check_scheme(uri: str, allowed: str) -> str:
    scheme = uri.split("://", 1)[0] if "://" in uri else "file"
    if scheme not in ("file", *BUCKET_SCHEMES):
        raise ValueError(f"should be {allowed}")
    if uri.startswith("file://") and not uri.startswith("file:///"):
        raise ValueError("should be file:/// and an absolute path")
    if scheme in BUCKET_SCHEMES:
        _check_bucket(scheme, uri.partition("://")[2].partition("/")[0])
        if re.search(r"\?\S*(?:sig|signature)=", uri, re.IGNORECASE):
            raise ValueError("should hold no signature; credentials come from the environment variables of the cloud")
    if "\0" in uri:
        raise ValueError("should hold no NUL character")
    return uri


def _check_bucket(scheme: str, authority: str) -> None:
    is_azure = scheme in AZURE_SCHEMES
    if not authority:
        raise ValueError(f"should name a bucket after {scheme}://")
    if is_azure and (named := _AZURE_ACCOUNT.fullmatch(authority)):
        if not azure.is_account(named[1]):
            raise ValueError(f"should name an account of Azure, {azure.allowed_hosts()}")
        return
    if set("@:") & set(authority):
        variables = _CREDENTIALS["abfs" if is_azure else scheme]
        raise ValueError(f"should hold no key or password; those come from {variables}")


def _overlaps(source_uri: str, output_uri: str) -> bool:
    """Whether any of the folders that a run writes is the source or lies in it."""
    source = _place(source_uri)
    output = _place(output_uri)
    written = [output, *((*output, folder) for folder in ("images", "responses", "annotations", "runs"))]
    return any(place[: len(source)] == source for place in written)


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


def _place(uri: str) -> tuple[str, ...]:
    scheme, separator, rest = uri.partition("://")
    if separator and scheme in BUCKET_SCHEMES:
        authority, _, prefix = rest.partition("/")
        container = authority.partition("@")[0]
        kind = "abfs" if scheme in AZURE_SCHEMES else scheme
        # one container has many spellings, so those of equal names in two accounts count as one as well
        return (f"{kind}:", container if kind == "abfs" else authority, *(part for part in prefix.split("/") if part))
    return ("file:", *(part for part in os.path.realpath(uri.removeprefix("file://")).split("/") if part))
