"""What stands under a table of means: paired differences over seeds, and what else differed."""

from __future__ import annotations

from typing import Any

import pytest

from snnexp.analysis.comparison import also_differs, paired
from snnexp.analysis.seeds import Group, Result, group_runs


def results(neuron: str, tests: list[float], **params: str) -> list[Result]:
    shared = {"neuron": neuron, "neuron.name": neuron, "neuron.beta": "0.9" if neuron == "fixed" else "0.5"}
    return [
        Result(f"{neuron}{seed}", {**shared, **params, "seed": str(seed)}, test, None)
        for seed, test in enumerate(tests)
    ]


def groups(*sets: list[Result]) -> list[Group]:
    return group_runs([result for found in sets for result in found])


def test_differences_are_paired_over_seeds() -> None:
    # seeds differ by 0.3, the neurons by 0.01, 0.02 and 0.03: mean 0.02, 4.303 * 0.01 / sqrt(3) = 0.0248
    [line] = paired(groups(results("plif", [0.51, 0.82, 0.93]), results("fixed", [0.5, 0.8, 0.9])))
    assert line == ("plif - fixed: +0.0200 (95 % interval -0.0048 to +0.0448), paired, n = 3 seeds: no difference seen")
    [line] = paired(groups(results("plif", [0.6, 0.71, 0.8]), results("fixed", [0.5, 0.6, 0.7])))
    assert line.endswith("n = 3 seeds: differs")


@pytest.mark.parametrize(("n", "words"), [(1, "n = 1 seed: too few to tell"), (2, "n = 2 seeds: too few to tell")])
def test_too_few_seeds(n: int, words: str) -> None:
    [line] = paired(groups(results("plif", [0.9, 0.91][:n]), results("fixed", [0.5, 0.5][:n])))
    assert line.endswith(words)


def test_what_else_differed_is_named() -> None:
    lines = also_differs(
        groups(
            results("plif", [0.9], **{"decoder": "rate", "decoder.loss": "mse", "model.init": "default"}),
            results("fixed", [0.5], **{"decoder": "rate", "decoder.loss": "cross_entropy", "model.init": "default"}),
        )
    )
    assert lines == [
        "The neurons differ in 1 keys of their equation (beta).",
        "What else differed: decoder.loss mse|cross_entropy. recipe=common makes these alike.",
    ]
    lines = also_differs(groups(results("plif", [0.9]), results("fixed", [0.5])))
    assert lines[1] == "Nothing else differed between these settings."
    assert also_differs(groups(results("plif", [0.9]))) == []


def test_recipe_common_leaves_the_neuron_alone_to_differ() -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from snnexp.cli import conf_dir
    from snnexp.config import register_schemas
    from snnexp.tracking.identity import identity_config

    register_schemas()
    found: dict[str, Any] = {}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for neuron in ("fixed", "rouser", "plif", "ttfs", "ltmd", "dietsnn"):
            cfg = compose("config", overrides=[f"neuron={neuron}", "recipe=common"])
            values: Any = OmegaConf.to_container(cfg, resolve=True)
            found[neuron] = {key: value for key, value in identity_config(values).items() if key != "neuron"}
    assert all(values == found["fixed"] for values in found.values())
