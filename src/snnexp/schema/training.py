"""Keys of the groups `optimizer`, `scheduler`, `trainer` and `tracking`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from snnexp.schema.fields import choice, number


@dataclass
class OptimizerConf:
    """torch.optim's optimizer of that name with its own learning rates for weights, thresholds, decays and delays."""

    name: str = MISSING
    lr: float = number(1e-3, low=0)
    lr_threshold: float | None = number(None, low=0)  # null: lr; 0: learned thresholds stay where they start
    lr_decay: float | None = number(None, low=0)  # null: lr
    lr_delay: float | None = number(None, low=0)  # of delays, which count in time steps; null: 100 lr
    weight_decay: float = number(0.0, low=0)  # weights only, never thresholds, decays or delays
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # adam, adamw
    momentum: float = number(0.0, low=0, below=1)  # sgd
    nesterov: bool = False  # sgd
    kwargs: dict[str, Any] = field(default_factory=dict)  # what else the optimizer takes by name


@dataclass
class SchedulerConf:
    """How the learning rates change, once per epoch."""

    name: str = MISSING
    t_max: int | None = number(None, low=1)  # cosine: epochs from lr to lr_min; null: trainer.max_epochs
    lr_min: float = number(0.0, low=0)  # cosine
    step_size: int = number(30, low=1)  # step: epochs between drops
    factor: float = number(0.1, above=0, high=1)  # step: what lr is multiplied by
    kwargs: dict[str, Any] = field(default_factory=dict)  # what torch's or your own scheduler takes by name


@dataclass
class TrainerConf:
    """The one training loop."""

    name: str = MISSING
    max_epochs: int = number(20, low=0)
    precision: str = choice("32", "32", "bf16")
    resume: str = choice("auto", "auto", "never")
    checkpoint_minutes: float | None = number(None, above=0)  # also save within an epoch, when so long has passed
    grad_clip: float | None = number(None, above=0)  # largest norm of the gradient of all parameters
    patience: int | None = number(None, low=1)  # early stopping after so many epochs without a better monitor
    monitor: str = choice("accuracy", "accuracy", "loss")  # what on validation selects the best epoch
    init_from: str | None = None  # start from these weights: a .safetensors file of an earlier run
    test_curve: bool = False  # log the test split at every epoch, as test_curve/*; never used to select anything
    weight_change: bool = False  # log weights/change: |W - W_0| / |W_0| over all weights, at every epoch
    smoke_steps: int | None = number(None, low=1)  # at most so many batches per pass: for trying things out
    plots: bool = True
    diagnose: bool = True  # say in words when a layer is dead or saturated
    # count neurons that no gradient reaches, in all passes, or in all but those of training
    gradient_activity: str = choice("all", "all", "evaluation", "off")
    gradient_eps: float = number(0.01, above=0, high=1)  # share of the surrogate's peak from which a gradient passes
    deterministic: bool = True
    channels_last: bool = True
    checkpoint_steps: int | None = number(
        None, low=1
    )  # keep activations of so many steps, recompute the others; null: all
    callbacks: list[str] = field(default_factory=list)  # classes of your own: package.module:name, file.py:name
    truncate_steps: int | None = number(None, low=1)  # truncated BPTT: no gradient goes back beyond so many steps
    gradient_cutoff: float | None = None  # surrogate derivatives below this share of their peak count as 0; null: none


@dataclass
class TrackingConf:
    """Where the record of a run goes."""

    name: str = MISSING
    uri: str | None = None  # null: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the folder of the command
    experiment: str | None = None  # null: $MLFLOW_EXPERIMENT_NAME, else snnexp
    run_name: str | None = None  # null: <dataset>-<neuron>-s<seed>
    system_metrics: bool = False  # needs the extra [system]
