"""What is legal: one dataclass per config group, with the choices and ranges of every key.

YAML in `conf/` says what runs, this file says what is legal, `validation.py` checks it before any work. Nothing here
imports torch: `snnexp --help` and shell completion read it.

`choice(...)` and `number(...)` put what is legal beside the default, in the field's metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from snnexp.claims.conf import ClaimConf


def choice(default: str, *options: str) -> Any:
    """A string key that takes one of `options`; the default counts as one of them."""
    return field(default=default, metadata={"choices": options if default in options else (default, *options)})


def number(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A number with its range: low <= x <= high, above < x < below. A key typed `| None` may also be null."""
    return field(default=default, metadata={"low": low, "high": high, "above": above, "below": below})


# --- data ---------------------------------------------------------------------------------------------------------


@dataclass
class AugmentConf:
    """Random changes of training batches only; seeded by (seed, epoch). Zero or false is off."""

    shift: int = number(0, low=0)  # pixels, each axis, uniform in -shift..shift
    rotate: float = number(0.0, low=0)  # degrees, uniform in -rotate..rotate
    flip: bool = False  # mirror left to right, with probability 1/2
    drop_events: float = number(0.0, low=0, below=1)  # events only: share of events dropped
    jitter_ms: float = number(0.0, low=0)  # events only: standard deviation of a Gaussian added to the times
    flip_polarity: float = number(0.0, low=0, high=1)  # events only: probability that a sample's polarities are swapped
    crop_padding: int = number(0, low=0)  # images only: pad by this much, then crop at random to the old size


@dataclass
class DatasetConf:
    """What every data set has."""

    name: str = MISSING
    root: str = "${oc.env:SNNEXP_DATA,./data}"  # folder that holds the data sets' own folders
    num_steps: int = number(10, low=1)  # T, time steps the network sees
    batch_size: int = number(32, low=1)
    eval_batch_size: int | None = number(None, low=1)  # null: batch_size
    val_fraction: float = number(0.1, low=0, below=1)  # share of the official training part held out for validation
    split_seed: int = number(0, low=0)  # the split does not depend on `seed`, so that seeds stay comparable
    limit_train: int | None = number(None, low=1)
    limit_val: int | None = number(None, low=1)
    limit_test: int | None = number(None, low=1)
    download: bool = True  # fetch missing files on first use
    augment: AugmentConf = field(default_factory=AugmentConf)


@dataclass
class ImageDatasetConf(DatasetConf):
    """Static images, kept as uint8 in memory and encoded on the device."""

    normalize: bool = False  # subtract the mean and divide by the standard deviation of the training set, per channel


@dataclass
class EventDatasetConf(DatasetConf):
    """Event recordings, read from the packed store and binned a batch at a time."""

    bin_by: str = choice("time", "time", "count", "width")  # equal durations, equal event counts, fixed width bin_ms
    bin_ms: float | None = number(None, above=0)  # bin width for bin_by=width
    value: str = choice("count", "count", "binary")  # events per bin, or 1 if any
    polarity: str = choice("both", "both", "merge", "difference")  # channels: on and off, their sum, on minus off
    downsample: int = number(1, low=1)  # space: divide coordinates by this
    crop: int | None = number(None, low=1)  # centre crop to crop x crop pixels, before down-sampling
    sparse: str = choice("auto", "auto", "always", "never")  # hand event lists to an event-driven first layer
    store: str | None = None  # folder of the packed event store; null: <root>/event-store
    variant: str | None = None  # which public variant of the data set; null: whichever is found
    split: str | None = None  # which published split, for sets without an official one (cifar10dvs)
    keep_archives: bool = True  # false: delete downloaded archives once they are extracted
    transforms: list[str] = field(default_factory=list)  # names of tonic transforms, applied once when packing


@dataclass
class RandmanDatasetConf(EventDatasetConf):
    """Zenke and Vogels 2021: smooth random manifolds; the class is in the spike times only."""

    num_classes: int = number(10, low=2)
    num_units: int = number(100, low=1)
    manifold_dim: int = number(1, low=1)
    alpha: float = number(2.0, above=0)  # smoothness: larger is smoother
    duration_ms: float = number(100.0, above=0)
    spikes_per_unit: int = number(1, low=1)
    samples_per_class: int = number(250, low=10)
    test_per_class: int = number(50, low=1)
    generator_seed: int = number(0, low=0)


@dataclass
class MotionDatasetConf(EventDatasetConf):
    """A generated event-camera set: moving edges and rotating arms; the order in time decides the class."""

    size: int = number(128, low=16)
    duration_ms: float = number(1000.0, above=0)
    event_rate: float = number(100.0, above=0)  # thousand events per second
    noise: float = number(0.05, low=0, below=1)  # share of events that are noise
    train_per_class: int = number(20, low=2)
    test_per_class: int = number(5, low=1)
    generator_seed: int = number(0, low=0)


