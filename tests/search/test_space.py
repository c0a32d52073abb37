"""Hydra's words for sweeps as dimensions, and values back as words."""

from __future__ import annotations

import pytest
from hydra.core.global_hydra import GlobalHydra

from snnexp.errors import ConfigError
from snnexp.search.space import Numbers, Space, Texts, parse_space


def space(*words: str, **params: str) -> Space:
    return parse_space(words, params, GlobalHydra.instance().config_loader())


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.lr=interval(0.1, 1)", Numbers(0.1, 1.0)),
        ("optimizer.lr=tag(log, interval(1e-4, 1e-1))", Numbers(1e-4, 1e-1, log=True)),
        ("optimizer.lr=range(0.1, 0.5, 0.1)", Numbers(0.1, 0.4, values=(0.1, 0.2, 0.3, 0.4))),
        # an int key takes no fractions; int(...) says so for any other
        ("trainer.max_epochs=interval(1, 9)", Numbers(1, 9, whole=True)),
        ("trainer.patience=interval(1.5, 9.5)", Numbers(2, 9, whole=True)),
        ("optimizer.lr=int(interval(1, 9))", Numbers(1, 9, whole=True)),
        ("trainer.max_epochs=range(1, 8, 3)", Numbers(1, 7, whole=True, values=(1, 4, 7))),
        ("trainer.max_epochs=range(9, 3, -3)", Numbers(6, 9, whole=True, values=(6, 9))),
        ("trainer.max_epochs=tag(log, range(1, 4))", Numbers(1, 3, log=True, whole=True, values=(1, 2, 3))),
        ("neuron=fixed,plif", Texts(("fixed", "plif"))),
        ("neuron=choice(fixed, plif, fixed)", Texts(("fixed", "plif"))),
        ("model.spec=FC8-SN-FC-SN,FC16-SN-FC-SN", Texts(("FC8-SN-FC-SN", "FC16-SN-FC-SN"))),
        ("optimizer.betas=[0.9,0.9],[0.8,0.9]", Texts(("[0.9,0.9]", "[0.8,0.9]"))),
        ("tracking.run_name=1e5,off", Texts(("1e5", "off"))),
    ],
)
def test_words(hydra: None, word: str, expected: Numbers | Texts) -> None:
    [dimension] = space(word).dimensions.values()
    assert dimension == expected


def test_glob_asks_for_all_options(hydra: None) -> None:
    [dimension] = space("scheduler=glob(*)").dimensions.values()
    assert isinstance(dimension, Texts) and {"none", "cosine", "step"} <= set(dimension.texts)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optimizer.lr=interval(1, 0.1)", "smaller one"),
        ("optimizer.lr=tag(log, interval(0, 1))", "Start above 0"),
        ("optimizer.lr=tag(log, range(0.1, 0.9, 0.1))", "log goes with"),
        ("optimizer.lr=tag(ln, interval(0.1, 1))", "the one tag is log"),
        ("neuron=tag(log, choice(fixed, plif))", "not for a choice"),
        ("trainer.max_epochs=range(5, 5)", "no number"),
    ],
)
def test_what_is_no_space(hydra: None, word: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        space(word)
    assert says in str(error.value)


def test_typed_words_win_over_a_files_parameters(hydra: None) -> None:
    made = space(
        "neuron.beta=0.9", "+experiment=x", **{"neuron.beta": "interval(0,1)", "optimizer.lr": "interval(0,1)"}
    )
    assert list(made.dimensions) == ["optimizer.lr"]
    assert made.overrides({"optimizer.lr": 1 / 3}) == [
        "neuron.beta=0.9",
        f"optimizer.lr={1 / 3!r}",
        "+experiment=x",
    ]


def test_numbers_come_back_to_the_last_bit(hydra: None) -> None:
    made = space("optimizer.lr=interval(0,1)", "neuron.beta=range(0.1,0.9,0.1)", "trainer.max_epochs=interval(1,9)")
    for value in (1e-5, 0.1 + 0.2, 5e-324, 1 / 3):
        assert float(made.text("optimizer.lr", value)) == value
    assert made.text("neuron.beta", 0.1 + 2 * 0.1) == "0.3"
    assert made.text("trainer.max_epochs", 3) == "3"


def test_a_step_that_binary_has_not_is_even_for_optuna(hydra: None) -> None:
    [distribution] = space("neuron.beta=range(0.1,0.9,0.1)").distributions().values()
    assert (distribution.low, distribution.high, distribution.step) == (0.1, 0.8, 0.1)  # type: ignore[attr-defined]
