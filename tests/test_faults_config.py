"""Configurations that are wrong, hostile or absurd: refused in one sentence, before anything is started or paid for."""

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pixscribe.config import RunConfig, config_digest, dump_config, load_config, make_config, parse_yaml, read_yaml
from pixscribe.emulator import Emulator
from pixscribe.errors import BudgetExhausted, ConfigError
from pixscribe.run import api_key, describe_run, list_runs, locate_run
from pixscribe.storage import open_storage
from tests.conftest import SAMPLES, MakeConfig, annotate, pixscribe, write_yaml
from tests.test_config import SMALLEST, config_of

SECRET = "AIzaSyD-0123456789abcdefghijklmnopqrstu"
FEW = {"uri": str(SAMPLES), "limit": 2}
DETECT = [{"name": "objects", "kind": "detect"}]


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config_of(text)
    return str(caught.value)


# C1: what is no config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("", "should be a mapping of keys to values", id="empty"),
        pytest.param(SMALLEST + "limts: {}", "limts: unknown key; did you mean limits?", id="unknown-section"),
        pytest.param(SMALLEST.replace("kind:", "knd:"), "prompts[0].knd: unknown key; did you mean", id="in-a-list"),
        pytest.param(SMALLEST.replace("kind: detect", "kind: 3"), "prompts[0].kind: 3: should be", id="wrong-type"),
        pytest.param(SMALLEST.replace("output: {uri: data/runs}", ""), "output: missing", id="missing"),
        pytest.param(SMALLEST + "name: other", "the key 'name' is given twice (line 6)", id="twice"),
    ],
)
def test_c01_the_command_refuses_with_one_sentence_and_asks_nobody(
    make: MakeConfig, tmp_path: Path, emulator: Emulator, text: str, sentence: str
):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refused = pixscribe("run", str(path), "--set", f"model.base_url={emulator.url}")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert sentence in refused.stderr
    assert not emulator.books.by_endpoint


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("!!int ''", id="empty-int"),
        pytest.param("!!float ''", id="empty-float"),
        pytest.param("!!bool maybe", id="no-bool"),
        pytest.param("!!timestamp soon", id="no-date"),
        pytest.param("2024-99-99", id="date-that-is-none"),
        pytest.param("0x" + "f" * 5000, id="endless-hexadecimal"),
        pytest.param("9" * 5000, id="endless-decimal"),
        pytest.param("!!binary '!'", id="no-base64"),
    ],
)
def test_c01_a_value_that_yaml_itself_cannot_make_is_one_sentence(value: str):
    assert refusal(f"{SMALLEST}limits: {{concurrency: {value}}}").startswith("config: ")


@given(st.text(st.sampled_from(list("abn0: -[]{}!&*#?|>'\"%@`,\n\t\\x.~=<e_+")), max_size=40))
def test_c01_no_text_raises_anything_but_a_config_error(text: str):
    for candidate in (text, f"{SMALLEST}limits: {text}", f"{SMALLEST}limits: {{concurrency: {text}}}"):
        with contextlib.suppress(ConfigError):
            config_of(candidate)


# C2: names that lead elsewhere


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "..", ".", "", "a\\b", "a\0b", "a\nb", "%2e%2e"])
@pytest.mark.parametrize("place", ["name", "prompts", "model"])
def test_c02_a_name_that_could_be_a_path_is_refused(place: str, name: str):
    changed = {"name": name, "prompts": [{"name": name, "kind": "detect"}], "model": {"name": name}}
    with pytest.raises(ConfigError, match="name"):
        make_config({**yaml.safe_load(SMALLEST), place: changed[place]})


@pytest.mark.parametrize("run_id", ["../x", "a/b", "..", "", "a\nb", "2024", "x" * 200])
async def test_c02_a_run_cannot_be_called_by_a_path(make: MakeConfig, run_id: str):
    config = make(source=FEW)
    with pytest.raises(ConfigError, match="--run-id: "):
        await annotate(config, run_id=run_id)
    assert not Path(config.output.uri).exists()


@pytest.mark.parametrize("run", ["out@..", "out@../../etc", "out/runs/..", "out/runs/../../etc", "@x", "out@"])
def test_c02_a_run_cannot_be_looked_up_by_a_path(run: str):
    with pytest.raises(ConfigError, match="names no run"):
        locate_run(run)


