"""Encoders, optimizers, schedulers and callbacks: torch's by name, and a user's own."""

from typing import Any

import pytest
import torch
from composing import compose_words

from snnexp.config import Config, OptimizerConf, SchedulerConf
from snnexp.errors import ConfigError
from snnexp.registry import OPTIMIZERS, SCHEDULERS
from snnexp.tasks.train import train
from snnexp.training.callbacks import Callbacks
from snnexp.training.optimisation import advance, build_optimizer, build_scheduler
from snnexp.validation import validate

MINE = """
import torch

SEEN = []


def two_levels(x, num_steps, low=0.2):
    return torch.stack([(x > low) if t % 2 else (x > 0.6) for t in range(num_steps)])


def too_few(x, num_steps):
    return x


class Watch:
    def __init__(self):
        self.best = []

    def on_start(self, context):
        SEEN.append(("start", context.epoch, list(self.best)))

    def on_epoch(self, context):
        self.best.append(context.epoch)
        context.metrics["mine/epochs"] = len(self.best)
        context.stop = context.epoch == 3

    def on_end(self, context):
        SEEN.append(("end", context.epoch, list(self.best)))

    def state_dict(self):
        return {"best": self.best}

    def load_state_dict(self, state):
        self.best = state["best"]


class Fails(Watch):
    def on_epoch(self, context):
        context.metrics["mine/x"] = context.nothing


class Wrong:
    def on_epoch(self):
        pass


class Half:
    def __init__(self, groups, lr):
        pass


def halving(optimizer, factor):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: factor**epoch)
"""
QUICK = ("device=cpu", "tracking=off", "trainer.plots=false", "dataset.limit_train=20", "dataset.limit_val=20")
SMALL = (*QUICK, "dataset.limit_test=20", "dataset.num_steps=3", "model.spec=FC4-SN-FC-SN", "neuron.engine=reference")


def composed(*overrides: str) -> tuple[Config, Any]:
    cfg = compose_words(*overrides)
    return validate(cfg), cfg


def test_every_optimizer_and_scheduler_of_torch_is_known_that_numbers_can_make():
    def classes(module: Any, base: type) -> set[str]:
        found = {name for name, c in vars(module).items() if isinstance(c, type) and issubclass(c, base)}
        return found - {base.__name__, f"_{base.__name__}"}

    assert classes(torch.optim, torch.optim.Optimizer) - set(OPTIMIZERS.ours) == {"LBFGS", "SparseAdam", "Muon"}
    lr = torch.optim.lr_scheduler
    unmade = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
    assert classes(lr, lr.LRScheduler) - set(SCHEDULERS.ours) == unmade


def weights() -> dict[str, list[torch.nn.Parameter]]:
    return {"weights": [torch.nn.Parameter(torch.ones(2))], "thresholds": [torch.nn.Parameter(torch.ones(1))]}


@pytest.mark.parametrize("name", OPTIMIZERS.ours)
def test_an_optimizer_by_name_has_the_groups_learning_rates(name):
    groups = weights()
    optimizer = build_optimizer(OptimizerConf(name, lr=0.1, lr_threshold=0.0, weight_decay=0.0), groups)
    for parameters in groups.values():
        parameters[0].sum().backward()
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert groups["weights"][0].detach().max() < 1
    assert groups["thresholds"][0].item() == pytest.approx(1, abs=2e-6)  # Rprop: its smallest step
    assert type(optimizer).__name__.lower() == name.lower()


