"""Several processes train the network that one would: the same weights and the same numbers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from composing import compose_words
from omegaconf import OmegaConf
from together import on_ranks

from snnexp import collectives, interrupts, ranks
from snnexp.analysis.activity import ActivityMeter
from snnexp.config import Config
from snnexp.errors import ConfigError
from snnexp.experiment import assemble
from snnexp.rescue.manager import Rescue
from snnexp.tracking.follower import SilentTracker, claimed_by_first
from snnexp.tracking.runs import claim
from snnexp.tracking.store import OffTracker
from snnexp.training.display import Display
from snnexp.training.loop import fit
from snnexp.training.optimisation import build_optimizer
from snnexp.training.outcome import test as run_test
from snnexp.training.passes import evaluation_pass, train_pass
from snnexp.validation import validate

SMALL = ("device=cpu", "tracking=off", "dataset.batch_size=32", "dataset.limit_train=290", "dataset.limit_val=40",
         "dataset.limit_test=40", "dataset.num_steps=4", "neuron.threshold=0.5", "optimizer=sgd",
         "optimizer.lr=0.1")  # fmt: skip
# ten batches, the last of two samples: of three processes one has none
CONV = "model.spec=c4k3-BN-SN-MP2-FC20-SN-FC-SN"

CASES = {
    "conv_bn": (CONV,),
    "plif_dropout": ("neuron=plif", "model.spec=c4k3-BN-SN-DP0.3-FC20-SN-DPT0.2-FC-SN", "encoder=rate"),
    "fire_once": ("neuron=ttfs", "model.spec=FC20-BN-SN-FC-SN", "encoder=latency"),
    "lists": ("dataset=randman", "dataset.sparse=always", "model.spec=FC20-SN-FC-SN", "neuron=rouser"),
    "recurrent": ("dataset=randman", "model.spec=RFC20-SN-FC-SN", "trainer.checkpoint_steps=3"),
}  # fmt: skip
MORE = {
    "checkpoint_steps": (CONV, "encoder=rate", "model.bn_per_step=true", "trainer.checkpoint_steps=2"),
    "per_step": (CONV, "encoder=rate", "model.bn_per_step=true", "trainer.grad_clip=0.5"),
    "bf16": (CONV, "trainer.precision=bf16", "trainer.smoke_steps=1"),
    "ltmd": ("neuron=ltmd", "model.spec=c4k3-BN-SN-DPM0.3-FC20-SN-FC-SN", "decoder.agreement=0.5"),
    "noise": ("model.spec=FC20-SN-FC-SN", "neuron.noise=0.2", "dataset.augment.shift=1"),
    "homeostasis": (CONV, "rescue=homeostasis"),
    "bounds": (CONV, "rescue=bounds", "decoder.synops=2000", "decoder.synops_weight=0.01", "optimizer.lr=0.01"),
    "residual": ("model.spec='c4k3-BN-SN-+(c4k3-BN-SN-c4k3-BN)-SN-FC-SN'",),
    "augmented_events": ("dataset=randman", "dataset.augment.drop_events=0.1", "dataset.augment.jitter_ms=1"),
}


def numbers(conf: Config, epochs: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights and metrics after a few passes."""
    experiment = assemble(conf)
    network = experiment.network
    optimizer = build_optimizer(conf.optimizer, network.parameter_groups())
    rescue = Rescue.of(experiment, optimizer)
    rescue.start()
    metrics: dict[str, Any] = {}
    for epoch in range(1, epochs + 1):
        for split in ("train", "val"):
            meter = ActivityMeter(network, 0.01)
            if split == "train":
                result = train_pass(experiment, optimizer, epoch, meter, rescue=rescue)
            else:
                result = evaluation_pass(experiment, split, meter, epoch)
            metrics |= {f"{k} {epoch}": v for k, v in (result.metrics(split) | meter.metrics(split)).items()}
    outcome = run_test(experiment, Display(1, quiet=True), epochs)
    assert outcome.synops.dense > 0
    return {name: t.clone() for name, t in network.state_dict().items()}, metrics | outcome.metrics