async def test_c02_whatever_images_are_called_files_are_written_below_the_output_only(make: MakeConfig, tmp_path: Path):
    source = tmp_path / "in"
    for name in ("..%2f..%2fup.png", "..\\up.png", "a/..png", "shard-00000.parquet.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(next(SAMPLES.rglob("*.png")).read_bytes())
    before = set(tmp_path.rglob("*"))
    assert (await annotate(make(source={"uri": str(source)}, prompts=DETECT), run_id="r")).is_all_ok
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    written -= {str(path.relative_to(tmp_path)) for path in before}
    tables = {f"out/{table}/run=r/shard-00000.parquet" for table in ("images", "responses", "annotations")}
    assert {name for name in written if not name.startswith("out/runs/")} == tables


# C3: secrets


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{SMALLEST}api_key: {SECRET}", id="at-the-top"),
        pytest.param(f"{SMALLEST}GEMINI_API_KEY: {SECRET}", id="by-its-name-in-the-environment"),
        pytest.param(f"{SMALLEST}model: {{api_key: {SECRET}}}", id="in-its-section"),
        pytest.param(f"{SMALLEST}model: {{base_url: 'https://user:{SECRET}@example.org'}}", id="in-the-url"),
        pytest.param(f"{SMALLEST}model: {{base_url: 'https://example.org/?key={SECRET}'}}", id="in-the-query"),
        pytest.param(f"{SMALLEST}model: {{base_url: 'https://example.org/#{SECRET}'}}", id="in-the-fragment"),
        pytest.param(SMALLEST.replace("data/signs", f"s3://AKIA0123:{SECRET}@bucket/x"), id="in-the-source"),
        pytest.param(SMALLEST.replace("data/runs", f"s3://AKIA0123:{SECRET}@bucket/x"), id="in-the-output"),
        pytest.param(
            SMALLEST.replace("data/signs", f"s3://AKIA0123:{SECRET}/9@bucket/x"), id="in-the-source-with-slash"
        ),
        pytest.param(SMALLEST.replace("data/signs", f"gs://{SECRET}@bucket/x"), id="for-google"),
        pytest.param(SMALLEST.replace("data/signs", f"abfs://u:{SECRET}@c.dfs.core.windows.net/x"), id="for-azure"),
        pytest.param(SMALLEST.replace("data/signs", f"az://c/x?sv=2026&sig={SECRET}"), id="in-a-signed-url"),
    ],
)
def test_c03_a_secret_in_the_config_is_refused_and_not_repeated(text: str, tmp_path: Path):
    assert SECRET not in refusal(text)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refused = pixscribe("check", str(path))
    assert refused.returncode == 2
    assert SECRET not in refused.stdout + refused.stderr


def test_c03_a_secret_on_the_command_line_is_refused_and_not_repeated():
    for change in (f"model.api_key={SECRET}", f"model.base_url=https://u:{SECRET}@example.org"):
        refused = pixscribe("run", "configs/demo.yaml", "--set", change)
        assert refused.returncode == 2
        assert SECRET not in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(f"{SECRET[:9]} {SECRET[9:]}", id="space"),
        pytest.param(f"{SECRET[:9]}\n{SECRET[9:]}", id="line-break"),
        pytest.param(f"{SECRET}\r\nx-evil: 1", id="header"),
        pytest.param(f"{SECRET[:9]}\u2028{SECRET[9:]}", id="separator"),
        pytest.param(f"clé-{SECRET}", id="accent"),
        pytest.param(" \n", id="blank"),
        pytest.param("", id="empty"),
    ],
)
async def test_c03_a_key_that_cannot_be_one_is_refused_and_not_shown(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch, emulator: Emulator, key: str
):
    monkeypatch.setenv("GEMINI_API_KEY", key)
    config = make(source=FEW)
    with pytest.raises(ConfigError, match="GEMINI_API_KEY") as caught:
        await annotate(config)
    assert SECRET[:9] not in str(caught.value)
    assert SECRET[9:] not in str(caught.value)
    assert not Path(config.output.uri).exists()
    assert not emulator.books.by_endpoint


