"""Assembly: from a validated configuration to data, network and decoder on one device, ready to run batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from snnexp import collectives, ranks
from snnexp.config import Config, DatasetConf, EventDatasetConf, ImageDatasetConf
from snnexp.data import open_data
from snnexp.data.base import Batch, DataInfo, DataSource
from snnexp.decoders import Decoder, build_decoder
from snnexp.encoders import Encoder, Input
from snnexp.errors import ConfigError
from snnexp.models.delayed_recurrence import REASON, layers_with_delays
from snnexp.models.network import Network, Observer, Output, build_network
from snnexp.models.shared_norm import join_norms
from snnexp.models.sums import Sums
from snnexp.models.tokens import takes_events
from snnexp.own_code import code_tags
from snnexp.training.seeding import derive_seed, seed_everything
from snnexp.variables import threads

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """The parts of one run, and the one way in which a batch goes through them."""

    conf: Config
    device: torch.device
    source: DataSource
    network: Network
    decoder: Decoder
    through: Callable[[Input], Output] | None = None  # another way through the network, for an analysis; not observed

    def forward(self, batch: Batch, observer: Observer | None = None, sums: Sums | None = None) -> Output:
        """Encode a batch and run the network on it; spikes and membranes of the output layer, [T, B, K].

        Where several processes share the batch, the output is that of all its samples, and the observer sees ours.
        """
        collectives.set_rows(batch.rows)
        with self.precision():
            x = self.encoder(batch.frames)
            output: Output = self.network(x, observer, sums) if self.through is None else self.through(x)
        return output if batch.rows is None else Output(*collectives.whole(output))

    @cached_property
    def encoder(self) -> Encoder:
        """What turns batches into the network's input."""
        normalize = isinstance(self.conf.dataset, ImageDatasetConf) and self.conf.dataset.normalize
        return Encoder(self.conf.encoder, self.source.info, normalize)

    def precision(self) -> Any:
        """The autocast context of trainer.precision; membranes stay in float32 inside the engines."""
        if self.conf.trainer.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Loss of one batch, a scalar."""
        return self.decoder.loss(output.spk, output.mem, labels)

    def trained_on(
        self, batch: Batch, observer: Observer | None = None, sums: Sums | None = None
    ) -> tuple[Output, Tensor]:
        """Run a training batch: the network's output, and the loss to go down. `sums`: see `Network.forward`.

        decoder.agreement > 0: the batch goes through twice, with other masks of dropout; the loss is half the sum of
        the two losses plus agreement times the distance of the two outputs (moderate dropout of LTMD, NeurIPS 2022).
        """
        output = self.forward(batch, observer, sums)
        loss = self.loss(output, batch.labels)
        weight = self.conf.decoder.agreement
        if weight:
            again = self.forward(batch)
            distance = self.decoder.distance((output.spk, output.mem), (again.spk, again.mem))
            loss = 0.5 * (loss + self.loss(again, batch.labels)) + weight * distance
        return output, loss

    def engine(self) -> tuple[str, str]:
        """The engine that the spiking layers run on here, and why; with those that do not."""
        stepwise = layers_with_delays(self.network.layers)
        layers = [layer for name, layer in self.network.neurons.items() if name not in stepwise]
        if not layers:
            return "reference", REASON
        engine, reason = layers[0].engine_on(self.device)
        if stepwise and engine != "reference":
            reason += f"; {', '.join(stepwise)} on reference: {REASON}"
        return engine, reason

    def tags(self) -> dict[str, str]:
        """What the run uses: device, engine and why, and what the last bits of its numbers depend on."""
        engine, reason = self.engine()
        tags = {"device": str(self.device), "engine": engine, "engine_reason": reason, **processor()}
        tags |= code_tags(self.conf)
        if (world := ranks.world()) is not None:
            tags[ranks.WORLD_SIZE] = str(world.size)
        if self.device.type == "cuda":
            tags["device_name"] = torch.cuda.get_device_name(self.device)
        return tags

    def predict(self, output: Output) -> Tensor:
        """Predicted classes, [B]."""
        with torch.no_grad():
            return self.decoder.predict(self.decoder.scores(output.spk, output.mem))


def processor() -> dict[str, str]:
    """What sums are split by: another number of threads or instruction set rounds differently."""
    return {"threads": str(torch.get_num_threads()), "cpu_capability": torch.backends.cpu.get_cpu_capability()}


def choose_device(requested: str) -> torch.device:
    """The device for `device=auto|cpu|cuda`.

    Raises:
        ConfigError: cuda was asked for and there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device. Use device=cpu or auto, or install a CUDA build.")
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    world = ranks.world()
    if world is None or requested != "cuda":
        return torch.device(requested)
    if world.local_size > torch.cuda.device_count():
        raise ConfigError(
            f"device=cuda: {world.local_size} processes on a machine where torch sees {torch.cuda.device_count()} GPUs."
            f" Use torchrun --nproc-per-node {torch.cuda.device_count()}."
        )
    torch.cuda.set_device(world.local_rank)
    return torch.device("cuda", world.local_rank)


