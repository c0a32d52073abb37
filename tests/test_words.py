"""Words arrive as typed: on the command line, in lists and sweeps, in files; faults in a file get their line."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from snnexp.cli import conf_dir
from snnexp.composition import explain
from snnexp.config import Config, register_schemas
from snnexp.config_files import read
from snnexp.errors import ConfigError
from snnexp.overrides import arranged
from snnexp.terminal import HANDLER, prepare_terminal, says_ascii
from snnexp.variables import check_variables, switched_on, threads
from snnexp.words import all_keys, is_word, kinds_of, parse


@pytest.fixture(autouse=True, scope="module")
def schema() -> None:
    """Words are read by the schema, which the command registers."""
    register_schemas()


NUMBERS_AND_MORE = (
    "2026_11_25",
    "1234e567",
    "1.10",
    "1.0",
    "007",
    "0x10",
    "1e5",
    "+5",
    "-0",
    ".5",
    "1_0.0",
    "nan",
    "inf",
)
TRUTHS = ("true", "True", "FALSE", "off", "no", "yes", "NULL_")


def compose(*words: str) -> DictConfig:
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return GlobalHydra.instance().config_loader().load_configuration("config", list(words), RunMode.RUN)


def test_every_string_key_is_known_as_one() -> None:
    register_schemas()
    words = {key for key in all_keys() if is_word(kinds_of(key.split(".")))}
    assert {"run_id", "state_dir", "tracking.experiment", "dataset.variant", "neuron.surrogate.name"} <= words
    assert words.isdisjoint({"seed", "dataset.alpha", "dataset.download", "optimizer.betas", "neuron.threshold"})
    top = {field.name for field in dataclasses.fields(Config) if field.type in ("str", "str | None")}
    assert top == {word for word in words if "." not in word}
    assert is_word(kinds_of(["dataset", "transforms", "0"])) and is_word(kinds_of(["hydra", "job", "name"]))


@pytest.mark.parametrize("typed", NUMBERS_AND_MORE + TRUTHS)
def test_a_word_is_parsed_as_typed(typed: str) -> None:
    words = [
        f"run_id={typed}",
        f"+run_id={typed}",
        f"++tracking.run_name={typed}",
        f"neuron={typed}",
        f"run_id='{typed}'",
    ]
    assert [override.value() for override in parse(words)] == [typed] * len(words)
    assert parse([f"dataset.transforms=[{typed},a]"])[0].value() == [typed, "a"]
    assert parse([f"tracking={{experiment: {typed}}}"])[0].value() == {"experiment": typed}
    for swept in (f"run_id={typed},b", f"neuron=choice({typed},b)"):
        assert list(parse([swept])[0].sweep_string_iterator()) == [typed, "b"]


@pytest.mark.parametrize("typed", ["~/data", "a=b", "größe", "http://h/?a=1&b=2", "a#b", "a;b", "a!", "x\ny", "~"])
def test_words_that_hydras_grammar_has_no_letters_for_need_no_quotes(typed: str) -> None:
    words = parse([f"tracking.uri={typed}", f"+run_id={typed}", f"neuron={typed}"])
    assert [override.value() for override in words] == [typed] * 3
    assert words[0].input_line == f"tracking.uri={typed}"
    swept = list(parse([f"run_id={typed},b"])[0].sweep_string_iterator())
    assert [parse([f"run_id={word}"])[0].value() for word in swept] == [typed, "b"]
    with pytest.raises(OverrideParseException):
        parse(["seed=~"])


def test_other_keys_keep_their_types() -> None:
    assert [o.value() for o in parse(["seed=1_0", "optimizer.lr=1e-3", "dataset.download=true"])] == [10, 0.001, True]
    assert [o.value() for o in parse(["run_id=null", "scheduler=null"])] == [None, "null"]  # no word; an option's name
    assert list(parse(["run_id=range(1,3)"])[0].sweep_string_iterator()) == ["1", "2"]
    assert parse(["run_id=${seed}"])[0].value() == "${seed}"


def test_words_reach_the_configuration_from_the_line_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "w.yaml").write_text(
        "tracking: {experiment: 2026_11_25, run_name: on}\nstate_dir: 007\ndataset: {num_steps: 1_0}\n"
        "defaults: [override /tracking: off]\n"
    )
    cfg = compose(f"hydra.searchpath=[{tmp_path}]", "+experiment=w", "run_id=1234e567", "hydra.job.name=1e5")
    assert (cfg.tracking.name, cfg.tracking.experiment, cfg.tracking.run_name) == ("off", "2026_11_25", "on")
    assert (cfg.state_dir, cfg.run_id, cfg.dataset.num_steps, cfg.hydra.job.name) == ("007", "1234e567", 10, "1e5")


FILES: dict[str, tuple[bytes, str]] = {
    "tab": (b"trainer:\n\tmax_epochs: 3\n", "line 2: a tab"),
    "twice": (b"trainer:\n  max_epochs: 3\n  max_epochs: 4\n", "line 3: the key max_epochs is there a second time"),
    "indent": (b"trainer:\n  max_epochs: 3\n monitor: loss\n", "line 3: .*indented"),
    "latin1": (b"# a\n# caf\xe9\n", "line 2: byte 0xe9 is not UTF-8"),
    "control": (b"a:\n  b: \x07\n", "line 2: a sign"),
    "open": (b"trainer: {max_epochs: 3\n\n", "line 1"),
    "list": (b"\n- a\n", "line 2: a list"),
    "word": (b"hello\n", "line 1: a single value"),
    "two": (b"a: 1\n---\nb: 1\n", "line 2: expected a single document"),
    "itself": (b"a: &x {b: *x}\n", "an anchor contains itself"),
    "defaults": (b"a: 1\ndefaults: {neuron: fixed}\n", "line 2: defaults must be a list"),
    "item": (b"defaults:\n  - [a]\n", "line 2: one group and one option"),
    "package": (b"# hello\n# @package _globl_\n", "line 2: .*_global_"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_fault_in_a_file_has_its_line(fault: str) -> None:
    data, message = FILES[fault]
    with pytest.raises(ConfigError, match=f"^x.yaml(, |: ){message}"):
        read(data, "x.yaml", "neuron/x", "main", "file://")


@pytest.mark.parametrize(
    "data", [b"", b"# only\n", b"\xef\xbb\xbf# @package _global_\na: 1\n", "a: 1".encode("utf-16")]
)
def test_empty_files_and_marks_of_an_encoding_are_no_fault(data: bytes) -> None:
    assert OmegaConf.to_container(read(data, "x.yaml", "experiment/x", "main", "").config) in ({}, {"a": 1})


VALUES = {
    "trainer: {max_epoch: 3}": "line 1: trainer.max_epoch: no such key. Did you mean trainer.max_epochs?",
    "a: &b {}\ntrainer:\n  max_epochs: three": "line 3: trainer.max_epochs: Value 'three'",
    "neuron: rouser": "line 1: neuron has KEY: VALUE lines here. .*override /neuron: OPTION",
    "seed:": "line 1: seed: null is no value for it",
    "defaults: [override /neuron: rousr]": "line 1: neuron=rousr: no such option. Did you mean rouser?",
    "defaults: [override neuron: rouser]": "line 1: experiment/neuron: no such group. .* override /neuron: OPTION",
    "defaults: [/neuron: rouser]": "line 1: neuron is chosen a second time. .* override /neuron: rouser",
    "defaults: [override /scheduler: null]": "line 1: scheduler=null: no such option. Did you mean none?",
    "defaults: [x]": "line 1: a defaults list leads back",
}


@pytest.mark.parametrize("text", VALUES)
def test_what_a_file_asks_for_in_vain_is_told_with_its_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "x.yaml").write_text(text.replace("a: &b {}", "# a comment"))
    with pytest.raises(ConfigError, match=f"x.yaml, {VALUES[text]}"):
        compose(f"hydra.searchpath=[{tmp_path}]", "+experiment=x")


def test_folders_and_dangling_links_are_named(tmp_path: Path) -> None:
    (tmp_path / "neuron" / "dir.yaml").mkdir(parents=True)
    (tmp_path / "neuron" / "gone.yaml").symlink_to("nowhere")
    for name, what in (("dir", "a folder"), ("gone", "a link to nothing")):
        with pytest.raises(ConfigError, match=f"{name}.yaml: is {what}"):
            compose(f"hydra.searchpath=[{tmp_path}]", f"neuron={name}")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("scheduler=null", "scheduler=null: no such option. Did you mean none? Valid: cosine, none, step, "),
        ("tracking=false", "tracking=false: no such option. Did you mean off?"),
        ("model=10", "model=10: no such option."),
        ("neuron=", "neuron=: no such option."),
        ("~neuron", "choose another: neuron=NAME"),
        ("~seed", "give it another value: seed=VALUE"),
        ("lr=0.1", "lr: no such group or key. Did you mean optimizer.lr?"),
        ("threshold=1", "Did you mean encoder.threshold or neuron.threshold?"),
        ("epochs=1", "Did you mean trainer.max_epochs?"),
        ("batch_sze=1", "Did you mean dataset.batch_size?"),
        ("rouser", "Did you mean neuron=rouser or rescue=rouser?"),
        ("state_dir=null", """'state_dir="null"'"""),
        ('tracking.run_name=a"(b', r"""'tracking.run_name="a\"(b"'"""),
        ("neuron=../neuron/fixed", "a name, not a path"),
        ("hydra.searchpath=[file:///nowhere/at/all]", "no such folder or package: file:///nowhere/at/all"),
    ],
)
def test_what_cannot_be_meant_gets_advice(word: str, message: str) -> None:
    with pytest.raises(Exception) as caught:
        compose(word)
    told = str(caught.value) if isinstance(caught.value, ConfigError) else explain(caught.value)
    assert told is not None and message in told


def test_the_advised_quotes_work() -> None:
    cfg = compose('state_dir="null"', r'tracking.run_name="a\"(b"')
    assert (cfg.state_dir, cfg.tracking.run_name) == ("null", 'a"(b')


def test_flags_may_stand_anywhere(tmp_path: Path) -> None:
    typed = ["a=1", "-m", "b=2", "-cd", str(tmp_path), "c=3"]
    assert arranged(typed) == ["--multirun", f"--config-dir={tmp_path}", "a=1", "b=2", "c=3"]
    assert arranged(["a=1", "--info", "b=2"]) == ["--info=all", "a=1", "b=2"]
    assert arranged(["--cfg", "job", "a=1", "--res"]) == ["--cfg=job", "--resolve", "a=1"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--hlep"], "--hlep: no such flag. Did you mean --help?"),
        (["seed=1", "--config-dir"], "--config-dir: a value is expected"),
        (["--config-dir", "nowhere"], "nowhere: no such folder"),
        (["--config-dir=/", "--config-dir=/tmp"], "hydra.searchpath=[file://DIR1,file://DIR2]"),
        (["-c", "jop"], "--cfg=jop: no such option. Did you mean job?"),
        (["-m", "--cfg", "job"], "only one of these"),
        (["--resolve"], "needs --cfg"),
        (["run_id=\udcff"], "no text in this locale"),
    ],
)
def test_flags_that_cannot_be_meant(typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        arranged(typed)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["abc", "0", "-1", "", "1.5", "²"])
def test_a_number_of_threads_must_be_one(value: str) -> None:
    with pytest.raises(ConfigError, match="SNNEXP_THREADS="):
        threads({"SNNEXP_THREADS": value})
    assert threads({"SNNEXP_THREADS": "2"}) == 2 and threads({}) is None


@pytest.mark.parametrize("name", ["SNNEXP_AHEAD", "SNNEXP_ALLOC"])
def test_a_switch_is_0_or_1(name: str) -> None:
    for value in ("false", "off", "2", " 0"):
        with pytest.raises(ConfigError, match=f"{name}={value}: must be 0"):
            check_variables({name: value})
    for value in ("0", "1", ""):
        check_variables({name: value})
        assert switched_on(name, {name: value}) == (value != "0")
    assert switched_on(name, {})


def test_the_folder_of_data_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SNNEXP_DATA=.*is a file"):
        check_variables({"SNNEXP_DATA": __file__})
    empty = {"SNNEXP_DATA": ""}
    check_variables(empty)
    check_variables({"SNNEXP_DATA": str(tmp_path / "made later")})
    assert empty == {}


def test_ascii_terminals_get_ascii() -> None:
    prepare_terminal({})
    assert sys.stdout is not None
    assert "0.1 ± 0.2 │ θ → ▁█ é \udc80".encode("ascii", HANDLER) == rb"0.1 +- 0.2 | theta -> _# \xe9 \udc80"
    assert says_ascii({"LANG": "C"}) and says_ascii({"LC_ALL": "POSIX", "LANG": "de_DE.UTF-8"})
    assert not says_ascii({"LANG": "C.UTF-8"}) and not says_ascii({}) and not says_ascii({"LC_ALL": "en_US.UTF-8"})


def test_the_command_answers_in_ascii(snnexp) -> None:
    done = snnexp("tracking.experiment=é(", env={"LC_ALL": "C", "LANG": "C"})
    assert done.returncode == 2 and done.stderr.isascii() and r"\xe9(" in done.stderr


def test_hydra_keeps_our_way_of_reading_files_when_it_looks_for_its_plugins_again() -> None:
    """A launcher's worker process gets our sources from the parent, and then finds Hydra's own."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
    from hydra._internal.sources_registry import SourcesRegistry

    register_schemas()
    for source in (FileConfigSource, ImportlibResourcesConfigSource):
        SourcesRegistry.instance().register(source)
        assert SourcesRegistry.instance().resolve(source.scheme()).__module__ == "snnexp.config_files"
