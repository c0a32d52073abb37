"""trainer.checkpoint_minutes: a run that was cut off within an epoch goes on at the next batch and ends bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import compose_words
from omegaconf import OmegaConf

from snnexp import interrupts
from snnexp.errors import DataError
from snnexp.experiment import assemble
from snnexp.models import sparsity
from snnexp.tracking.identity import run_identity
from snnexp.tracking.runs import claim
from snnexp.tracking.store import OffTracker
from snnexp.training import midway
from snnexp.training.checkpoint import load_state, load_weights
from snnexp.training.display import Display
from snnexp.training.loop import fit
from snnexp.validation import validate

SMALL = (
    "device=cpu",
    "dataset.limit_train=100",
    "dataset.limit_val=40",
    "dataset.limit_test=20",
    "dataset.batch_size=24",
    "dataset.num_steps=4",
    "trainer.max_epochs=3",
    "trainer.checkpoint_minutes=600",
)
BATCHES = 5
JOBS = {
    "all that is drawn": (
        "neuron=rouser",
        "encoder=rate",
        "scheduler=cosine",
        "model.spec=FC16-SN-DP0.2-DL3-FC-SN",
        "dataset.augment.shift=1",
    ),
    "conv-BN": (
        "model.spec=c8k3-BN-SN-AP2-DPT0.1-FC-SN",
        "optimizer=sgd",
        "optimizer.lr=0.05",
        "optimizer.momentum=0.9",
    ),
    "events": ("dataset=randman", "model.spec=RFC16-SN-FC-SN", "neuron=plif", "dataset.augment.jitter_ms=1"),
    "plateau, budget": (
        "scheduler=ReduceLROnPlateau",
        "scheduler.kwargs={patience:0,threshold:0.5}",
        "model.spec=FC16-SN-FC8-SN-FC-SN",
        "decoder.synops=50",
        "trainer.weight_change=true",
    ),
    "homeostasis": (
        "rescue=homeostasis",
        "neuron.threshold=3",
        "model.spec=FC16-SN-FC-SN",
        "trainer.checkpoint_steps=2",
    ),
    "diagnosed": ("rescue=resample", "rescue.when=diagnosed", "neuron.threshold=4", "model.spec=FC16-SN-FC-SN"),
    "fire once, noise": ("neuron=ttfs", "neuron.noise=0.1", "model.spec=FC16-SN-FC-SN"),
}


class Cut(Exception):
    """Stands for kill -9."""


def composed(*words: str) -> tuple[Any, dict[str, Any]]:
    cfg = compose_words(*SMALL, *words)
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return validate(cfg), plain


def attempt(where: Path, words: tuple[str, ...], cut: tuple[int, int] | None = None) -> Any:
    """Train; at `cut`, an epoch and a batch, save and die. Returns the state of training, or None."""
    conf, plain = composed(*words)
    folder, experiment = claim(plain, where), assemble(conf)
    interrupts.release()
    with pytest.MonkeyPatch.context() as patch:
        if cut is not None:
            seen: dict[str, Any] = {}
            take_up, save = midway.Midway.take_up, midway.Midway.save

            def taken(self: Any, now: int, parts: Any) -> Any:
                seen.update(epoch=now, parts=parts)
                return take_up(self, now, parts)

            def saved(self: Any, *more: Any) -> None:
                save(self, *more)
                raise Cut

            patch.setattr(midway.Midway, "take_up", taken)
            patch.setattr(midway.Midway, "save", saved)
            patch.setattr(midway.Midway, "wanted", lambda _: (seen["epoch"], seen["parts"].tally.batches) == cut)
        try:
            return fit(experiment, folder, OffTracker(folder), Display(3, quiet=True), plain)
        except Cut:
            return None
        finally:
            folder.finish("KILLED")


def left(where: Path) -> dict[str, Any]:
    """What a run leaves: weights, training state, and every line of its metrics but for times."""
    (folder,) = (path.parent for path in where.glob("*/*/run.json"))
    assert not (folder / "midway.pt").exists()
    best, _, facts = load_weights(folder / "best.safetensors")
    state = load_state(folder / "state.pt")
    fit_state = state["fit"]
    history = {key: points for key, points in fit_state.pop("history").items() if not key.startswith("time/")}
    del fit_state["seconds"], state["uid"]
    return {
        "best": best,
        "last": load_weights(folder / "last.safetensors")[0],
        "state": state,
        "history": history,
        **facts,
    }


def same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{number}]")
    else:
        assert a == b or (a != a and b != b), where


CUTS = [("all that is drawn", [(2, 2), (2, 4), (3, BATCHES)])]
CUTS += [(name, [(2, 3)]) for name in ("conv-BN", "events", "plateau, budget", "homeostasis")]
LESS = [("all that is drawn", [(1, 1)]), ("diagnosed", [(2, 3)]), ("fire once, noise", [(2, 3)])]


@pytest.mark.parametrize(("name", "cuts"), [*CUTS, *(pytest.param(*each, marks=pytest.mark.slow) for each in LESS)])
def test_a_run_that_was_cut_off_within_an_epoch_ends_with_the_same_bits(
    tmp_path: Path, name: str, cuts: list[tuple[int, int]]
) -> None:
    assert attempt(tmp_path / "whole", JOBS[name]) is not None
    for cut in cuts:
        assert attempt(tmp_path / "cut", JOBS[name], cut) is None
    assert attempt(tmp_path / "cut", JOBS[name]) is not None
    same(left(tmp_path / "whole"), left(tmp_path / "cut"))


def test_it_is_no_part_of_the_identity() -> None:
    assert run_identity(composed()[1]) == run_identity(composed("trainer.checkpoint_minutes=null")[1])


@pytest.mark.parametrize("harm", ["flipped", "another epoch", "another version"])
def test_a_state_that_cannot_be_used_costs_time_only(tmp_path: Path, harm: str) -> None:
    """Damaged, or of an epoch that is finished: the epoch is done again. Parts that are missing: the user is told."""
    words = JOBS["homeostasis"]
    attempt(tmp_path / "whole", words)
    attempt(tmp_path / "cut", words, (2, 2))
    (path,) = tmp_path.glob("cut/*/*/midway.pt")
    if harm == "flipped":
        data = bytearray(path.read_bytes())
        data[3000] ^= 1
        path.write_bytes(data)
    else:
        state = load_state(path)
        more = {"epoch": 1} if harm == "another epoch" else {"tally": {"batches": 2}}
        midway.save_state(path, {**state, **more})
    if harm == "another version":
        with pytest.raises(DataError, match=r"midway\.pt does not fit this version.*Delete it: epoch 2 is"):
            attempt(tmp_path / "cut", words)
        path.unlink()
    attempt(tmp_path / "cut", words)
    same(left(tmp_path / "whole"), left(tmp_path / "cut"))


@pytest.mark.parametrize("cut", [(1, 2), (2, 3)])
def test_what_was_measured_for_a_convolution_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: tuple[int, int]
) -> None:
    monkeypatch.setattr(sparsity, "LEAST_WORK", 0)
    measured = iter([(1.0, 1.5), (1.0, 1.5), (0.0, 0.0)])  # whole, cut, and what would be wrong
    monkeypatch.setattr(sparsity, "limits_of", lambda _: sparsity.Limits(*next(measured)))
    words = ("model.spec=c8k3-SN-FC-SN", "neuron.threshold=0.3")
    attempt(tmp_path / "whole", words)
    attempt(tmp_path / "cut", words, cut)
    attempt(tmp_path / "cut", words)
    same(left(tmp_path / "whole"), left(tmp_path / "cut"))
    assert next(measured) == (0.0, 0.0)


def test_a_signal_waits_for_the_end_of_the_batch_and_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = JOBS["homeostasis"]
    attempt(tmp_path / "whole", words)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interrupts.reset()
    interrupts.install()
    step = torch.optim.Adam.step

    def stepped(self: Any, *more: Any) -> Any:
        if not interrupts.waits():
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *more)

    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(torch.optim.Adam, "step", stepped)
            attempt(tmp_path / "cut", words)
        assert interrupts.kept() == "the end of batch 1 of epoch 1"
    finally:
        interrupts.reset()
        signal.signal(signal.SIGTERM, before)
    attempt(tmp_path / "cut", words)
    same(left(tmp_path / "whole"), left(tmp_path / "cut"))
