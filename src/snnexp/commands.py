"""Commands for a reader to copy: each works as it is printed, in the folder and the shell in which it is printed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snnexp import ranks

if TYPE_CHECKING:
    from snnexp.config import Config


def program(name: str = "snnexp", anywhere: bool = False) -> str:
    """How a shell starts `name` of this environment, quoted: by its name where that means this one, else by its path.

    anywhere: also after a `cd`; else a path inside the folder that the command was started in is relative to it.
    """
    own = Path(sys.executable).parent / name  # not resolved: a virtual environment's python is a link
    found = shutil.which(name)
    if found is not None and (not own.is_file() or os.path.samefile(found, own)):
        return name
    if not own.is_file():
        return f"{shlex.quote(sys.executable)} -m {name}"
    return shlex.quote(str(own) if anywhere else _seen_from(own, start_folder()))


def start_folder() -> Path:
    """The folder that the command was started in."""
    return Path(os.environ.get("SNNEXP_START_DIR") or Path.cwd())


def command_line(words: Sequence[str], printed: bool = False) -> str:
    """`snnexp` with these words, quoted for a shell; `printed`: for this one, else for a record that others read."""
    return " ".join([program() if printed else ranks.program(), *map(shlex.quote, words)])


def option_folders(hydra: Any = None) -> list[str]:
    """The words with which this command brought a user's own options in: without them its other words mean nothing.

    hydra: the node `hydra` of a configuration; that of the running job if left out.
    """
    if hydra is None:
        from hydra.core.hydra_config import HydraConfig

        if not HydraConfig.initialized():
            return []
        hydra = HydraConfig.get()
    folders = [f"--config-dir={s.path}" for s in hydra.runtime.config_sources if s.provider == "command-line"]
    return folders + [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]


def evaluate_command(run_id: str, conf: Config, start: Path) -> str:
    """What evaluates the run again: its id, and where its state and data lie if it is not where they are looked for.

    What else the run is about comes from its weights' header. Code that is not ours needs the user's word.
    """
    from snnexp.own_code import asks_for_trust

    words = ["task=evaluate", f"run_id={run_id}", *folder_words(conf, start)]
    return command_line([*words, "trust_code=true"] if asks_for_trust(conf) else words, printed=True)


def folder_words(conf: Config, start: Path) -> list[str]:
    """`state_dir=`, `dataset.root=` and `dataset.store=`, where they are not the folders of a command without them."""
    from omegaconf import OmegaConf

    from snnexp.config import Config as Plain
    from snnexp.schema.dataset import DatasetConf

    usual = OmegaConf.create({"state_dir": Plain.state_dir, "dataset.root": DatasetConf.root, "dataset.store": None})
    is_at: dict[str, str | None] = {"state_dir": conf.state_dir, "dataset.root": conf.dataset.root}
    is_at["dataset.store"] = getattr(conf.dataset, "store", None)  # of event sets only
    return [
        f"{key}={_seen_from(_absolute(folder, start), start)}"
        for key, folder in is_at.items()
        if folder and _absolute(folder, start) != (usual[key] and _absolute(usual[key], start))
    ]


def _absolute(path: str, start: Path) -> Path:
    return (start / Path(path).expanduser()).resolve()


def _seen_from(path: Path, start: Path) -> str:
    """Relative where that is shorter: inside the folder."""
    return str(path.relative_to(start)) if path.is_relative_to(start) else str(path)