def test_numbers_go_to_the_optimizer_and_scheduler_by_their_names():
    conf = OptimizerConf("RAdam", kwargs={"betas": [0.5, 0.6], "eps": 1e-3})
    optimizer = build_optimizer(conf, weights())
    assert optimizer.defaults["betas"] == (0.5, 0.6) and optimizer.defaults["eps"] == 1e-3
    assert build_optimizer(OptimizerConf("adam", kwargs={"amsgrad": True}), weights()).defaults["amsgrad"]
    scheduler = build_scheduler(SchedulerConf("MultiStepLR", kwargs={"milestones": [1, 2], "gamma": 0.1}), optimizer, 5)
    optimizer.step()
    advance(scheduler, 1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    plateau = build_scheduler(SchedulerConf("ReduceLROnPlateau", kwargs={"patience": 0}), optimizer, 5)
    for loss in (1.0, 2.0):
        advance(plateau, loss)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    for wrong, message in (
        (OptimizerConf("RAdam", kwargs={"epsilon": 1}), "optimizer=RAdam with optimizer.kwargs: .*'epsilon'"),
        (OptimizerConf("Rprop", weight_decay=0.1), "optimizer.weight_decay=0.1: optimizer=Rprop has no weight decay"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_optimizer(wrong, weights())


def test_words_of_the_command_line_choose_them(mine):
    conf, _ = composed("optimizer=RAdam", "scheduler=mine.py:halving", "scheduler.kwargs={factor: 0.5}")
    assert (conf.optimizer.name, conf.optimizer.lr, conf.scheduler.name) == ("RAdam", 1e-3, "mine.py:halving")
    optimizer = build_optimizer(conf.optimizer, weights())
    scheduler = build_scheduler(conf.scheduler, optimizer, 5)
    optimizer.step()
    advance(scheduler, 1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)
    with pytest.raises(ConfigError, match=r"optimizer=mine.py:Half: this makes no torch.optim.Optimizer but Half"):
        build_optimizer(OptimizerConf("mine.py:Half"), weights())
    for words, message in (
        (["optimizer.name=RAdm"], r"optimizer.name=RAdm: no such option. Did you mean RAdam\?"),
        (["optimizer=RAdam", "optimizer.momentum=0.5"], "optimizer.momentum: optimizer=RAdam does not read it"),
        (["optimizer.kwargs={lr: 1}"], "optimizer.kwargs.lr: this has a key of its own, optimizer.lr"),
        (["scheduler=cosine", "scheduler.kwargs={T_max: 3}"], "scheduler.kwargs: scheduler=cosine has keys of its own"),
        (["encoder.kwargs={low: 3}"], "encoder.kwargs: encoder=direct has keys of its own"),
        (["trainer.callbacks=[mine.py:Watch,none.py:X]"], "trainer.callbacks=none.py:X: there is no file none.py"),
        (["dataset=randman", "encoder=mine.py:two_levels"], "encoder=mine.py:two_levels: event recordings are spikes"),
    ):
        with pytest.raises(ConfigError, match=message):
            composed(*words)


def test_an_encoder_and_a_callback_of_ones_own_train_and_resume(mine, capsys):
    words = (*SMALL, "encoder=mine.py:two_levels", "encoder.kwargs={low: 0.1}", "trainer.callbacks=[mine.py:Watch]")
    conf, cfg = composed(*words, f"state_dir={mine}/runs", "trainer.max_epochs=9")
    train(conf, cfg)
    (record,) = mine.glob("runs/*/*/record.json")
    assert '"mine/epochs"' in (record.parent / "metrics.jsonl").read_text()
    tags = record.read_text()
    assert "code.encoder.name" in tags and "code.trainer.callbacks" in tags
    assert '"step": 3' in (record.parent / "metrics.jsonl").read_text()
    assert "epoch 4/9" not in capsys.readouterr().out
    watch = Callbacks(["mine.py:Watch"])
    watch.load_state_dict([{"best": [1, 2]}])
    assert watch.state_dict() == [{"best": [1, 2]}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encoder=mine.py:too_few"], r"encoder=mine.py:too_few: from \[2, 1, 8, 8\] it must make \[3, 2, 1, 8, 8\]"),
        (["encoder=mine.py:two_levels", "encoder.kwargs={hi: 1}"], "it must take .x, num_steps. and encoder.kwargs"),
        (["trainer.callbacks=[mine.py:Wrong]"], "mine.py:Wrong: on_epoch must take one argument, context"),
        (
            ["trainer.callbacks=[mine.py:Fails]"],
            r"callbacks=mine.py:Fails: .*line 39: `context.*AttributeError",
        ),
        (["optimizer=RAdam", "optimizer.kwargs={nothing: 1}"], "optimizer=RAdam with optimizer.kwargs: .*nothing"),
    ],
)
def test_what_is_wrong_with_them_is_said(mine, words, message):
    conf, cfg = composed(*SMALL, *words, f"state_dir={mine}/runs", "trainer.max_epochs=2")
    with pytest.raises(ConfigError, match=message):
        train(conf, cfg)