async def test_c03_a_line_break_after_the_key_is_taken_off_and_the_key_is_written_nowhere(
    make: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("GEMINI_API_KEY", f" {SECRET}\r\n")
    config = make(source=FEW)
    assert api_key(config) == SECRET
    assert (await annotate(config)).is_all_ok
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


# C4: hostile YAML


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: &a [x]\n" + "".join(f"b{n}: &b{n} [*a, *a, *a]\n" for n in range(30)), id="aliases"),
        pytest.param("a: &a [*a]", id="alias-of-itself"),
        pytest.param("a: &a {x: 1}\nb: {<<: *a}", id="merge-of-an-alias"),
        pytest.param("a: !!python/object/apply:os.system ['touch PWNED']", id="python-call"),
        pytest.param("a: !!python/name:os.system", id="python-name"),
        pytest.param("a: !include /etc/passwd", id="own-tag"),
        pytest.param("a: " + "[" * 50_000, id="deep-list"),
        pytest.param("a: " + "{a: " * 5_000, id="deep-mapping"),
        pytest.param("- " * 50_000, id="deep-sequence"),
        pytest.param("a: b\0c", id="nul"),
        pytest.param("a: 1\n---\nb: 2", id="two-documents"),
        pytest.param("? [a, b]\n: 1", id="list-as-key"),
        pytest.param("%YAML 9.9\n---\na: 1", id="of-another-version"),
    ],
)
def test_c04_hostile_yaml_is_refused_at_once(text: str):
    with pytest.raises(ConfigError, match="config: "):
        parse_yaml(text)


def test_c04_a_mark_at_the_start_and_the_line_ends_of_windows_change_nothing(tmp_path: Path):
    plain, marked = tmp_path / "plain.yaml", tmp_path / "marked.yaml"
    plain.write_text(SMALLEST + "model: {seed: 3}\n")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    assert load_config(marked) == load_config(plain)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param("name: é".encode("latin-1"), "is not UTF-8 text", id="latin-1"),
        pytest.param("name: x".encode("utf-16"), "is not UTF-8 text", id="utf-16"),
        pytest.param(b"\xff" * 1000, "is not UTF-8 text", id="binary"),
        pytest.param(b"PK\x03\x04\0\0", "is not YAML", id="zip"),
    ],
)
def test_c04_a_file_that_is_no_utf_8_is_one_sentence(tmp_path: Path, data: bytes, sentence: str):
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=sentence):
        read_yaml(tmp_path / "a.yaml")


def test_c04_a_config_of_100_megabytes_is_not_read(tmp_path: Path):
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(ConfigError, match="larger than 4194304 bytes"):
        read_yaml(tmp_path / "a.yaml")


