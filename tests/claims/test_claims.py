"""Claims in files: each experiment has one that validates, arms do what they say, tables say what their source is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from snnexp.analysis.drawing import COLUMN, DPI
from snnexp.claims.arms import single_unless_trained
from snnexp.claims.checks import check_claim
from snnexp.claims.collect import read_results, runs_as_dicts, write_results
from snnexp.claims.conf import ClaimConf, CompareConf, CurveConf, ValueConf
from snnexp.claims.figure import _title, draw
from snnexp.claims.judge import Run
from snnexp.claims.page import draw_figures, page
from snnexp.claims.table import markdown
from snnexp.cli import conf_dir
from snnexp.config import Config, register_schemas
from snnexp.errors import ConfigError
from snnexp.validation import validate

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


def composed(*overrides: str) -> Config:
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return validate(compose("config", overrides=list(overrides)))


def claim_of(experiment: str) -> ClaimConf:
    """The claim as it stands in the file; that the whole file composes is tested in tests/test_configs.py."""
    text = OmegaConf.load(conf_dir() / "experiment" / f"{experiment}.yaml")
    claim = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ClaimConf), text.claim))
    assert isinstance(claim, ClaimConf)
    return claim


def sweep_of(experiment: str) -> dict[str, Any]:
    text = OmegaConf.load(conf_dir() / "experiment" / f"{experiment}.yaml")
    return dict(text.hydra.sweeper.params)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_holds_its_claim_and_its_sweep(experiment: str) -> None:
    claim = claim_of(experiment)
    assert list(check_claim(claim)) == []
    params = sweep_of(experiment)
    assert set(params["arm"].split(",")) <= set(claim.arms)
    assert list(params) == ["seed", "arm"]  # seeds outside: a sweep that is cut off has whole pairs


@pytest.mark.parametrize("experiment", ["plif_small", "neunorm_nmnist"])
def test_every_arm_is_a_legal_configuration_of_its_own(experiment: str) -> None:
    seen = []
    arms = claim_of(experiment).arms
    for arm in arms:
        conf = composed(f"+experiment={experiment}", f"arm={arm}")
        conf.arm = None
        seen.append(repr(conf))
    assert len(set(seen)) == len(arms)


def test_the_files_of_one_set_of_runs_agree() -> None:
    names = ("fig3", "fig4", "fig5", "fig6a", "epochs")
    files = [OmegaConf.load(conf_dir() / "experiment" / f"rouser_{name}.yaml") for name in names]
    assert all(file.claim.arms == files[0].claim.arms for file in files)
    for file in files:
        del file["claim"]
    assert all(file == files[0] for file in files)


def test_an_arm_sets_its_keys_and_what_was_typed_wins() -> None:
    conf = composed("+experiment=rouser_fig6b", "arm=fixed")
    assert conf.optimizer.lr_threshold == 0.0
    conf = composed("+experiment=rouser_fig6b", "arm=fixed", "optimizer.lr_threshold=0.5")
    assert conf.optimizer.lr_threshold == 0.5


def test_an_arm_may_choose_an_option() -> None:
    conf = composed("+experiment=stbp_encoding", "arm=rate_4", "seed=3")
    assert (conf.encoder.name, conf.dataset.num_steps, conf.seed, conf.arm) == ("rate", 4, 3, "rate_4")
    assert type(conf.encoder).__name__ == "RateEncoderConf"


def test_an_arm_that_chooses_an_option_keeps_the_seed() -> None:
    conf = composed("+experiment=four_neurons", "seed=2", "arm=ttfs")
    assert (conf.seed, conf.neuron.name, conf.recipe, conf.model.init) == (2, "ttfs", "common", "default")


def test_arms_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=r"arm=fixd.*Did you mean fixed"):
        composed("+experiment=rouser_fig6b", "arm=fixd")
    with pytest.raises(ConfigError, match="only an experiment with a claim has arms"):
        composed("arm=fixed")


def test_other_tasks_look_at_one_configuration() -> None:
    assert single_unless_trained(["+experiment=e"]) == ["+experiment=e"]
    assert single_unless_trained(["task=inspect", "+experiment=e"]) == [
        "task=inspect",
        "+experiment=e",
        "hydra.mode=RUN",
    ]
    assert single_unless_trained(["-m", "task=inspect"]) == ["-m", "task=inspect"]
    given = single_unless_trained(["task=reproduce", "+experiment=e", "seed=0,1"])
    assert given[2:] == ["++hydra.sweeper.params.seed='0,1'", "hydra.mode=RUN"]


def test_published_values() -> None:
    """A few numbers of each paper, as the tables of the papers have them."""
    expected = {
        "rouser_table1": {"fixed": 98.89, "learned": 99.21},
        "rouser_dvs128": {"fixed": 84.72, "learned": 86.46},
        "rouser_shd": {"fixed": None, "learned": 78.14},
        "rouser_fig2": {"theta_0.0": 78, "theta_0.25": 41, "theta_0.5": 82, "theta_0.75": 79, "theta_1.0": 96},
        "rouser_fig2_dvs128": {"theta_0.0": 68, "theta_0.25": 80, "theta_0.5": 78, "theta_0.75": 86, "theta_1.0": 82},
        "plif_mnist": {"plif_2": 99.72, "plif_16": 99.73, "lif_2": 99.69, "lif_16": 99.49, "plif_2_average": 99.71},
        "plif_fashion_mnist": {"plif_2": 94.38, "plif_16": 94.65, "lif_2": 94.17, "lif_16": 94.47},
        "plif_cifar10": {"plif_2": 93.50, "plif_16": 93.23, "lif_2": 93.03, "lif_16": 47.50},
        "plif_nmnist": {"plif_2": 99.61, "plif_16": 99.53, "lif_2": 99.64, "lif_16": 99.15},
        "plif_cifar10dvs": {"plif_2": 74.80, "plif_16": 70.50, "lif_2": 73.60, "lif_16": 62.40},
        "plif_dvs128": {"plif_2": 97.57, "plif_16": 92.01, "lif_2": 96.88, "lif_16": 76.74, "plif_2_average": 97.22},
        "ettfs_mnist": {"ettfs": 99.48},
        "ettfs_fashion_mnist": {"ettfs": 92.90},
        "ettfs_cifar10": {"ettfs": 90.56},
        "ettfs_dvs128": {"ettfs": 95.83},
        "ettfs_ablation": {"baseline": 89.61, "all": 92.90},
        "neunorm_cifar10": {"without": 89.83, "literal": 90.53},
    }
    for experiment, arms in expected.items():
        claim = claim_of(experiment)
        first: dict[str, float | None] = {}
        for value in claim.values:
            first.setdefault(value.arm, value.value)
        assert {arm: first[arm] for arm in arms} == arms, experiment


def test_values_from_memory_are_never_printed_as_published() -> None:
    for experiment in ("neunorm_nmnist", "neunorm_cifar10dvs"):
        claim = claim_of(experiment)
        [value] = [v for v in claim.values if v.arm == "without"]
        assert value.grade == "unverified"
        text = markdown({"command": "c", "changed": []}, claim, [])
        assert f"not verified: {value.value:g}" in text


def test_what_is_wrong_with_a_claim() -> None:
    claim = ClaimConf(paper="P", where="T", says="s", arms={"a": {}}, grade="sure")
    claim.values = [ValueConf(arm="b", value=1.0), ValueConf(arm="a", reading="epochs_to", said="-")]
    claim.curves = [CurveConf(arm="a", epochs=[1, 2], values=[1.0])]
    claim.compare = [CompareConf(better="a", than="c")]
    messages = "\n".join(check_claim(claim))
    for part in (
        "claim.grade",
        "claim.values.0.arm",
        "claim.values.1.level",
        "2 epochs, but 1 values",
        "compare.0.than",
    ):
        assert part in messages


def small() -> tuple[ClaimConf, list[Run]]:
    claim = ClaimConf(paper="Paper (arXiv:1)", where="Fig. 1", says="new wins", arms={"new": {}, "old": {}})
    claim.metric, claim.reading, claim.samples = "test_curve/accuracy", "epoch", 200
    claim.values = [ValueConf(arm="new", value=50.0), ValueConf(arm="old", said="did not converge")]
    claim.curves = [CurveConf(arm="new", epochs=[1, 2], values=[40.0, 50.0])]
    claim.compare = [CompareConf(better="new", than="old")]
    curve = {"test_curve/accuracy": [[0, 0.1], [1, 0.4], [2, 0.5]]}
    runs = [
        Run(arm, seed, f"snnexp arm={arm}", "abcdef0123456", False, {"train": 200, "test": 10}, True, 2, 3.0, {}, curve)
        for seed in (0, 1, 2)
        for arm in ("new", "old")
    ]
    return claim, runs


def test_tables_say_where_numbers_come_from(tmp_path: Path) -> None:
    claim, runs = small()
    content = {
        "experiment": "e",
        "command": "snnexp task=reproduce +experiment=e",
        "changed": [],
        "claim": OmegaConf.to_container(OmegaConf.structured(claim)),
        "runs": runs_as_dicts(runs),
    }
    write_results(tmp_path / "results" / "e.json", content)
    assert json.loads((tmp_path / "results" / "e.json").read_text()) == content
    read, again, read_runs = read_results(tmp_path / "results" / "e.json")
    assert (again, read_runs) == (claim, runs)
    text = markdown(read, again, read_runs)
    row = next(line for line in text.splitlines() if line.startswith("| new |"))
    assert "| 50 | 50.00 ± 0.00 | +0.00 | 3 | 200 | 2 | 3 s | reproduced" in row
    for part in ("`snnexp task=reproduce +experiment=e`; 6 of 6 runs", "commit: abcdef0123", "did not converge"):
        assert part in text
    whole = page(tmp_path / "results")
    assert "1 claims, 3 rows, 6 runs." in whole
    assert "[e](#e)" in whole


def test_the_figure_has_published_and_ours(tmp_path: Path) -> None:
    claim, runs = small()
    paths = draw(tmp_path / "e", claim, runs)
    assert [path.name for path in paths] == ["e.png", "e.pdf"]
    assert all(path.stat().st_size > 1000 for path in paths)
    claim.curves, claim.reading = [], "end"
    assert draw(tmp_path / "dots", claim, runs)[0].is_file()
    for name in ("e", "dots"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width == round(COLUMN * DPI)  # a paper's column, whatever the claim


def test_figures_are_drawn_anew_from_the_files_alone(tmp_path: Path) -> None:
    claim, runs = small()
    content = {"claim": OmegaConf.to_container(OmegaConf.structured(claim)), "runs": runs_as_dicts(runs)}
    write_results(tmp_path / "e.json", content)
    write_results(tmp_path / "none.json", {**content, "runs": []})
    first = {path.name: path.read_bytes() for path in draw_figures(tmp_path)}
    assert set(first) == {"e.png", "e.pdf"}  # a claim without runs has no figure
    assert {path.name: path.read_bytes() for path in draw_figures(tmp_path)} == first  # a diff shows what has changed


def test_a_title_says_data_neuron_seeds_and_samples() -> None:
    claim, runs = small()
    facts = {"dataset": "nmnist", "neuron": "rouser"}
    title = _title(claim, [replace(run, facts=facts) for run in runs]).replace("\xa0", " ")
    assert title.startswith(f"{claim.paper}, {claim.where}: nmnist, rouser, n = ") and title.endswith("seeds 0 1 2")
    both = [replace(run, facts={"dataset": "nmnist", "neuron": run.arm}) for run in runs]
    assert ": nmnist, n = " in _title(claim, both)  # the neurons are the arms, which the legend has


RESULTS = conf_dir().parent / "results"


def test_the_page_is_made_from_the_files_and_nothing_is_typed_by_hand() -> None:
    text = page(RESULTS)
    assert (conf_dir().parent / "docs" / "results.md").read_text(encoding="utf-8") == text  # else: make results
    rows = [line for line in text.splitlines() if (line.startswith("| ") and "test" in line) or "val/" in line]
    assert len(rows) >= 40


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_number_can_be_traced(path: Path) -> None:
    content, claim, runs = read_results(path)
    assert content["experiment"] in EXPERIMENTS
    assert runs and not any(run.dirty for run in runs)
    assert path.with_suffix(".png").is_file() and path.with_suffix(".pdf").is_file()  # else: make results
    for run in runs:
        assert len(run.commit) == 40 and run.command.startswith(f"snnexp +experiment={content['experiment']} ")
        assert run.arm in claim.arms and run.samples["train"] > 0
        assert run.facts["data_fingerprint"] and run.facts["device"]
