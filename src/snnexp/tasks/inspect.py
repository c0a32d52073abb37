"""task=inspect: what would run, without running it: configuration, layers, learning rates, samples, memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from snnexp.collector import importing
from snnexp.config import Config
from snnexp.terminal import wrapped

if TYPE_CHECKING:
    from snnexp.experiment import Experiment


def inspect(conf: Config, cfg: DictConfig) -> None:
    """Print everything that `task=train` would start from. Nothing is recorded."""
    with importing(freeze=True):
        from rich.console import Console
        from rich.table import Table

        from snnexp.data import preview
        from snnexp.experiment import assemble
        from snnexp.models.spec import effective_spec
        from snnexp.own_code import with_code
        from snnexp.tasks.prepare import describe_data
        from snnexp.tracking.identity import run_identity
        from snnexp.training.foresight import as_size, available_bytes, memory, small_batch
        from snnexp.training.optimisation import learning_rates

    experiment = assemble(conf)
    network, info = experiment.network, experiment.source.info
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(wrapped(text, console.width), markup=False, soft_wrap=True)

    if conf.show == "kernel":
        for text in kernel_sources(experiment):
            console.print(text, markup=False, soft_wrap=True)
        return
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    console.print(OmegaConf.to_yaml(OmegaConf.create(config)), markup=False, end="")
    console.print(f"\nidentity: {run_identity(with_code(config))}   device: {experiment.device}", markup=False)  # type: ignore[arg-type]

    table = Table("layer", "token", "input", "output", "parameters", "neurons", title=effective_spec(conf.model))
    for column in table.columns[-2:]:
        column.justify = "right"
    for row in network.layer_table():
        neurons = f"{row.neurons:,}" if row.neurons else ""
        shapes = ["x".join(map(str, shape)) for shape in (row.in_shape, row.out_shape)]
        table.add_row(row.name, row.token, *shapes, f"{row.parameters:,}" if row.parameters else "", neurons)
    console.print(table)

    rates = learning_rates(conf.optimizer)
    for kind, parameters in network.parameter_groups().items():
        if parameters:
            numbers = sum(p.numel() for p in parameters)
            say(f"{kind}: {numbers:,} parameters in {len(parameters)} tensors, lr {rates[kind]:g}")
    for name, delay in network.delays.items():
        say(f"{name}: {delay.describe(conf.trainer.max_epochs)}")
    for line in describe_data(info, conf):
        say(line)
    for line in preview.describe(experiment.source):
        say(f"      {line}")
    if HydraConfig.initialized():
        picture = Path(HydraConfig.get().runtime.output_dir) / "samples.png"
        preview.draw(experiment.source, picture)
        say(f"      some samples: {picture}")
    step = network.step_memory_bytes(conf.dataset.batch_size)
    at_once = min(conf.trainer.checkpoint_steps or info.num_steps, info.num_steps)
    segments = f" (activations of {at_once} at once)" if at_once < info.num_steps else ""
    say(
        f"memory: about {as_size(step)} (estimate) for a training step of {conf.dataset.batch_size} samples "
        f"x {info.num_steps} steps{segments}, {as_size(info.max_batch_bytes)} for a batch in the loader"
    )
    for problem in (small_batch(experiment), *memory(experiment, available_bytes(experiment.device))):
        if problem is not None:
            say(f"task=train will refuse: {problem}")


def kernel_sources(experiment: Experiment) -> Iterator[str]:
    """The source of each kernel that training runs, once, headed by the layers that run it."""
    from snnexp.neurons.engines import kernel_source

    layers: dict[str, list[str]] = {}
    engine, reason = experiment.engine()
    for name, layer in experiment.network.neurons.items():
        text = kernel_source(engine, layer.active_dynamics(), layer.values())
        text = text or f"engine {engine} ({reason}) has no kernels: it runs the equation itself."
        layers.setdefault(text, []).append(name)
    for text, names in layers.items():
        yield f"# {', '.join(names)}"
        yield text