def test_c04_a_config_from_a_pipe_is_read_up_to_the_same_size(tmp_path: Path):
    """As in `pixscribe run <(make-config)`, where no size is known beforehand."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def feed(data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError), pipe.open("wb") as file:
            file.write(data)

    for data, is_read in ((SMALLEST.encode(), True), (b"#" + b"x" * 5_000_000, False)):
        writer = threading.Thread(target=feed, args=(data,))
        writer.start()
        if is_read:
            assert read_yaml(pipe)["name"] == "signs"
        else:
            with pytest.raises(ConfigError, match="larger than 4194304 bytes"):
                read_yaml(pipe)
        writer.join()


# C5: absurd values

NUMBERS = {
    "source.limit": "greater than or equal to 1",
    "image.max_side_px": "greater than or equal to 16",
    "image.max_pixels": "greater than or equal to 1",
    "model.max_output_tokens": "greater than or equal to 1",
    "limits.requests_per_minute": "greater than 0",
    "limits.tokens_per_minute": "greater than 0",
    "limits.requests_per_day": "greater than or equal to 1",
    "limits.concurrency": "greater than or equal to 1",
    "limits.budget_usd": "greater than 0",
    "retry.max_attempts": "greater than or equal to 1",
    "retry.max_wait_s": "greater than 0",
    "retry.timeout_s": "greater than 0",
    "execution.shard_size": "greater than or equal to 1",
    "execution.shards_in_flight": "greater than or equal to 1",
}
BOUNDED = {
    "model.max_output_tokens": (10**9, "less than or equal to 1000000"),
    "model.seed": (2**31, "less than or equal to 2147482648"),
    "model.temperature": (2.5, "less than or equal to 2"),
    "limits.requests_per_minute": (1e12, "less than or equal to 10000000"),
    "limits.concurrency": (10**6, "less than or equal to 4096"),
    "retry.max_attempts": (10**6, "less than or equal to 100"),
    "retry.max_wait_s": (1e9, "less than or equal to 86400"),
    "retry.timeout_s": (1e9, "less than or equal to 86400"),
    "execution.shard_size": (10**9, "less than or equal to 100000"),
    "execution.shards_in_flight": (10**6, "less than or equal to 64"),
}


def set_to(key: str, value: Any) -> str:
    section, name = key.split(".")
    values = yaml.safe_load(SMALLEST)
    values[section] = {**values.get(section, {}), name: value}
    with pytest.raises(ConfigError) as caught:
        make_config(values)
    return str(caught.value)


@pytest.mark.parametrize("value", [0, -1, -(10**30)])
@pytest.mark.parametrize("key", NUMBERS)
def test_c05_nothing_and_less_than_nothing_is_refused_with_the_bound(key: str, value: int):
    assert set_to(key, value) == f"config: {key}: {value}: should be {NUMBERS[key]}"


@pytest.mark.parametrize("key", BOUNDED)
def test_c05_what_is_absurdly_much_is_refused_with_the_bound(key: str):
    value, bound = BOUNDED[key]
    assert set_to(key, value) == f"config: {key}: {value}: should be {bound}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), True, "60", [60], {"per_minute": 60}])
@pytest.mark.parametrize("key", NUMBERS)
def test_c05_what_is_no_number_is_refused(key: str, value: Any):
    assert set_to(key, value).startswith(f"config: {key}: ")


@pytest.mark.parametrize("key", NUMBERS)
def test_c05_a_number_of_thousands_of_digits_is_refused(key: str):
    assert set_to(key, 16**5000).startswith(f"config: {key}: ")


@pytest.mark.parametrize("option", [["--limit", "0"], ["--limit", "-1"], ["--set", "limits.requests_per_minute=.nan"]])
def test_c05_the_command_line_is_held_to_the_same_bounds(option: list[str]):
    refused = pixscribe("run", "configs/demo.yaml", *option)
    assert refused.returncode == 2
    assert "should be " in refused.stderr
    assert refused.stderr.count("\n") == 1


# C6: another config


async def stopped(config: RunConfig) -> str:
    """The id of a run of this config that its budget ended."""
    before = {str(run["run"]) for run in list_runs(config.output.uri)}
    with pytest.raises(BudgetExhausted):
        await annotate(config)
    [run_id] = {str(run["run"]) for run in list_runs(config.output.uri)} - before
    return run_id


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"prompts": [{"name": "objects", "kind": "detect", "text": "Find cups."}]}, id="words"),
        pytest.param({"prompts": [{"name": "objects", "kind": "segment"}]}, id="schema"),
        pytest.param({"prompts": [{"name": "objects", "kind": "detect", "labels": ["red"]}]}, id="labels"),
        pytest.param({"model": {"name": "gemini-3.5-flash-lite"}}, id="model"),
        pytest.param({"model": {"seed": 8}}, id="setting"),
        pytest.param({"image": {"max_side_px": 64}}, id="size"),
        pytest.param({"source": {"uri": str(SAMPLES), "exclude": ["*.jpg"]}}, id="source"),
    ],
)
async def test_c06_another_question_gets_a_run_of_its_own_and_leaves_the_unfinished_one(
    make: MakeConfig, change: dict[str, Any]
):
    few: dict[str, Any] = {"source": FEW, "prompts": DETECT}
    first = await stopped(make(**few, limits={"budget_usd": 1e-6}))
    frozen = open_storage(make().output.uri).read(f"runs/{first}/config.yaml")
    changed = {**few, **change}
    changed["source"] = {**changed["source"], "limit": 2}
    second = await annotate(make(**changed))
    assert second.run != first
    assert describe_run(second.output, first)["status"] == "unfinished"
    assert open_storage(second.output).read(f"runs/{first}/config.yaml") == frozen
    assert {row["run"] for row in pq.read_table(f"{second.output}/images").to_pylist()} == {second.run}
    resumed = await annotate(make(**few))
    assert (resumed.run, resumed.totals.images_ok) == (first, 2)


async def test_c06_an_unfinished_run_cannot_be_named_for_another_question(make: MakeConfig):
    config = make(source=FEW, prompts=DETECT, limits={"budget_usd": 1e-6})
    with pytest.raises(BudgetExhausted):
        await annotate(config, run_id="mine")
    with pytest.raises(ConfigError, match="the run 'mine' exists already"):
        await annotate(make(source=FEW, prompts=[{"name": "objects", "kind": "segment"}]), run_id="mine")


async def test_c06_a_damaged_config_of_an_unfinished_run_is_said_and_left_alone(
    make: MakeConfig, caplog: pytest.LogCaptureFixture
):
    config = make(source=FEW, prompts=DETECT, limits={"budget_usd": 1e-6})
    first = await stopped(config)
    path = Path(config.output.uri) / f"runs/{first}/config.yaml"
    path.write_bytes(path.read_bytes()[:40])
    second = await annotate(make(source=FEW, prompts=DETECT))
    assert second.run != first
    assert "an unfinished run is left alone" in caplog.text
    assert len(path.read_bytes()) == 40


# C7: output and source


@pytest.mark.parametrize(
    ("source", "output"),
    [
        pytest.param("in", "in", id="the-same"),
        pytest.param("in", "in/out", id="inside"),
        pytest.param("in", "link", id="through-a-link"),
        pytest.param("link", "in/out", id="from-a-link"),
        pytest.param("in", "in/../in/out", id="roundabout"),
        pytest.param(".", "out", id="source-above"),
        pytest.param("out/images", "out", id="source-is-a-table"),
        pytest.param("out/images/run=x", "out/images/run=x/y", id="inside-a-table"),
        pytest.param("/", "out", id="everything"),
    ],
)
def test_c07_an_output_that_would_be_scanned_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, output: str
):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    for output_uri in (output, f"file://{tmp_path / output}", str(tmp_path / output)):
        text = SMALLEST.replace("data/signs", source).replace("data/runs", output_uri)
        assert "lies in source.uri" in refusal(text)


async def test_c07_a_source_inside_the_output_is_no_part_of_it(make: MakeConfig, tmp_path: Path):
    """Pictures and tables may share a folder as long as neither lies in the other's own folders."""
    source = tmp_path / "data/pictures"
    source.mkdir(parents=True)
    (source / "a.png").write_bytes(next(SAMPLES.rglob("*.png")).read_bytes())
    config = make(source={"uri": str(source)}, output={"uri": str(tmp_path / "data")}, prompts=DETECT)
    for _ in range(2):
        assert (await annotate(config)).totals.images == 1


