"""Which images an output has answers about, told from its tables and from what the scan sees: no image is opened.

An image is known if a run of the output, complete or not, found it under the same URI in the same version, asked the
same questions of the same model, and was answered, or failed for a reason that lies in the image itself. Where a list
tells no version (URLs, URIs in a bucket), an image is never known: it is opened, and found answered by its content.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from hashlib import sha256
from itertools import islice

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from pixscribe.archive import LASTING_CODES
from pixscribe.config import EMULATOR, RunConfig
from pixscribe.errors import ConfigError, OutputError
from pixscribe.manifests import Numbers, numbers_of
from pixscribe.results import RunResults
from pixscribe.run import make_questions
from pixscribe.storage import Storage
from pixscribe.types import ImageRef

logger = logging.getLogger(__name__)

SETTLED_CODES = LASTING_CODES | {"decode_error", "too_large", "unsupported_type"}
"""Failures that the same bytes would meet again."""
BATCH = 8192


class KnownImages:
    """The known images of an output, in eight bytes each. `skipped` counts what `new` has left out."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = np.unique(numbers)
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def new(self, refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Those that are not known, in their order."""
        refs = iter(refs)
        while batch := list(islice(refs, BATCH)):
            known = np.isin(numbers_of(_place(ref.uri, ref.version) for ref in batch), self._numbers)
            known &= [ref.version is not None for ref in batch]
            self.skipped += int(known.sum())
            yield from (ref for ref, is_known in zip(batch, known, strict=True) if not is_known)


def find_known(storage: Storage, config: RunConfig, run_id: str) -> KnownImages:
    """What runs other than this one know. One that cannot be read knows nothing, and is named in the log."""
    wanted = _asked(config)
    others = [RunResults(storage, name) for name in storage.list("runs") if name != run_id]
    return KnownImages(_joined(_known_to(run, wanted) for run in others))


def _asked(config: RunConfig) -> str:
    """Hex digits that are equal for configs which ask the same about the same bytes."""
    how = {"name", "thinking_level", "max_output_tokens", "seed", "temperature", "resolution"}
    questions = sorted((asdict(question) for question in make_questions(config)), key=lambda each: str(each["name"]))
    asked = [questions, config.model.model_dump(mode="json", include=how), config.image.model_dump(mode="json")]
    if config.model.base_url == EMULATOR:
        asked.append(EMULATOR)
    return sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _known_to(run: RunResults, asked: str) -> Numbers:
    """Of each image that the run settled: the number of its URI and version."""
    if not run.storage.exists(f"runs/{run.run_id}/config.yaml"):
        return _joined(())
    try:
        if _asked(run.config) != asked:
            return _joined(())
        columns = {"images": ["uri"], "responses": ["status", "error_code"]}
        # what was lost of a complete run is asked again, and only that
        settled = _joined(_settled(*tables) for tables in run.read_parts(columns, run.parts_left))
        return _joined(_versions(batch, settled) for batch in _manifest(run))
    except (ConfigError, OutputError, OSError, ValueError, pa.ArrowException) as error:
        logger.error("run %s of %s: what it was answered is not known: %s", run.run_id, run.storage.uri, error)
        return _joined(())


def _settled(images: pa.Table, responses: pa.Table) -> Numbers:
    """The numbers of the URIs whose questions need not be asked again. An image's `responses` stand together."""
    outcomes = zip(*(column.to_pylist() for column in responses.columns), strict=True)
    is_settled = np.array([status != "failed" or code in SETTLED_CODES for status, code in outcomes], np.bool_)
    return numbers_of(images["uri"].to_pylist())[is_settled.reshape(images.num_rows, -1).all(axis=1)]


def _manifest(run: RunResults) -> Iterator[pa.RecordBatch]:
    key = f"runs/{run.run_id}/manifest.parquet"
    if not run.storage.exists(key):
        return
    with run.storage.open(key) as file:
        manifest = pq.ParquetFile(file)
        # older ones have no versions: what they list is looked at once more
        if "version" in manifest.schema_arrow.names:
            yield from manifest.iter_batches(BATCH, columns=["uri", "version"])


def _versions(batch: pa.RecordBatch, settled: Numbers) -> Numbers:
    uris, versions = (column.to_pylist() for column in batch.columns)
    return numbers_of(map(_place, uris, versions))[np.isin(numbers_of(uris), settled)]


def _place(uri: str, version: str | None) -> str:
    return f"{uri}\0{version}"


def _joined(arrays: Iterable[Numbers]) -> Numbers:
    return np.concatenate([np.empty(0, np.uint64), *arrays])