# --- neuron -------------------------------------------------------------------------------------------------------


@dataclass
class SurrogateConf:
    """The derivative that stands in for that of the step, as a function of x = U - theta (`neurons/surrogates.py`)."""

    name: str = "atan"
    alpha: float = number(2.0, above=0)
    slope: float = number(25.0, above=0)
    scale: float = number(1.0, above=0)
    width: float = number(0.5, above=0)


@dataclass
class NeuronConf:
    """The one neuron equation (DESIGN section 3); the presets in conf/neuron/ are values of these keys.

    I[t] = alpha I[t-1] + x[t];  U[t] = beta U'[t-1] + g I[t] - R[t];  S[t] = 1 if U[t] >= theta else 0
    """

    name: str = MISSING
    engine: str = choice("auto", "auto", "reference", "numba", "triton")
    threshold: float = number(1.0)
    beta: float = number(0.9, low=0, high=1)  # share of the membrane kept per step
    alpha: float | None = number(None, low=0, high=1)  # share of the current kept per step; null: no current state
    learn_threshold: bool = False
    learn_beta: bool = False
    learn_alpha: bool = False
    threshold_per: str = choice("layer", "layer", "channel", "neuron")
    beta_per: str = choice("layer", "layer", "channel", "neuron")
    alpha_per: str = choice("layer", "layer", "channel", "neuron")
    threshold_param: str = choice("direct", "direct", "softplus", "tanh")  # what is learned: theta, or a k behind it
    decay_param: str = choice("sigmoid", "sigmoid", "clamp")  # a learned beta or alpha: sigmoid(w), or itself clamped
    tau_form: bool = False  # g = 1 - beta: the input is divided by tau (PLIF, SpikingJelly)
    reset: str = choice("zero", "zero", "subtract", "subtract_first", "none")
    strict: bool = False  # true: a spike needs U > theta (snnTorch, STBP), false: U >= theta
    detach_reset: bool = True  # no gradient through the reset
    ignore_reset_in_backward: bool = False  # SLAYER: the backward pass runs as if there were no reset
    fire_once: bool = False  # a neuron spikes at most once per sample
    force_last_spike: bool = False  # training only: a neuron silent so far fires at the last step (ETTFS)
    relative_surrogate: bool = False  # the surrogate sees U/theta - 1 instead of U - theta (DIET-SNN)
    surrogate: SurrogateConf = field(default_factory=SurrogateConf)
    equation: str | None = None  # a step function of your own: package.module:name or file.py:name
    params: dict[str, Any] = field(default_factory=dict)  # its values by name: {init, learn, per, low, high}
    module: str | None = None  # a neuron of snnTorch, or a module of your own: snntorch.Synaptic, package.module:name
    kwargs: dict[str, Any] = field(default_factory=dict)  # what it is made with


# --- encoder, decoder ---------------------------------------------------------------------------------------------


@dataclass
class EncoderConf:
    """How a static image becomes input over time; event data needs none."""

    name: str = MISSING


@dataclass
class RateEncoderConf(EncoderConf):
    """Bernoulli spikes with probability gain * x + offset at each step (snntorch.spikegen.rate)."""

    gain: float = number(1.0, above=0)
    offset: float = number(0.0)


@dataclass
class LatencyEncoderConf(EncoderConf):
    """One spike per pixel, bright pixels first (snntorch.spikegen.latency)."""

    linear: bool = True  # t = (T-1)(1-x); false: logarithmic, an RC circuit of time constant tau
    tau: float = number(5.0, above=0)
    threshold: float = number(0.01, low=0, below=1)  # darker pixels stay silent (clip) or fire at the last step
    clip: bool = True


@dataclass
class DeltaEncoderConf(EncoderConf):
    """A spike each time the input has changed by another `threshold` (snntorch.spikegen.delta on the levels crossed).

    A static image is first faded in linearly from black over the T steps, so that there is a change to see.
    """

    threshold: float = number(0.1, above=0)
    off_spike: bool = False  # fade out again in the second half, with spikes of -1


