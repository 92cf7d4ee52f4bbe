"""Run a config as a process of its own that starts in a second: `python -m tests.run_without_prefect CONFIG [RUN_ID]`.

Ends as the command line does: the summary as JSON on stdout, or one sentence on stderr and the error's exit code. The
environment may shorten the life of the lock: PIXSCRIBE_TEST_LOCK_LIFE_S.
"""

import asyncio
import os
import sys
from dataclasses import asdict
from pathlib import Path

import orjson

import pixscribe.lock
from pixscribe.config import load_config
from pixscribe.errors import RunError
from tests.conftest import annotate


def main() -> None:
    if life_s := os.environ.get("PIXSCRIBE_TEST_LOCK_LIFE_S"):
        pixscribe.lock.LIFE_S = float(life_s)
    run_id = sys.argv[2] if len(sys.argv) > 2 else None
    try:
        summary = asyncio.run(annotate(load_config(Path(sys.argv[1])), run_id=run_id))
    except RunError as error:
        print(f"pixscribe: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(orjson.dumps(asdict(summary)).decode())


if __name__ == "__main__":
    main()