def test_c07_the_command_line_is_held_to_the_same_rule(tmp_path: Path):
    refused = pixscribe("run", "configs/demo.yaml", "--source", str(tmp_path), "--output", str(tmp_path / "out"))
    assert refused.returncode == 2
    assert "lies in source.uri" in refused.stderr
    assert list(tmp_path.iterdir()) == []


# C8: words

WORDS = {
    "braces": "Find {all} the {{things}} {0} {} %s %(x)s ${HOME} $(date) `id` {label} {labels",
    "scripts": "Найди все объекты. すべての物体。 כל העצמים. كل شيء. 🦊 e\u0301 \u00e9",
    "invisible": "a\u200bb\u2028c\u2029d\u0085e\ufefff\u00a0g\tend",
    "breaks": "  one\n\n\ttwo  \r\nthree\rfour \\n \\u0041 \"quoted\" 'too'\n",
    "markup": "<b>&amp;</b> # no comment: - no list\n--- \n... \n? | > ! & *",
    "controls": "\x01\x07\x1b[31m\x7f",
}


@pytest.mark.parametrize("name", WORDS)
async def test_c08_words_are_sent_unchanged_and_read_back_from_the_frozen_config(
    make: MakeConfig, emulator: Emulator, name: str
):
    config = make(source={**FEW, "limit": 1}, prompts=[{"name": "q", "kind": "ask", "text": WORDS[name]}])
    summary = await annotate(config)
    assert [question.text for question in emulator.books.questions] == [WORDS[name]]
    frozen = parse_yaml(open_storage(summary.output).read(f"runs/{summary.run}/config.yaml").decode())
    assert frozen["prompts"][0]["text"] == WORDS[name]


async def test_c08_a_prompt_of_a_megabyte_is_sent_unchanged(make: MakeConfig, emulator: Emulator, tmp_path: Path):
    words = "Find {every} déjà vu. " * 45_000
    assert len(words.encode()) > 1_000_000
    config = make(source={**FEW, "limit": 1}, prompts=[{"name": "q", "kind": "ask", "text": words}])
    assert load_config(write_yaml(tmp_path / "a.yaml", config)) == config
    assert (await annotate(config)).is_all_ok
    [question] = emulator.books.questions
    assert question.text == words


@given(st.text(min_size=1, max_size=60))
def test_c08_any_words_survive_the_freezing_of_a_config(words: str):
    values = yaml.safe_load(SMALLEST)
    values["prompts"] = [{"name": "q", "kind": "ask", "text": words}]
    config = make_config(values)
    thawed = config_of(dump_config(config))
    assert thawed == config
    assert config_digest(thawed) == config_digest(config)


def test_c08_half_a_character_is_refused():
    assert "prompts[0].text" in refusal(SMALLEST.replace("kind: detect", 'kind: ask, text: "\\ud83d"'))