@dataclass
class DecoderConf:
    """How the output over time becomes class scores, and the loss that trains them."""

    name: str = MISSING
    loss: str = choice(
        "cross_entropy", "cross_entropy", "mse", "mse_step", "ce_step", "tet", "ce_temporal", "mse_temporal"
    )
    correct_rate: float = number(1.0, low=0, high=1)  # mse on rates: target firing rate of the right class
    incorrect_rate: float = number(0.0, low=0, high=1)
    scale: float = number(1.0, above=0)  # scores are multiplied by this before the cross-entropy
    tet_lambda: float = number(1e-3, low=0, high=1)  # tet: share of the distance to tet_level in the loss
    tet_level: float = number(1.0)  # tet: what outputs are drawn to, whatever their class
    weights: str = choice("linear", "linear", "exponential")  # temporal_weight: gamma (T-t)/T, or gamma^-t
    gamma: float = number(1.0, above=0)
    votes: int = number(1, low=1)  # vote: output neurons per class
    integrate: bool = True  # membrane: the output layer integrates and never spikes
    reduce: str = choice("last", "last", "mean", "max")  # membrane: over time
    on_target: int = number(0, low=0)  # mse_temporal: step at which the right class should fire first
    off_target: int | None = number(None, low=0)  # mse_temporal: the same for the wrong classes; null: last step


# --- model --------------------------------------------------------------------------------------------------------


@dataclass
class NeuNormConf:
    """NeuNorm (Wu et al. 2019): x[t] = k x[t-1] + v/F sum_f S_f[t]; the next layer sees S - A x."""

    k: float = number(0.9, low=0, below=1)
    # k + v F = 1 as printed, or k + v = 1 (x is then the mean rate); off: NN in model.spec does nothing
    form: str = choice("literal", "literal", "mean", "off")
    shared: bool = False  # A of shape [1, H, W] instead of [C, H, W]


@dataclass
class DelayConf:
    """The delays of DL<max> and RFC<out>DL<max>: x[t] becomes sum_l k[l] x[t - l], k around a learned d of 0 to max.

    sigma is the standard deviation of a gaussian k, or the half width of a triangle. In evaluation d is rounded.
    """

    learn: bool = True  # at the rate optimizer.lr_delay; false: the rounded start values act, in training too
    init: str = choice("uniform", "uniform", "zero")  # the start values: uniform in 0..max, or no delay
    kernel: str = choice("gaussian", "gaussian", "triangle")
    sigma: float | None = number(None, above=0)  # in the first epoch; null: max / 2
    sigma_final: float | None = number(None, above=0)  # null: 0.5 (gaussian), 1 (triangle: linear interpolation)
    sigma_share: float = number(0.25, low=0, high=1)  # share of trainer.max_epochs in which sigma falls, exponentially


@dataclass
class ModelConf:
    """A network in the literature's notation (DESIGN section 4; docs/models.md lists the tokens)."""

    name: str = MISSING
    spec: str = MISSING
    pooling: str = choice("as_written", "as_written", "average")  # average: every MP becomes AP (ETTFS, single spikes)
    bias: bool = True  # of convolutions and linear layers; those followed by BN never have one
    init: str = choice("default", "default", "kaiming_uniform", "kaiming_normal", "ettfs")
    gain: float = number(1.0, above=0)  # all initial weights are multiplied by this
    weight_norm: bool = False  # ETTFS: weights standardised to sigma = sqrt(T/N) at each forward pass
    affine: str = choice("none", "none", "layer", "channel")  # ETTFS: I' = g I + b with learned g, b
    bn_per_step: bool = False  # BN statistics per time step (PLIF's released code) instead of over T and batch
    neunorm: NeuNormConf = field(default_factory=NeuNormConf)
    delay: DelayConf = field(default_factory=DelayConf)
    sparse: str = choice("auto", "auto", "always", "never")  # hidden fully connected layers follow the spikes (CPU)


# --- optimisation and training ------------------------------------------------------------------------------------


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


@dataclass
class SchedulerConf:
    """How the learning rates change, once per epoch."""

    name: str = MISSING
    t_max: int | None = number(None, low=1)  # cosine: epochs from lr to lr_min; null: trainer.max_epochs
    lr_min: float = number(0.0, low=0)  # cosine
    step_size: int = number(30, low=1)  # step: epochs between drops
    factor: float = number(0.1, above=0, high=1)  # step: what lr is multiplied by


@dataclass
class TrainerConf:
    """The one training loop."""

    name: str = MISSING
    max_epochs: int = number(20, low=0)
    precision: str = choice("32", "32", "bf16")
    resume: str = choice("auto", "auto", "never")
    grad_clip: float | None = number(None, above=0)  # largest norm of the gradient of all parameters
    patience: int | None = number(None, low=1)  # early stopping after so many epochs without a better monitor
    monitor: str = choice("accuracy", "accuracy", "loss")  # what on validation selects the best epoch
    init_from: str | None = None  # start from these weights: a .safetensors file of an earlier run
    test_curve: bool = False  # log the test split at every epoch, as test_curve/*; never used to select anything
    weight_change: bool = False  # log weights/change: |W - W_0| / |W_0| over all weights, at every epoch
    smoke_steps: int | None = number(None, low=1)  # at most so many batches per pass: for trying things out
    plots: bool = True
    diagnose: bool = True  # say in words when a layer is dead or saturated
    deterministic: bool = True
    channels_last: bool = True
    checkpoint_steps: int | None = number(
        None, low=1
    )  # keep activations of so many steps, recompute the others; null: all
    gradient_cutoff: int | None = number(None, low=1)  # truncated BPTT: no gradient goes back beyond so many steps


