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
        from snnexp.tasks.evaluate import find_checkpoint
        from snnexp.training.checkpoint import load_weights

    env = environment(cfg)
    source = find_checkpoint(conf, env.start_dir)
    weights, config, facts = load_weights(source)  # a damaged file must not be handed on
    target = Path(env.start_dir) / f"{path_word(str(conf.run_id))}-{conf.checkpoint}.safetensors"
    shutil.copyfile(source, target)
    print(
        f"{target}: {config['dataset']['name']}, {config['neuron']['name']}, epoch {facts.get('epoch')}, "
        f"{len(weights)} tensors"
    )
    print("load it with safetensors.torch.load_file; its header holds the configuration under the key config")
