"""A run says nothing of a layer that wakes up by itself, speaks once of one that does not, and again if it falls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_words
from omegaconf import OmegaConf

from snnexp.analysis.causes import Cause, Verdict, waking
from snnexp.analysis.voice import is_over, spoken, tags, waiting
from snnexp.experiment import Experiment, assemble
from snnexp.tracking.runs import claim
from snnexp.tracking.store import OffTracker
from snnexp.training.display import Display
from snnexp.training.loop import fit
from snnexp.training.passes import train_pass
from snnexp.validation import validate

WORDS = (
    "tracking=off", "device=cpu", "trainer=smoke", "dataset.limit_train=32", "dataset.limit_val=16",
    "dataset.num_steps=6", "neuron.engine=reference", "encoder=direct", "model.spec=FC10-SN-FC-SN", "model.bias=true",
    "dataset.batch_size=32",
)  # fmt: skip


def past(*shares: float, state: str = "dead_fraction") -> dict[str, list[tuple[int, float]]]:
    """Of layer sn1, from epoch 0 on."""
    return {f"val/{state}/sn1": list(enumerate(shares)), **({} if "dead_f" in state else {"val/dead_fraction/sn1": []})}


@pytest.mark.parametrize(
    ("shares", "wakes"),
    [
        ((0.9, 0.8), True),  # a tenth of the layer less
        ((0.9, 0.81), False),
        ((1.0, 1.0), False),
        ((0.1, 0.6), True),  # it was well
        ((0.1, 0.95), False),  # hardly anything is left of it
        ((0.1, 0.6, 0.6), False),
        ((0.6,), False),  # nobody knows what was before
    ],
)
def test_who_may_come_back(shares: tuple[float, ...], wakes: bool) -> None:
    assert waking("sn1", "dead", past(*shares)) is wakes
    assert waking("sn1", "saturated", past(*shares, state="saturated_fraction")) is wakes
    assert waking("sn1", "gradient_dead", past(*shares, state="gradient_dead")) is wakes


def test_a_layer_in_another_bad_state_before_was_not_well() -> None:
    history = past(0.1, 0.6) | {"val/saturated_fraction/sn1": [(0, 0.9), (1, 0.0)]}
    assert not waking("sn1", "dead", history)


def test_what_gets_nothing_from_a_layer_that_waits_waits_with_it() -> None:
    layers, silent = ["sn1", "sn2", "sn3", "sn4"], Verdict(Cause.input_silent)
    causes = {"sn1": Verdict(Cause.inhibited), "sn2": silent, "sn3": silent, "sn4": Verdict(Cause.inhibited)}
    assert waiting(layers, causes, {"sn1"}) == {"sn1", "sn2", "sn3"}
    assert waiting(layers, causes, {"sn2"}) == {"sn2", "sn3"}
    assert waiting(layers, {"sn1": silent, "sn3": silent}, ()) == set()
    findings = [("input silent", "a"), ("sn1 dead", "b"), ("sn1 threshold below zero", "c"), ("sn4 dead", "d")]
    said = [("input silent", "a"), ("sn1 threshold below zero inhibited", "c"), ("sn4 dead inhibited", "d")]
    assert spoken(findings, causes, {"sn1"}) == said


def test_a_tag_ends_when_its_layer_is_well() -> None:
    claims: dict[str, str] = {}
    dead = {"sn1": Verdict(Cause.inhibited)}
    assert tags(claims, dead, {"sn1"}, 1) == {}
    assert tags(claims, dead, (), 2) == {"cause.sn1": "inhibited"}
    assert tags(claims, dead, {"sn1"}, 3) == {"cause.sn1": "inhibited"}
    assert tags(claims, {}, (), 4) == {"cause.sn1": "none since epoch 4"} == tags(claims, {}, (), 5)
    assert tags(claims, dead, (), 6) == {"cause.sn1": "inhibited"}
    assert is_over("sn1 dead inhibited", past(0.9, 0.4)) and not is_over("sn1 dead inhibited", past(0.9, 0.45))
    assert not is_over("input silent", {}) and not is_over("sn1 threshold below zero", past(0.0))


# --- in a run: so many of ten neurons are silenced after each epoch ---


class Heard(Display):
    """Keeps what is said of sn1, with the epoch."""

    def __init__(self) -> None:
        super().__init__(9, quiet=True)
        self.at, self.lines = 0, list[tuple[int, str]]()

    def finish_epoch(self, epoch: int, metrics: dict[str, float], improved: bool) -> None:
        self.at = epoch

    def say(self, text: str, hang: int = 2) -> None:
        if "! sn1" in text:
            self.lines.append((self.at, text))


class Kept(OffTracker):
    """Keeps the tag of sn1 over time."""

    seen: list[str]

    def log_tags(self, tags: dict[str, Any]) -> None:
        super().log_tags(tags)
        self.seen = [*getattr(self, "seen", []), *([tags["cause.sn1"]] if "cause.sn1" in tags else [])]


def silence(experiment: Experiment, count: int) -> None:
    """The first neurons of sn1 never fire, the others do at some steps; sn2 does not depend on them."""
    with torch.no_grad():
        for name, bias in (("fc1", torch.tensor([-5.0] * count + [0.4] * (10 - count))), ("fc2", torch.tensor(0.4))):
            experiment.network.get_parameter(f"{name}.weight").zero_()
            experiment.network.get_parameter(f"{name}.bias").copy_(bias)


def test_a_run_speaks_of_what_stays_and_of_what_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # well, falls (waits), wakes (waits), stays (said), comes back, falls at once (said), wakes, is well, the last epoch
    dead = (2, 7, 6, 6, 3, 10, 8, 5, 6)
    cfg = compose_words(*WORDS, f"trainer.max_epochs={len(dead) - 1}")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    plain.pop("claim")

    def run(where: str, stop: int | None = None) -> tuple[list[tuple[int, str]], list[str]]:
        folder, experiment, display = claim(plain, tmp_path / where), assemble(validate(cfg)), Heard()
        silence(experiment, dead[0])

        def planted(experiment: Experiment, optimizer: Any, epoch: int, *more: Any) -> Any:
            if epoch == stop:
                raise KeyboardInterrupt
            trained = train_pass(experiment, optimizer, epoch, *more)
            silence(experiment, dead[epoch])
            return trained

        monkeypatch.setattr("snnexp.training.loop.train_pass", planted)
        tracker = Kept(folder)
        try:
            fit(experiment, folder, tracker, display, plain)
        except KeyboardInterrupt:
            folder.finish("KILLED")
        return display.lines, tracker.seen

    lines, seen = run("whole")
    assert [epoch for epoch, _ in lines] == [3, 5]
    assert "60 % of its 10 neurons" in lines[0][1] and "100 %" in lines[1][1]
    assert len(seen) == 6 and seen[1] == "none since epoch 4" and seen[4] == "none since epoch 7"
    assert not any(seen[i].startswith("none") for i in (0, 2, 3, 5))
    run("cut", stop=7)
    lines, resumed = run("cut")  # in the last epoch it is said as it is: nothing has been on this terminal before
    assert [epoch for epoch, _ in lines] == [8]
    assert resumed == [seen[3], *seen[4:]]  # sent again with the start, since the record may have missed it