@dataclass
class TrackingConf:
    """Where the record of a run goes."""

    name: str = MISSING
    uri: str | None = None  # null: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the folder of the command
    experiment: str | None = None  # null: $MLFLOW_EXPERIMENT_NAME, else snnexp
    run_name: str | None = None  # null: <dataset>-<neuron>-s<seed>
    system_metrics: bool = False  # needs the extra [system]


@dataclass
class Config:
    """Everything that one run depends on."""

    seed: int = number(0, low=0)
    device: str = choice("auto", "auto", "cpu", "cuda")
    task: str = choice("train", "train", "evaluate", "inspect", "prepare", "report", "export", "reproduce", "probe")
    run_id: str | None = None  # task=evaluate, export, probe: the MLflow run to load
    checkpoint: str = choice("best", "best", "last")  # task=evaluate, export, probe
    show: str = choice("all", "all", "kernel")  # task=inspect: everything, or the source of the neurons' kernels
    state_dir: str = "./runs"  # training states, one stable folder per run
    results_dir: str = "./results"  # task=reproduce: where the tables go
    results_name: str | None = None  # task=reproduce: their name; null: the experiment's
    recipe: str = choice("paper", "paper", "common")  # each paper's own choices, or the same for all neurons
    arm: str | None = None  # which arm of the experiment's claim this run is
    claim: ClaimConf | None = None  # what the experiment's paper says (conf/experiment)
    dataset: DatasetConf = field(default_factory=DatasetConf)
    neuron: NeuronConf = field(default_factory=NeuronConf)
    encoder: EncoderConf = field(default_factory=EncoderConf)
    decoder: DecoderConf = field(default_factory=DecoderConf)
    model: ModelConf = field(default_factory=ModelConf)
    optimizer: OptimizerConf = field(default_factory=OptimizerConf)
    scheduler: SchedulerConf = field(default_factory=SchedulerConf)
    trainer: TrainerConf = field(default_factory=TrainerConf)
    tracking: TrackingConf = field(default_factory=TrackingConf)


# The options that the files in conf/ start from, by group: `defaults: [/schema/dataset/events@_here_]`.
SCHEMAS: dict[str, dict[str, type]] = {
    "dataset": {
        "image": ImageDatasetConf,
        "events": EventDatasetConf,
        "randman": RandmanDatasetConf,
        "motion": MotionDatasetConf,
    },
    "neuron": {"base": NeuronConf},
    "encoder": {
        "base": EncoderConf,
        "rate": RateEncoderConf,
        "latency": LatencyEncoderConf,
        "delta": DeltaEncoderConf,
    },
    "decoder": {"base": DecoderConf},
    "model": {"base": ModelConf},
    "optimizer": {"base": OptimizerConf},
    "scheduler": {"base": SchedulerConf},
    "trainer": {"base": TrainerConf},
    "tracking": {"base": TrackingConf},
}


def register_schemas() -> None:
    """Put the schemas into Hydra's ConfigStore, in a hidden group, and teach Hydra our reading of words and files."""
    from hydra.core.config_store import ConfigStore

    from snnexp.loader import install, open_schema

    store = ConfigStore.instance()
    store.store(group="schema", name="main", node=Config, package="_global_")
    for group, options in SCHEMAS.items():
        for name, node in options.items():
            store.store(group=f"schema/{group}", name=name, node=open_schema(node))
    install(Config, SCHEMAS)


def structured(config: dict[str, Any]) -> Any:
    """A typed configuration from plain containers, such as the one stored in a checkpoint."""
    from omegaconf import OmegaConf

    base = OmegaConf.structured(Config)
    dataset_nodes = {"randman": RandmanDatasetConf, "motion": MotionDatasetConf}
    encoder_nodes = {"rate": RateEncoderConf, "latency": LatencyEncoderConf, "delta": DeltaEncoderConf}
    kind = EventDatasetConf if "bin_by" in config["dataset"] else ImageDatasetConf
    base.dataset = OmegaConf.structured(dataset_nodes.get(config["dataset"]["name"], kind))
    base.encoder = OmegaConf.structured(encoder_nodes.get(config["encoder"]["name"], EncoderConf))
    return OmegaConf.merge(base, config)
