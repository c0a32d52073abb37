"""task=export run_id=...: copy the weights of a finished run, with the configuration inside, to the current folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from omegaconf import DictConfig

from snnexp.collector import importing
from snnexp.config import Config
from snnexp.naming import path_word


def export(conf: Config, cfg: DictConfig) -> None:
    """Write `<run_id>-<checkpoint>.safetensors` into the folder that the command was started in."""
    with importing(freeze=True):
        from snnexp.tasks.environment import environment
        from snnexp.tasks.find import found_checkpoint

    start_dir = Path(environment(cfg).start_dir)
    with found_checkpoint(conf, start_dir) as found:  # a damaged file must not be handed on
        target = start_dir / f"{path_word(_as_name(str(conf.run_id)))}-{conf.checkpoint}.safetensors"
        shutil.copyfile(found.path, target)
    of = ", ".join(str(dict(found.config.get(group) or {}).get("name", "?")) for group in ("dataset", "neuron"))
    print(f"{target}: {of}, epoch {found.facts.get('epoch')}, {len(found.weights)} tensors")
    print("load it with safetensors.torch.load_file; its header holds the configuration under the key config")


def _as_name(run_id: str) -> str:
    """A run may be named by its folder: `digits-fixed-1a2b/001` becomes `digits-fixed-1a2b-001`."""
    return "-".join([part for part in run_id.split("/") if part.strip(".")][-2:])