def same(one: Any, several: list[Any], tolerance: float) -> None:
    for weights, metrics in several:
        for name, now in weights.items():
            assert torch.allclose(now, one[0][name], rtol=tolerance, atol=tolerance), name
        if tolerance < 1e-3:  # in bf16 the gradients have three digits; afterwards spikes differ
            assert metrics == pytest.approx(one[1], rel=1e-4, abs=1e-6, nan_ok=True)
    for weights, metrics in several[1:]:
        assert all(torch.equal(t, several[0][0][n]) for n, t in weights.items())
        assert metrics == pytest.approx(several[0][1], rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize(
    "case",
    [case if case in ("conv_bn", "lists") else pytest.param(case, marks=pytest.mark.slow) for case in CASES | MORE],
)
def test_several_processes_train_the_network_that_one_would(case: str, tmp_path: Path) -> None:
    conf = validate(compose_words(*SMALL, *(CASES | MORE)[case]))
    one = numbers(conf)
    for size in (2, 3):
        same(one, on_ranks(size, tmp_path / str(size), numbers, conf), 2e-3 if case == "bf16" else 1e-6)


def cut_off(conf: Config, plain: dict[str, Any], folder: Path, at: int | None) -> dict[str, torch.Tensor]:
    """Train; `at`: as if a signal came while that batch of the second epoch was under way."""
    held = claimed_by_first(lambda: claim(plain, folder))
    experiment, batches = assemble(conf), 0

    def counted(*_: Any) -> None:
        nonlocal batches
        batches += experiment.network.training
        if batches == at and ranks.leads():
            os.kill(os.getpid(), signal.SIGTERM)

    experiment.network.register_forward_pre_hook(counted)
    tracker = OffTracker(held) if ranks.leads() else SilentTracker()
    interrupts.reset()
    interrupts.install()
    fit(experiment, held, tracker, Display(2, quiet=True), plain)
    return dict(experiment.network.state_dict())


@pytest.mark.slow
def test_what_was_saved_within_an_epoch_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    cfg = compose_words(*SMALL, CONV, "trainer.max_epochs=2", "trainer.checkpoint_minutes=100", "encoder=rate")
    conf, plain = validate(cfg), cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    whole = on_ranks(2, tmp_path / "a", cut_off, conf, plain, tmp_path / "whole", None)
    cut = on_ranks(2, tmp_path / "b", cut_off, conf, plain, tmp_path / "cut", 15)
    assert all(isinstance(ended, KeyboardInterrupt) for ended in cut), cut
    assert [path.name for path in (tmp_path / "cut").rglob("midway.pt")]
    again = on_ranks(2, tmp_path / "c", cut_off, conf, plain, tmp_path / "cut", None)
    for weights in again:
        assert all(torch.equal(now, whole[0][name]) for name, now in weights.items())


def test_a_process_that_fails_ends_all_with_its_exit_code(tmp_path: Path) -> None:
    def work() -> None:
        rank = cast(ranks.World, ranks.world()).rank
        if rank == 1:
            raise ConfigError("no good")
        ranks.from_first(lambda: collectives.add_up(torch.ones(1)) if rank == 0 else None)

    first, second = on_ranks(2, tmp_path, work)
    assert isinstance(second, ConfigError) and isinstance(first, ranks.EndedElsewhere) and first.exit_code == 2


def test_rows_are_shared_out_and_nobody_is_left_out() -> None:
    for total, size in ((7, 3), (2, 3), (64, 4)):
        shares = []
        for rank in range(size):
            ranks._world = ranks.World(rank, size)
            try:
                shares.append(cast(ranks.Rows, ranks.rows_of(total)))
            finally:
                ranks._world = None
        taken = [row for rows in shares for row in range(rows.start, rows.stop)]
        assert taken == list(range(total)) and not shares[0].absent
        assert [rows.absent for rows in shares] == [count == 0 for count in shares[0].counts]
