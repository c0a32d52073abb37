"""What is legal: one dataclass per config group, with the choices and ranges of every key.

YAML in `conf/` says what runs, the dataclasses in `schema/` what is legal (all of them are importable from here, too),
`validation.py` checks it before any work. Nothing here imports torch: `snnexp --help` and shell completion read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from snnexp.claims.conf import ClaimConf
from snnexp.schema.coding import DecoderConf, DeltaEncoderConf, EncoderConf, LatencyEncoderConf, RateEncoderConf
from snnexp.schema.dataset import (
    AugmentConf,
    DatasetConf,
    EventDatasetConf,
    FolderDatasetConf,
    FolderImagesConf,
    ImageDatasetConf,
    MotionDatasetConf,
    OwnDatasetConf,
    RandmanDatasetConf,
    TonicDatasetConf,
)
from snnexp.schema.fields import choice, number
from snnexp.schema.model import DelayConf, ModelConf, NeuNormConf
from snnexp.schema.neuron import NeuronConf, SurrogateConf
from snnexp.schema.rescue import RESCUES, CureConf, RescueConf
from snnexp.schema.training import OptimizerConf, SchedulerConf, TrackingConf, TrainerConf

__all__ = [
    "SCHEMAS",
    "AugmentConf",
    "ClaimConf",
    "Config",
    "CureConf",
    "DatasetConf",
    "DecoderConf",
    "DelayConf",
    "DeltaEncoderConf",
    "EncoderConf",
    "EventDatasetConf",
    "FolderDatasetConf",
    "FolderImagesConf",
    "ImageDatasetConf",
    "LatencyEncoderConf",
    "ModelConf",
    "MotionDatasetConf",
    "NeuNormConf",
    "NeuronConf",
    "OptimizerConf",
    "OwnDatasetConf",
    "RandmanDatasetConf",
    "RateEncoderConf",
    "RescueConf",
    "SchedulerConf",
    "SurrogateConf",
    "TonicDatasetConf",
    "TrackingConf",
    "TrainerConf",
    "choice",
    "number",
    "register_schemas",
    "structured",
]


@dataclass
class Config:
    """Everything that one run depends on."""

    seed: int = number(0, low=0)
    device: str = choice("auto", "auto", "cpu", "cuda")
    task: str = choice("train", "train", "evaluate", "inspect", "prepare", "report", "export", "reproduce", "probe")
    run_id: str | None = None  # task=evaluate, export, probe: the MLflow run to load
    checkpoint: str = choice("best", "best", "last")  # task=evaluate, export, probe
    format: str = choice("weights", "weights", "nir")  # task=export: a file of weights, or a NIR graph
    trust_code: bool = False  # task=evaluate, probe, export: import the code that the run's own configuration names
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
    rescue: RescueConf = field(default_factory=RescueConf)
    tracking: TrackingConf = field(default_factory=TrackingConf)


# The options that the files in conf/ start from, by group: `defaults: [/schema/dataset/events@_here_]`.
SCHEMAS: dict[str, dict[str, type]] = {
    "dataset": {
        "image": ImageDatasetConf,
        "events": EventDatasetConf,
        "randman": RandmanDatasetConf,
        "motion": MotionDatasetConf,
        "folder": FolderDatasetConf,
        "own": OwnDatasetConf,
        "tonic": TonicDatasetConf,
        "images": FolderImagesConf,
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
    "rescue": dict(RESCUES),
    "tracking": {"base": TrackingConf},
}


def register_schemas() -> None:
    """Put the schemas into Hydra's ConfigStore, in a hidden group, and teach Hydra our reading of words and files."""
    from snnexp.loader import install

    _store_schemas()
    install(Config, SCHEMAS)


def _store_schemas() -> None:
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from snnexp.loader import open_schema

    store = ConfigStore.instance()
    there = store.repo.get("schema", {}).get("main.yaml")
    if there is not None and OmegaConf.get_type(there.node) is Config:
        return  # they are the same each time, and making them takes longer than reading conf/
    store.store(group="schema", name="main", node=Config, package="_global_")
    for group, options in SCHEMAS.items():
        for name, node in options.items():
            store.store(group=f"schema/{group}", name=name, node=open_schema(node))


def structured(config: dict[str, Any]) -> Any:
    """A typed configuration from plain containers, such as the one stored in a checkpoint."""
    from omegaconf import OmegaConf

    base = OmegaConf.structured(Config)
    dataset_nodes = {name: node for name, node in SCHEMAS["dataset"].items() if name not in ("image", "events")}
    encoder_nodes = {"rate": RateEncoderConf, "latency": LatencyEncoderConf, "delta": DeltaEncoderConf}
    kind = EventDatasetConf if "bin_by" in config["dataset"] else ImageDatasetConf
    base.dataset = OmegaConf.structured(dataset_nodes.get(config["dataset"]["name"], kind))
    base.encoder = OmegaConf.structured(encoder_nodes.get(config["encoder"]["name"], EncoderConf))
    base.rescue = OmegaConf.structured(RESCUES.get(config.get("rescue", {}).get("name", "none"), RescueConf))
    return OmegaConf.merge(base, config)
