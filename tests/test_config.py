from pathlib import Path

import pytest

from pixscribe.config import RunConfig, config_digest, dump_config, json_schema, load_config, make_config, parse_yaml
from pixscribe.errors import ConfigError

SMALLEST = """
name: signs
source: {uri: data/signs}
prompts: [{name: objects, kind: detect}]
output: {uri: data/runs}
"""


def config_of(text: str) -> RunConfig:
    return make_config(parse_yaml(text))


def test_a_config_needs_four_keys_and_has_a_default_for_the_rest():
    config = config_of(SMALLEST)
    assert (config.model.transport, config.limits.concurrency, config.execution.shard_size) == ("files", 64, 256)


def test_a_frozen_config_reads_back_equal():
    config = config_of(SMALLEST)
    assert config_of(dump_config(config)) == config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(
            "limits: {concurency: 8}",
            "config: limits.concurency: unknown key; did you mean limits.concurrency?",
            id="typo",
        ),
        pytest.param(
            "concurrency: 8", "config: concurrency: unknown key; did you mean limits.concurrency?", id="wrong-section"
        ),
        pytest.param(
            "limits: {concurrency: 0}",
            "config: limits.concurrency: 0: should be greater than or equal to 1",
            id="zero",
        ),
        pytest.param(
            "limits: {concurrency: 1000000}",
            "config: limits.concurrency: 1000000: should be less than or equal to 4096",
            id="a-million",
        ),
        pytest.param(
            "limits: {requests_per_minute: .nan}",
            "config: limits.requests_per_minute: nan: should be a finite number",
            id="nan",
        ),
        pytest.param(
            "limits: {concurrency: true}", "config: limits.concurrency: true: should be a valid integer", id="bool"
        ),
        pytest.param(
            'limits: {concurrency: "8"}', 'config: limits.concurrency: "8": should be a valid integer', id="text"
        ),
        pytest.param("limits: 8", "config: limits: 8: should be a mapping of keys to values", id="not-a-section"),
        pytest.param("retry: {timeout_s: 0}", "config: retry.timeout_s: 0: should be greater than 0", id="no-time"),
        pytest.param(
            "model: {base_url: ftp://x}",
            "config: model.base_url: should be an http(s) URL or `emulator`",
            id="url",
        ),
        pytest.param(
            "limits:\n  concurrency: 1\n  concurrency: 2",
            "config: the key 'concurrency' is given twice (line 8)",
            id="twice",
        ),
        pytest.param("x: &a [1]\ny: *a", "config: aliases (*name) are not allowed (line 7)", id="alias"),
    ],
)
def test_a_mistake_gets_one_sentence(change: str, sentence: str):
    with pytest.raises(ConfigError) as caught:
        config_of(SMALLEST + change)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("", "should be a mapping of keys to values", id="empty"),
        pytest.param("- 1", "should be a mapping of keys to values", id="list"),
        pytest.param("a: !!python/object/apply:os.system [ls]", "could not determine a constructor", id="python-tag"),
        pytest.param("a: [", "line 1", id="syntax"),
        pytest.param(SMALLEST.replace("source: {uri: data/signs}", ""), "source: missing", id="missing"),
        pytest.param(SMALLEST.replace("detect", "detct"), "prompts[0].kind: \"detct\": should be 'detect'", id="kind"),
        pytest.param(SMALLEST.replace("detect", "ask"), "prompt 'objects' of kind ask needs a text", id="no-words"),
        pytest.param(SMALLEST.replace("[{name", "[{name: objects, kind: caption}, {name"), "two are named", id="names"),
        pytest.param(SMALLEST.replace("data/signs", "ftp://b/x"), "source.uri: should be a folder", id="ftp"),
        pytest.param(SMALLEST.replace("data/signs", "hf://datasets/o/n/x.parquet"), "`hf download ", id="hf"),
        pytest.param(SMALLEST.replace("signs\n", "Signs/../x\n", 1), "name: ", id="name"),
    ],
)
def test_what_is_no_config_is_refused(text: str, sentence: str):
    with pytest.raises(ConfigError, match="config: ") as caught:
        config_of(text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        pytest.param("data/x", "data/x", id="the-same"),
        pytest.param("data/x", "./data/y/../x/out", id="inside"),
        pytest.param("data/runs/images", "data/runs", id="where-the-tables-go"),
        pytest.param("s3://b/x", "s3://b/x/out", id="inside-a-bucket"),
        pytest.param("gs://b/x", "gs://b/x/out", id="inside-a-bucket-of-google"),
        pytest.param("az://b/x", "abfss://b@acc.dfs.core.windows.net/x/out", id="two-spellings-of-a-container"),
        pytest.param("file:///tmp/x", "/tmp/x/out", id="as-url-and-as-path"),
    ],
)
def test_the_output_may_not_lie_in_the_source(source: str, output: str):
    with pytest.raises(ConfigError, match="lies in source"):
        config_of(SMALLEST.replace("data/signs", source).replace("data/runs", output))


def test_folders_that_only_share_the_start_of_their_names_are_apart():
    config_of(SMALLEST.replace("data/runs", "data/signs-labelled"))


def test_changes_from_the_command_line_reach_into_sections_and_lists(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("\ufeff" + SMALLEST.replace("\n", "\r\n"), encoding="utf-8")
    config = load_config(path, {"limits.concurrency": 8, "prompts[0].text": "Find {all} signs", "source.limit": 3})
    assert (config.limits.concurrency, config.prompts[0].text, config.source.limit) == (8, "Find {all} signs", 3)


def test_a_change_of_a_place_that_is_not_there_is_refused(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text(SMALLEST)
    with pytest.raises(ConfigError, match=r"--set prompts\[3\].text: '3' should be a position from 0 to 0"):
        load_config(path, {"prompts[3].text": "x"})


def test_a_config_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


def test_limits_do_not_make_another_run_but_prompts_do():
    config = config_of(SMALLEST)
    assert config_digest(config) == config_digest(config_of(SMALLEST + "limits: {budget_usd: 5}"))
    assert config_digest(config) != config_digest(config_of(SMALLEST.replace("detect", "segment")))


def test_the_schema_describes_every_key():
    limits = json_schema()["$defs"]["LimitsConfig"]["properties"]
    assert all("description" in key for key in limits.values())
