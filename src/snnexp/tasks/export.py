"""task=export run_id=...: a finished run's network for other programs, as weights or as a NIR graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from snnexp.collector import importing
from snnexp.config import Config
from snnexp.naming import path_word

if TYPE_CHECKING:
    from snnexp.tasks.find import Found


def export(conf: Config, cfg: DictConfig) -> None:
    """Write `<run_id>-<checkpoint>.safetensors` (or .nir) into the folder that the command was started in."""
    with importing(freeze=True):
        from snnexp.tasks.environment import environment
        from snnexp.tasks.find import found_checkpoint

    start_dir = Path(environment(cfg).start_dir)
    with found_checkpoint(conf, start_dir) as found:  # a damaged file must not be handed on
        stem = f"{path_word(_as_name(str(conf.run_id)))}-{conf.checkpoint}"
        if conf.format == "nir":
            _export_nir(found, start_dir / f"{stem}.nir", conf.trust_code)
            return
        target = start_dir / f"{stem}.safetensors"
        shutil.copyfile(found.path, target)
    of = ", ".join(str(dict(found.config.get(group) or {}).get("name", "?")) for group in ("dataset", "neuron"))
    print(f"{target}: {of}, epoch {found.facts.get('epoch')}, {len(found.weights)} tensors")
    print("load it with safetensors.torch.load_file; its header holds the configuration under the key config")


def _export_nir(found: Found, target: Path, trust_code: bool) -> None:
    """Write the graph, and say what snnTorch's importer makes of it."""
    with importing(freeze=True):
        from snnexp.exchange.nir_writing import graph_of, snntorch_notes, write
        from snnexp.library.loading import net_of

    net = net_of(found, "cpu", trust_code)
    facts = {key: net.facts.get(key) for key in ("identity", "role", "epoch", "data_fingerprint")}
    said = {**facts, "input": found.facts.get("input"), "config": net.config}
    graph = graph_of(net.network, {"snnexp": json.dumps(said)})
    write(graph, target)
    print(f"{target}: {len(graph.nodes)} nodes, one time step is 0.1 ms; docs/nir.md has the equations")
    print("read it with snnexp.read_nir, nir.read, or snntorch.import_nir.import_from_nir (a sample at a time)")
    for note in snntorch_notes(net.network):
        print(f"  ! snnTorch's importer does not run this graph: {note}")


def _as_name(run_id: str) -> str:
    """A run may be named by its folder: `digits-fixed-1a2b/001` becomes `digits-fixed-1a2b-001`."""
    return "-".join([part for part in run_id.split("/") if part.strip(".")][-2:])