def prepare_torch(conf: Config, device: torch.device) -> None:
    """Process-wide settings of a run. A sweep runs its jobs in one process, so every job sets all of them."""
    # Surrogates such as exp(-|U - theta|/width) make gradients below 1e-38 by the million. Processors handle those
    # in microcode: a backward pass over 300 steps became five times slower within ten batches. Set before the first
    # parallel operation, because worker threads inherit the setting when they are made.
    torch.set_flush_denormal(True)
    wanted = threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = not conf.trainer.deterministic
        torch.use_deterministic_algorithms(conf.trainer.deterministic, warn_only=True)


def open_source(conf: Config) -> DataSource:
    """The data of the run, on its device, in the form that the model takes."""
    device = choose_device(conf.device)
    prepare_torch(conf, device)
    return open_data(fitting_batches(conf), device)


def assemble(conf: Config, source: DataSource | None = None) -> Experiment:
    """Open the data and build the network: everything that can still be wrong is found here, before any record is made.

    Args:
        source: `open_source(conf)`, where it is open already.

    Initial weights depend on the seed and the model alone, so runs that differ only in values of the neuron
    start from the same weights.
    """
    if source is None:
        source = open_source(conf)
    device = choose_device(conf.device)
    seed_everything(derive_seed(conf.seed, "weights"))
    network = build(conf, source.info, device)
    decoder = build_decoder(conf.decoder, source.info.num_classes, source.info.num_steps)
    experiment = Experiment(conf, device, source, network, decoder)
    _ = experiment.encoder  # an encoder that does not work is found here
    return experiment


def build(conf: Config, info: DataInfo, device: torch.device) -> Network:
    """The network of a configuration for these data, or the user's own, with fresh weights."""
    network = _built(conf, info, device)
    for layer in network.neurons.values():
        if conf.trainer.gradient_cutoff is not None:
            layer.cut_gradient(conf.trainer.gradient_cutoff)
    for layer in network.spiking_layers.values():
        layer.follows_rate = conf.rescue.name == "homeostasis"
    return network


def _built(conf: Config, info: DataInfo, device: torch.device) -> Network:
    if conf.model.module is not None:
        from snnexp.models.own_network import OwnNetwork

        own = OwnNetwork(conf.model, conf.neuron, info).to(device)
        join_norms(own, f"model.module={conf.model.module}")
        return own
    network = build_network(
        conf.model,
        conf.neuron,
        conf.decoder,
        info,
        channels_last=conf.trainer.channels_last,
        single_spike_input=conf.encoder.name == "latency",
        checkpoint_steps=conf.trainer.checkpoint_steps,
    ).to(device)
    network.truncate_steps = conf.trainer.truncate_steps
    return network


def fitting_batches(conf: Config) -> DatasetConf:
    """Event lists are of use to a fully connected first layer, and on the CPU to a convolution that follows them."""
    data = conf.dataset
    follow = conf.model.sparse == "always" or (conf.model.sparse == "auto" and conf.trainer.channels_last)
    follow = follow and conf.trainer.precision == "32" and choose_device(conf.device).type == "cpu"
    takes_lists = conf.model.module is None and takes_events(conf.model.spec, follow)
    if isinstance(data, EventDatasetConf) and data.sparse == "auto" and not takes_lists:
        return replace(data, sparse="never")
    return data
