import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pyarrow.fs as pafs
import pytest

from pixscribe.errors import LockLost, OutputError
from pixscribe.lock import LIFE_S, Owner, RunLock
from pixscribe.storage import Folder, Storage, open_storage

HOLD = """
import sys, time
from pixscribe.lock import RunLock
from pixscribe.storage import open_storage
RunLock(open_storage(sys.argv[1]), "runs/.x.lock").acquire()
print("held", flush=True)
time.sleep(60)
"""

KEY = "runs/.x.lock"


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path))
    request.getfixturevalue("bucket")
    return open_storage(f"s3://tables/{tmp_path.name}")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of `tmp_path`."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def age(storage: Storage, **changes: object) -> None:
    """Write the lock again as if it were of another owner or another time."""
    values = {**json.loads(storage.read(KEY)), **changes}
    storage.write(KEY, orjson.dumps(values))


def an_hour_ago() -> str:
    return (datetime.now(UTC) - timedelta(hours=1)).isoformat()


def test_a_swap_succeeds_only_if_what_is_there_is_what_was_expected(place: Storage):
    assert place.swap(KEY, None, b"1")
    assert not place.swap(KEY, None, b"2")
    assert not place.swap(KEY, b"0", b"2")
    assert place.swap(KEY, b"1", b"2")
    assert place.read(KEY) == b"2"


def test_a_held_lock_is_refused_and_a_released_one_is_not(place: Storage):
    first, second = RunLock(place, KEY), RunLock(place, KEY)
    first.acquire()
    with pytest.raises(OutputError, match=rf"another process is at work on this config: pid {os.getpid()} on "):
        second.acquire()
    first.release()
    second.acquire()


def test_a_heartbeat_keeps_the_lock(place: Storage):
    lock = RunLock(place, KEY)
    lock.acquire()
    before = json.loads(place.read(KEY))["heard_at"]
    lock.beat()
    assert json.loads(place.read(KEY))["heard_at"] > before


def test_a_lock_whose_heartbeat_has_stopped_is_taken_over_and_its_owner_cannot_commit(place: Storage):
    now_s = 0.0
    sleeper = RunLock(place, KEY, clock=lambda: now_s)
    sleeper.acquire()
    age(place, heard_at=an_hour_ago())
    RunLock(place, KEY).acquire()
    now_s = 3600.0
    with pytest.raises(LockLost, match="another process has taken over this run"):
        sleeper.check()
    with pytest.raises(LockLost):
        place.commit("images/run=r/shard-00000.parquet", b"late", sleeper.check)
    assert place.list("images/run=r") == []


def test_the_owner_of_another_machine_is_believed_until_its_heartbeat_stops(place: Storage):
    RunLock(place, KEY).acquire()
    age(place, machine="elsewhere", pid=1, started="1")
    with pytest.raises(OutputError, match="another process is at work"):
        RunLock(place, KEY).acquire()
    age(place, heard_at=(datetime.now(UTC) - timedelta(seconds=LIFE_S + 1)).isoformat())
    RunLock(place, KEY).acquire()


def test_only_one_of_two_takes_over(place: Storage):
    RunLock(place, KEY).acquire()
    age(place, heard_at=an_hour_ago())
    found = place.read(KEY)
    assert place.swap(KEY, found, b"first") != place.swap(KEY, found, b"second")


def test_whoever_comes_late_does_not_release_the_lock_of_its_successor(place: Storage):
    sleeper, successor = RunLock(place, KEY), RunLock(place, KEY)
    sleeper.acquire()
    age(place, heard_at=an_hour_ago())
    successor.acquire()
    sleeper.release()
    successor.beat()


def test_what_is_no_lock_of_ours_is_taken_over(place: Storage):
    place.write(KEY, b"cut in ha")
    RunLock(place, KEY).acquire()


def test_the_lock_of_a_killed_process_is_free_at_once(holder: subprocess.Popen[str], tmp_path: Path):
    lock = RunLock(open_storage(str(tmp_path)), KEY)
    with pytest.raises(OutputError, match=f"pid {holder.pid} on "):
        lock.acquire()
    holder.kill()
    holder.wait()
    lock.acquire()


def test_a_paused_process_is_believed_to_live(holder: subprocess.Popen[str], tmp_path: Path):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(OutputError, match="another process is at work"):
        RunLock(open_storage(str(tmp_path)), KEY).acquire()


def test_a_pid_that_was_given_to_another_process_is_not_the_owner():
    owner = Owner.this_process()
    assert not owner.is_gone(datetime.now(UTC))
    assert replace(owner, started="12345").is_gone(datetime.now(UTC))


def test_a_clock_that_was_set_back_does_not_free_a_lock():
    assert not Owner.this_process().is_gone(datetime.now(UTC) - timedelta(hours=2))


def test_a_lock_held_in_the_moment_of_a_swap_is_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage = open_storage(str(tmp_path))
    monkeypatch.setattr("pixscribe.storage.SWAP_TRIES", 2)

    def swap_inside(action: Callable[[], object]) -> None:
        with storage._alone(KEY):  # type: ignore[attr-defined]
            action()

    with pytest.raises(OutputError, match="is held by another process"):
        swap_inside(lambda: storage.swap(KEY, None, b"1"))
    assert storage.swap(KEY, None, b"1")


def test_a_commit_to_a_bucket_never_replaces_the_part_of_whoever_has_taken_over(bucket: pafs.S3FileSystem):
    storage = open_storage("s3://tables/fenced")
    storage.commit("a.parquet", b"of the successor", lambda: None)
    calls: list[float] = []

    def check() -> None:
        calls.append(time.monotonic())
        if len(calls) == 2:  # passed once, then fell asleep
            raise LockLost("taken over")

    with pytest.raises(LockLost):
        storage.commit("a.parquet", b"of the sleeper", check)
    assert storage.read("a.parquet") == b"of the successor"


class Forgetful(Folder):
    """A place that does what it is told, and then loses the answer."""

    def swap(self, key: str, old: bytes | None, new: bytes) -> bool:
        super().swap(key, old, new)
        raise OutputError("the connection broke")


def test_a_heartbeat_whose_answer_got_lost_is_no_takeover(tmp_path: Path):
    lock = RunLock(open_storage(str(tmp_path)), KEY)
    lock.acquire()
    steady, lock.storage = lock.storage, Forgetful(str(tmp_path))
    with pytest.raises(OutputError, match="the connection broke"):
        lock.beat()
    lock.storage = steady
    lock.beat()
    lock.release()
    assert not steady.exists(KEY)


def test_whoever_has_let_go_commits_nothing_and_does_not_take_the_lock_again(place: Storage):
    lock = RunLock(place, KEY)
    lock.acquire()
    lock.release()
    with pytest.raises(LockLost):
        place.commit("images/run=r/shard-00000.parquet", b"late", lock.check)
    with pytest.raises(LockLost):
        lock.beat()
    assert not place.exists(KEY)


def test_a_held_lock_beats_by_itself_whatever_its_owner_does(place: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pixscribe.lock.LIFE_S", 1.0)
    with RunLock(place, KEY).held():
        time.sleep(1.5)  # longer than its life, and nothing else is done
        with pytest.raises(OutputError, match="another process is at work"):
            RunLock(place, KEY).acquire()
    RunLock(place, KEY).acquire()
