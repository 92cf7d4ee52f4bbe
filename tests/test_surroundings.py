"""What a run takes from Prefect, on a real server: its key from a Secret block, and its share of common limits."""

import asyncio
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from flows.prefect_server import prefect_api
from pixscribe.config import LimitsConfig
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import ConfigError
from pixscribe.limits import per_second
from tasks.surroundings import PrefectBudget, PrefectQuota, look_around
from tests.conftest import SAMPLES, MakeConfig, pixscribe, write_yaml
from tests.invariants import check_files

SECRET = "AIzaSy-secret-of-a-block-4711"
KEY = "test-key-4f1c-of-the-environment"


@pytest.fixture(scope="module")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def prefect_server(prefect_home: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(prefect_home))
        with prefect_api(print) as server:
            assert server is not None
            server.wait_ready()
            yield server.url


@pytest.fixture(scope="module")
def block(prefect_server: str) -> str:
    async def save() -> None:
        from prefect.blocks.system import Secret

        await Secret(value=SECRET).save("gemini-key")

    asyncio.run(save())
    return "gemini-key"


async def test_the_key_comes_from_the_block_that_the_config_names(make: MakeConfig, block: str):
    surroundings = await look_around(make(model={"api_key_block": block}))
    assert surroundings.api_key == SECRET


async def test_a_block_that_is_not_there_is_one_sentence(make: MakeConfig, prefect_server: str):
    with pytest.raises(ConfigError, match="Prefect has no Secret block named 'missing'"):
        await look_around(make(model={"api_key_block": "missing"}))


async def test_leases_of_two_processes_lie_one_behind_the_other(prefect_server: str):
    limits = LimitsConfig(requests_per_minute=600)
    first, second = (
        await PrefectQuota.open("one-behind-the-other", limits),
        await PrefectQuota.open("one-behind-the-other", limits),
    )
    began_s = time.monotonic()
    starts_s = [time.monotonic() - began_s + await quota.take("requests", 100) for quota in (first, second) * 2]
    await first.close()
    await second.close()
    block_s = 100 / per_second(600)
    gaps_s = [later - earlier for earlier, later in pairwise(starts_s)]
    # what calls take is a second at most, even on a slow machine; a lost or doubled block would be ten
    assert all(abs(gap_s - block_s) < 2 for gap_s in gaps_s), starts_s


async def test_a_shared_day_is_counted_to_its_end(prefect_server: str):
    limits = LimitsConfig(requests_per_day=50)
    first, second = await PrefectQuota.open("a-day", limits), await PrefectQuota.open("a-day", limits)
    taken = [await quota.take_of_day(20) for quota in (first, second, first)]
    assert taken == [True, True, False]
    assert await second.take_of_day(10)
    assert not await first.take_of_day(1)
    await first.close()
    await second.close()


async def test_a_budget_is_shared_to_its_end(prefect_server: str):
    limits = LimitsConfig(budget_usd=2.0)
    leader, first, second = (PrefectBudget("a-budget", limits) for _ in range(3))
    await leader.begin(spent_usd=0.5)
    assert [await budget.take(0.6) for budget in (first, second, first)] == [True, True, False]
    await second.give_back(0.4)
    assert await leader.taken_usd() == pytest.approx(0.8)
    assert await first.take(0.7)
    await leader.remove()
    for budget in (leader, first, second):
        await budget.close()


async def test_a_pause_is_heard_by_the_others(prefect_server: str):
    limits = LimitsConfig()
    first, second = await PrefectQuota.open("a-pause", limits), await PrefectQuota.open("a-pause", limits)
    assert await second.paused_s() <= 0
    await first.pause(30)
    second._looked_s = float("-inf")  # half a second later
    assert 20 < await second.paused_s() <= 30
    await first.close()
    await second.close()


def test_a_run_with_key_and_limits_from_prefect_leaves_the_key_nowhere(
    make: MakeConfig, block: str, prefect_server: str, prefect_home: Path, tmp_path: Path
):
    with Emulator(EmulatorOptions(requests_per_minute=6000)) as emulator:
        config = make(
            source={"uri": str(SAMPLES), "limit": 6},
            model={"base_url": emulator.url, "api_key_block": block},
            limits={"shared_as": "from-prefect", "requests_per_minute": 6000},
        )
        path = write_yaml(tmp_path / "config.yaml", config)
        done = pixscribe("run", str(path), "-v", PREFECT_API_URL=prefect_server, GEMINI_API_KEY="")
        assert done.returncode == 0, done.stderr
        assert 429 not in emulator.books.by_status
    assert SECRET not in done.stdout + done.stderr
    assert_nowhere(SECRET, tmp_path, prefect_home)


def test_the_key_of_the_environment_is_left_nowhere_even_when_it_is_refused(
    make: MakeConfig, prefect_server: str, prefect_home: Path, emulator: Emulator, tmp_path: Path
):
    path = write_yaml(tmp_path / "config.yaml", make(source={"uri": str(SAMPLES), "limit": 2}))
    done = pixscribe("run", str(path), "-v", PREFECT_API_URL=prefect_server, GEMINI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    emulator.always("bad_key")
    refused = pixscribe("run", str(path), "--new", "-v", PREFECT_API_URL=prefect_server, GEMINI_API_KEY=KEY)
    assert refused.returncode == 3
    assert "GEMINI_API_KEY is refused" in refused.stderr
    for said in (done.stdout, done.stderr, refused.stdout, refused.stderr):
        assert KEY not in said
    assert_nowhere(KEY, tmp_path, prefect_home)
    check_files(tmp_path / "out")


def assert_nowhere(secret: str, *folders: Path) -> None:
    """In no byte of any file: tables, configs, logs, and Prefect's database with all parameters and artifacts."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path
