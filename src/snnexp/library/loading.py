"""`snnexp.load`: from a run, or a file of weights, to a network. No data set is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf

from snnexp.config import Config, DatasetConf, ImageDatasetConf, TrackingConf
from snnexp.data.base import DataInfo
from snnexp.data.facts import FACTS
from snnexp.data.shapes import frame_shape, num_classes
from snnexp.errors import ConfigError, DataError, unknown_choice
from snnexp.exchange.nir_reading import read
from snnexp.experiment import build, choose_device
from snnexp.library.borrowed import borrowed_randomness
from snnexp.library.net import Net
from snnexp.library.nir_net import NirNet
from snnexp.own_code import CODE, refuse_untrusted, warn_of_changes
from snnexp.tasks.evaluate import stored_config
from snnexp.tasks.find import Found, found_checkpoint
from snnexp.tracking.runs import read_record
from snnexp.training.checkpoint import apply_weights
from snnexp.training.stored import ROLES, load_stored


class HasFolder(Protocol):
    """What `snnexp.train` returns."""

    @property
    def folder(self) -> Path:
        """The run's folder."""


def load(
    source: str | Path | HasFolder,
    *,
    checkpoint: str = "best",
    state_dir: str | Path = "./runs",
    tracking_uri: str | None = None,
    device: str = "cpu",
    trust_code: bool = False,
) -> Net:
    """Load a trained network.

    Args:
        source: the id of an MLflow run (8 digits or more of it), a run's folder or its name below `state_dir`, what
            `snnexp.train` returned, or a file of weights: a checkpoint, or what `task=export` wrote.
        checkpoint: best or last; of a file that is given by name it is ignored.
        state_dir: where runs' folders lie.
        tracking_uri: the store to ask if the run has no folder there; None: $MLFLOW_TRACKING_URI, else
            sqlite:///mlflow.db in the current folder.
        device: auto, cpu or cuda.
        trust_code: import code of somebody else's that the file names (neuron.equation, model.module, ...).
    Returns: the network in evaluation mode, with the values of the file.
    Raises: DataError for weights that are missing, damaged or not snnexp's, and for ids that fit no run, several, or a
        sweep's parent; ConfigError if the network needs code and `trust_code` is false. The message has the way out.
    """
    if checkpoint not in ROLES:
        raise ConfigError(unknown_choice("checkpoint", checkpoint, ROLES))
    path = _file(source, checkpoint)
    if path is not None and path.suffix == ".nir":
        raise DataError(f"{path}: a NIR graph has neither encoder nor decoder. Read it with snnexp.read_nir.")
    if path is not None:
        return net_of(Found(path, *load_stored(path)), device, trust_code)
    run_id, runs_in = str(source), Path(state_dir).expanduser().resolve()
    folder = _path(source).resolve()
    if folder.is_dir():  # a run's, but without the weights, or that of all its attempts
        run_id = str(folder)
        runs_in = folder.parent.parent if (folder / "run.json").exists() else folder.parent
    conf = Config(
        run_id=run_id,
        checkpoint=checkpoint,
        state_dir=str(runs_in),
        tracking=TrackingConf(name="mlflow", uri=tracking_uri),
    )
    with found_checkpoint(conf, Path.cwd()) as found:
        return net_of(found, device, trust_code)


def _path(source: Any) -> Path:
    return Path(getattr(source, "folder", source)).expanduser()


def _file(source: Any, checkpoint: str) -> Path | None:
    """The file of weights that `source` names, or None if it is the name of a run."""
    path = _path(source)
    if path.is_dir() and (path / "run.json").exists():
        record = read_record(path)
        if record is not None and (path / f"{checkpoint}.safetensors").is_file():
            return path / f"{checkpoint}.safetensors"
        return None
    if path.name in ("state.pt", "midway.pt"):
        raise DataError(f"{path}: this is a training state, to continue from. Load best.safetensors beside it.")
    looks_like_a_file = path.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".nir", ".h5")
    return path if path.is_file() or looks_like_a_file else None


def read_nir(path: str | Path, device: str = "cpu") -> NirNet:
    """Load a NIR file: one of `task=export format=nir`, or another program's (docs/nir.md says what is supported).

    Raises: DataError that names the file and the node; ConfigError if the package nir is not installed.
    """
    path = Path(path).expanduser()
    return NirNet(*read(path), path).to(choose_device(device))


def net_of(found: Found, device: str, trust_code: bool) -> Net:
    """Build the network of a configuration that anybody can have written."""
    stored = stored_config(found)
    OmegaConf.update(stored, "tracking", {"name": "off"})
    conf: Config = OmegaConf.to_object(stored)  # type: ignore[assignment]
    config: dict[str, Any] = OmegaConf.to_container(stored)  # type: ignore[assignment]
    refuse_untrusted(config, str(found.path), trust_code)
    warn_of_changes(config, found.config.get(CODE) or {}, str(found.path))
    info = _input(found, conf)
    where = choose_device(device)
    with borrowed_randomness():
        network = build(conf, info, where)
    apply_weights(network, found.weights, found.path)
    return Net(conf, network, info, config, found.facts, found.path)


def _input(found: Found, conf: Config) -> DataInfo:
    """What the network sees: from the file, or for files of older versions from what is published of the data set."""
    described = found.facts.get("input")
    if described is not None:
        try:
            return DataInfo.from_input(described)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{found.path}: what its header says of the input cannot be used ({error}). Train again."
            ) from error
    dataset: DatasetConf = conf.dataset
    normalizes = isinstance(dataset, ImageDatasetConf) and dataset.normalize
    if dataset.name not in FACTS or normalizes:
        what = "the mean and deviation of its images" if normalizes else f"the shape of dataset={dataset.name}"
        raise DataError(
            f"{found.path}: it is of an older version of snnexp, which did not keep {what} with the weights. "
            "Use `snnexp task=evaluate` with the data, or train again."
        )
    classes = tuple(map(str, range(num_classes(dataset))))
    kind = FACTS[dataset.name].kind
    described = {"name": dataset.name, "kind": kind, "shape": frame_shape(dataset), "num_steps": dataset.num_steps}
    return DataInfo.from_input({**described, "class_names": classes, "channel_mean": None, "channel_std": None})
