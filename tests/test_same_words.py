"""The same words mean the same run: alone, as a job of a sweep, beside an experiment, from any folder of options."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from snnexp.cli import conf_dir
from snnexp.config import register_schemas
from snnexp.errors import ConfigError

OWN = {
    # a neuron on its own, as the README tells: after other comments, and with blanks around the directive
    "neuron/mine": "# my neuron\n#\n\n #  @package  _global_ \ndefaults: [/schema/neuron/base@neuron]\n"
    "neuron: {name: mine, threshold: 0.7, surrogate: {width: 0.25}}\nmodel: {gain: 2.0}\n",
    "neuron/plain": "threshold: 0.6\nname: plain\nbeta: ${optimizer.momentum}\n",  # no directive, an interpolation
    "neuron/child": "defaults: [plain, _self_]\nname: child\n",  # its own defaults list
    "neuron/heir": "# @package _global_\ndefaults: [/neuron/rouser@_here_, override /decoder: rate_mse]\n"
    "neuron: {name: heir}\n",
    "neuron/deep/er": "# @package neuron\nname: er\nthreshold: 0.9\n",
    "optimizer/lists": "defaults: [/schema/optimizer/base@_here_]\nname: adam\nbetas: [0.5, 0.25]\n",
    "model/signs": '# @package _global_\nmodel: {name: signs, spec: "(FC8-SN)x2-FC-SN", neunorm: {k: 0.5}}\n',
    "experiment/e": "# @package _global_\ndefaults: [override /neuron: rouser, override /optimizer: sgd]\n"
    "neuron: {threshold: 0.25, beta: 0.5, strict: true, surrogate: {width: 9.0}}\n"
    "optimizer: {betas: [0.1, 0.2], lr: 0.5}\nmodel: {gain: 3.0, spec: FC-SN}\ntrainer: {max_epochs: 7, patience: 5}\n",
    "experiment/f": "defaults: [e, override /trainer: smoke]\nneuron: {threshold: 0.125}\n",  # builds on another
    "experiment/swept": "# @package _global_\ndefaults: [e]\n"
    "hydra: {sweeper: {params: {neuron: 'mine,fixed', run_id: '1e5,2026_11'}}}\n",
    "experiment/armed": "defaults: [e]\nclaim:\n  paper: none\n  arms:\n"
    "    low: {neuron.threshold: 0.5, neuron.strict: false}\n"
    "    mine: {neuron: mine, neuron.threshold: 0.375, tracking.run_name: 2026_11}\n    wrong: {neuron.thresold: 1}\n",
    "experiment/armed2": "defaults: [armed]\narm: low\nclaim: {arms: {low: {neuron.beta: 0.25}}}\n",
    "experiment/sub/g": "# @package _global_\nneuron: {threshold: 0.375}\n",
}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[str]:
    """A folder of one's own options, as an override; Hydra is ready."""
    for option, text in OWN.items():
        path = tmp_path / f"{option}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield f"hydra.searchpath=[file://{tmp_path}]"


def single(*words: str) -> dict[str, Any]:
    """What a single command composes."""
    return _plain(GlobalHydra.instance().config_loader().load_configuration("config", list(words), RunMode.RUN))


def jobs(*words: str) -> list[dict[str, Any]]:
    """What the jobs of `-m` compose, in their order; what Hydra's sweeper does between the two calls of the loader."""
    loader = GlobalHydra.instance().config_loader()
    master = loader.load_configuration("config", list(words), RunMode.MULTIRUN)
    params = OmegaConf.select(master, "hydra.sweeper.params") or {}
    asked = [f"{key}={value}" for key, value in params.items()] + list(master.hydra.overrides.task)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(asked)
    return [_plain(loader.load_sweep_config(master, job)) for job in BasicSweeper.split_arguments(parsed, None)[0]]


def _plain(cfg: Any) -> dict[str, Any]:
    values: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    values.pop("hydra")
    return values


@pytest.mark.parametrize(
    ("neuron", "threshold", "beta", "width", "gain"),
    [
        ("fixed", 1.0, 0.9, 9.0, 3.0),
        ("mine", 0.7, 0.5, 0.25, 2.0),
        ("plain", 0.6, "${optimizer.momentum}", 9.0, 3.0),
        ("child", 0.6, "${optimizer.momentum}", 9.0, 3.0),
        ("heir", 1.25, 0.97, 3.75, 3.0),
        ("deep/er", 0.9, 0.5, 9.0, 3.0),
    ],
)
def test_an_own_option_wins_over_an_experiment_as_a_shipped_one_does(
    own: str, neuron: str, threshold: float, beta: object, width: float, gain: float
) -> None:
    """What its files say wins; what they leave alone (strict) is the experiment's; the order of words is nothing."""
    cfg = single(own, "+experiment=e", f"neuron={neuron}")
    assert cfg == single(f"neuron={neuron}", "experiment=e", own)
    values = cfg["neuron"]
    assert (values["threshold"], values["beta"], values["surrogate"]["width"]) == (threshold, beta, width)
    assert (values["strict"], cfg["model"]["gain"], cfg["trainer"]["max_epochs"]) == (True, gain, 7)
    assert single(own, "+experiment=e", f"neuron={neuron}", "neuron.threshold=4")["neuron"]["threshold"] == 4


def test_lists_signs_and_nested_keys_of_an_option_win_too(own: str) -> None:
    cfg = single(own, "+experiment=e", "optimizer=lists", "model=signs")
    assert (cfg["optimizer"]["betas"], cfg["optimizer"]["lr"]) == ([0.5, 0.25], 0.5)
    assert (cfg["model"]["spec"], cfg["model"]["neunorm"]["k"], cfg["model"]["gain"]) == ("(FC8-SN)x2-FC-SN", 0.5, 3.0)


def test_what_only_the_experiment_chooses_does_not_win_over_its_values(own: str) -> None:
    cfg = single(own, "+experiment=f")
    assert (cfg["neuron"]["name"], cfg["neuron"]["threshold"], cfg["neuron"]["beta"]) == ("rouser", 0.125, 0.5)
    assert (cfg["trainer"]["max_epochs"], cfg["trainer"]["smoke_steps"]) == (7, 2)  # e's value behind f's option
    assert single(own, "+experiment=f", "trainer=smoke")["trainer"]["max_epochs"] == 1
    assert single(own, "+experiment=sub/g", "neuron=mine")["neuron"]["threshold"] == 0.7
    assert single(own, "+experiment=sub/g")["neuron"]["threshold"] == 0.375


@pytest.mark.parametrize(
    ("swept", "values"),
    [
        ("neuron=fixed,mine,child", {"neuron": ["fixed", "mine", "child"]}),
        ("neuron=choice(rouser,plain)", {"neuron": ["rouser", "plain"]}),
        ("neuron=glob([min*,h*])", {"neuron": ["heir", "mine"]}),
        ("+experiment=e,f,sub/g neuron=mine", {"+experiment": ["e", "f", "sub/g"]}),
        ("experiment=e,f neuron=plif,ltmd", {"experiment": ["e", "f"], "neuron": ["plif", "ltmd"]}),
        ("+experiment=e neuron=mine neuron.threshold=1,2", {"neuron.threshold": ["1", "2"]}),
        ("+experiment=swept", {"neuron": ["mine", "fixed"], "run_id": ["1e5", "2026_11"]}),
    ],
)
def test_each_job_of_a_sweep_is_the_single_command(own: str, swept: str, values: dict[str, list[str]]) -> None:
    words = swept.split(" ")
    if not any("experiment" in word for word in words):
        words.append("+experiment=e")
    fixed = [word for word in words if word.partition("=")[0] not in values]
    expected = [
        single(own, *fixed, *(f"{key}={value}" for key, value in zip(values, job, strict=True)))
        for job in itertools.product(*values.values())
    ]
    found = jobs(own, *words)
    assert len({str(cfg) for cfg in found}) == len(expected) > 1
    assert found == expected


def test_the_record_shows_what_was_typed(own: str) -> None:
    loader = GlobalHydra.instance().config_loader()
    typed = ["+experiment=e", "neuron=mine", "tracking.run_name=1e5"]
    cfg = loader.load_configuration("config", [own, *typed], RunMode.RUN)
    assert list(cfg.hydra.overrides.task) == typed
    assert cfg.hydra.runtime.choices["neuron"] == "mine"


def test_an_arm_is_a_part_of_its_experiment(own: str) -> None:
    """Its values win over the experiment's, not over what was chosen in words; its own option comes before them."""

    def threshold_of(*words: str) -> tuple[float, bool]:
        neuron = single(own, "+experiment=armed", *words)["neuron"]
        return neuron["threshold"], neuron["strict"]

    assert threshold_of() == (0.25, True)
    assert threshold_of("arm=low") == (0.5, False)
    assert threshold_of("arm=low", "neuron=mine") == threshold_of("neuron=mine", "arm=low") == (0.7, False)
    assert threshold_of("arm=low", "neuron=mine", "neuron.threshold=4") == (4, False)
    assert threshold_of("arm=mine") == (0.375, True)
    assert threshold_of("arm=mine", "neuron=plain") == (0.6, True)
    assert single(own, "+experiment=armed", "arm=mine")["tracking"]["run_name"] == "2026_11"  # as it stands there
    built_on = single(own, "+experiment=armed2")["neuron"]  # which chooses an arm itself, and adds to it
    assert (built_on["threshold"], built_on["beta"]) == (0.5, 0.25)
    found = jobs(own, "+experiment=armed", "arm=low,mine", "neuron=plain,mine")
    assert found == [
        single(own, "+experiment=armed", f"arm={arm}", f"neuron={neuron}")
        for arm, neuron in itertools.product(("low", "mine"), ("plain", "mine"))
    ]


def test_an_arm_with_a_wrong_key_is_named_with_its_line(own: str) -> None:
    with pytest.raises(ConfigError, match=r"armed\.yaml, line 7: neuron\.thresold: no such key.*threshold"):
        single(own, "+experiment=armed", "arm=wrong")


def test_the_record_shows_an_arm_as_it_was_typed(own: str) -> None:
    loader = GlobalHydra.instance().config_loader()
    cfg = loader.load_configuration("config", [own, "+experiment=armed", "arm=mine"], RunMode.RUN)
    assert list(cfg.hydra.overrides.task) == ["+experiment=armed", "arm=mine"]
    assert (cfg.hydra.runtime.choices["neuron"], cfg.hydra.job.override_dirname) == (
        "mine",
        "+experiment=armed,arm=mine",
    )


@pytest.mark.parametrize(
    "typed",
    [[], ["neuron=mine", "neuron.beta=0.5"], ["+experiment=armed", "arm=mine"], ["hydra.run.dir=here", "seed=3"]],
)
def test_a_single_run_is_composed_once(own: str, typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra asks first for the mode and then for the run: the answer is that of a loader that was asked only once."""
    loader = GlobalHydra.instance().config_loader()
    words = [own, *typed, "hydra.mode=RUN"]
    expected = loader.load_configuration("config", words, RunMode.RUN)
    asked = loader.load_configuration("config", words[:-1], RunMode.MULTIRUN, validate_sweep_overrides=False)
    with monkeypatch.context() as patched:
        patched.setattr(loader, "_load_configuration_impl", None)
        found = loader.load_configuration("config", words, RunMode.RUN)
    assert found is asked
    assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
    assert loader.load_configuration("config", words, RunMode.RUN) is not asked  # once: it is the caller's from then on


@pytest.mark.parametrize("word", ["seed=1,2", "neuron=fixed,mine"])
def test_values_for_a_sweep_are_refused_in_a_single_run_that_was_asked_for_its_mode(own: str, word: str) -> None:
    loader = GlobalHydra.instance().config_loader()
    loader.load_configuration("config", [own, word], RunMode.MULTIRUN, validate_sweep_overrides=False)
    with pytest.raises(ConfigCompositionException, match="--multirun"):
        loader.load_configuration("config", [own, word, "hydra.mode=RUN"], RunMode.RUN)


def test_an_option_that_nobody_chose_is_missed_in_a_single_run(own: str, tmp_path: Path) -> None:
    (tmp_path / "experiment" / "open.yaml").write_text("defaults:\n  - override /neuron: ???\n")
    loader = GlobalHydra.instance().config_loader()
    typed = [own, "+experiment=open"]
    loader.load_configuration("config", typed, RunMode.MULTIRUN, validate_sweep_overrides=False)
    with pytest.raises(ConfigCompositionException, match="You must specify 'neuron'"):
        loader.load_configuration("config", [*typed, "hydra.mode=RUN"], RunMode.RUN)
