"""What is said before training: a batch of one with batch norm, too little memory; and errors of memory in words."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose_words

from snnexp.analysis.activity import ActivityMeter
from snnexp.config import Config
from snnexp.errors import ConfigError, TrainingError
from snnexp.experiment import Experiment, assemble
from snnexp.tasks.out_of_memory import is_out_of_memory, memory_errors_in_words
from snnexp.training.foresight import available_bytes, check_training, has_room_beside, memory, small_batch, step_bytes
from snnexp.training.optimisation import build_optimizer
from snnexp.training.passes import train_pass
from snnexp.validation import validate


def assembled(*overrides: str) -> Experiment:
    cfg = compose_words("device=cpu", "dataset.num_steps=4", "tracking=off", *overrides)
    return assemble(validate(cfg))


def one_epoch(experiment: Experiment) -> None:
    network = experiment.network
    optimizer = build_optimizer(experiment.conf.optimizer, network.parameter_groups())
    train_pass(experiment, optimizer, 1, ActivityMeter(network))


PER_STEP = ("model.spec=FC8-SN-FC8-BN-SN-FC-SN", "model.bn_per_step=true")
CONSTANT = ("model.spec=FC8-BN-SN-FC-SN",)  # the same image at each step: normalised once


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        ((*PER_STEP, "dataset.limit_train=43"), True),
        pytest.param((*PER_STEP, "dataset.limit_train=43", "dataset.batch_size=1"), True, marks=pytest.mark.slow),
        ((*PER_STEP, "dataset.limit_train=43", "trainer.smoke_steps=2"), False),  # the last batch is never reached
        ((*PER_STEP, "dataset.limit_train=44"), False),
        ((*CONSTANT, "dataset.limit_train=43"), True),
        ((*CONSTANT, "dataset.limit_train=43", "encoder=rate"), False),
        pytest.param(
            (*CONSTANT, "dataset.limit_train=43", "encoder=rate", "dataset.num_steps=1"), True, marks=pytest.mark.slow
        ),
        (("model.spec=c4k3-BN-SN-FC-SN", "dataset.limit_train=43", "model.bn_per_step=true"), False),
        (("model.spec=FC8-LN-SN-FC-SN", "dataset.limit_train=43"), False),
    ],
)
def test_a_batch_of_one_is_named_if_batch_norm_cannot_take_it(overrides: tuple[str, ...], refused: bool) -> None:
    small = ("dataset.batch_size=21",) if not any("batch_size" in word for word in overrides) else ()
    experiment = assembled(*overrides, *small)
    problem = small_batch(experiment)
    assert (problem is not None) == refused
    if problem is None:
        one_epoch(experiment)
        return
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # what it would have come to
        one_epoch(experiment)
    ways = [word for word in problem.split("Use ")[1].replace(",", " ").split() if "=" in word]
    assert ways and any(word.startswith("dataset.batch_size") for word in ways)
    for word in ways:
        one_epoch(assembled(*overrides, *small, word.rstrip(".")))


def test_too_little_memory_is_foreseen_and_the_advice_fits() -> None:
    job = ("model.spec=FC256-SN-FC-SN", "dataset.batch_size=256", "dataset.num_steps=64")
    experiment = assembled(*job)
    needed = step_bytes(experiment, 256)
    assert memory(experiment, 2 * needed) == [] and memory(experiment, None) == []
    [problem] = memory(experiment, needed // 3)
    assert problem.startswith("dataset.batch_size=256: a training step needs about ")
    ways = [word for word in problem.split() if word.startswith(("dataset.batch_size=", "trainer.checkpoint"))][1:]
    assert [way.partition("=")[0] for way in ways] == ["dataset.batch_size", "trainer.checkpoint_steps"]
    for way in ways:
        assert memory(assembled(*job, way), needed // 3) == []


def test_a_close_estimate_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    experiment = assembled()
    with caplog.at_level(logging.WARNING):
        assert memory(experiment, step_bytes(experiment, 32)) == []
    assert "a training step needs about" in caplog.text


def test_what_is_available_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    there = available_bytes(torch.device("cpu"))
    assert there is None or there > 0
    experiment = assembled()
    check_training(experiment)
    for available, room in ((4 * step_bytes(experiment, 32), True), (4 * step_bytes(experiment, 32) - 1, False)):
        monkeypatch.setattr("snnexp.training.foresight.available_bytes", lambda _, bytes=available: bytes)
        assert has_room_beside(experiment) == room
    monkeypatch.setattr("snnexp.training.foresight.available_bytes", lambda _: 1000)
    with pytest.raises(ConfigError, match="and 1000 B of memory are available on cpu"):
        check_training(experiment)


def _torch_cpu() -> Any:
    return torch.empty(1 << 60, dtype=torch.uint8)


def _numpy() -> Any:
    return np.ones(1 << 60, dtype=np.uint8)


def _cuda() -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")


def _system() -> Any:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize("fail", [_torch_cpu, _numpy, _cuda, _system])
def test_an_error_of_memory_says_what_to_lower(fail: Any) -> None:
    conf = Config()
    with pytest.raises(TrainingError) as error, memory_errors_in_words(conf):
        fail()
    message = str(error.value)
    where = "on the GPU: could not allocate 2.00 GiB" if fail is _cuda else "in main memory"
    assert message.startswith(f"out of memory {where}")
    for word in ("dataset.batch_size (now 32)", "dataset.num_steps (now 10)", "trainer.checkpoint_steps"):
        assert word in message
    assert error.value.__context__.__traceback__ is None  # no frame holds what filled the memory


@pytest.mark.parametrize(
    ("folder", "limit", "used", "prefix"),
    [
        (".", "memory.max", "memory.current", ""),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_files_in_memory_do_not_count_as_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, limit: str, used: str, prefix: str
) -> None:
    monkeypatch.setattr("snnexp.machine.CGROUP", tmp_path)
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    for name, text in (
        (limit, "1000\n"),
        (used, "900\n"),
        ("memory.stat", f"anon 200\nfile 700\n{prefix}active_file 600\n{prefix}inactive_file 50\n"),
    ):
        (group / name).write_text(text)
    assert available_bytes(torch.device("cpu")) == 750
    (group / limit).write_text("max\n")
    assert (available_bytes(torch.device("cpu")) or 1 << 40) > 1000


def test_other_errors_stay_what_they_are() -> None:
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied")) and not is_out_of_memory(OSError(2, "x"))
    with pytest.raises(ZeroDivisionError), memory_errors_in_words(Config()):
        _ = 1 / 0
    with pytest.raises(ConfigError, match="out of memory"), memory_errors_in_words(Config()):
        raise ConfigError("out of memory, says a user's own message")
