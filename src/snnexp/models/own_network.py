"""A network of the user's own: any torch.nn.Module, with our layers inside it counted, recorded and trained as in ours.

    class Net(nn.Module):
        def __init__(self, shape, num_classes, neurons):    # any of these and num_steps; and what model.kwargs has
            super().__init__()
            self.fc1, self.sn1 = nn.Linear(prod(shape), 64), neurons((64,), "sn1")
            self.fc2, self.sn2 = nn.Linear(64, num_classes), neurons((num_classes,), "sn2")

        def forward(self, x):                               # [T, B, C, H, W]
            spk = self.sn1(self.fc1(x.flatten(2))).spk      # a layer of neurons takes and gives all time steps
            return self.sn2(self.fc2(spk))                  # spikes, or spikes and membranes, [T, B, classes]

What a spiking layer did is seen where it is called, what a layer with weights was given likewise, so dead neurons,
rates and synaptic operations are counted; other modules run unseen.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.blame import blamed
from snnexp.config import ModelConf, NeuronConf
from snnexp.data.base import DataInfo, EventFrames
from snnexp.encoders import ConstantInput
from snnexp.errors import ConfigError
from snnexp.models.network import Network, Output
from snnexp.models.observer import Firing, Observer
from snnexp.models.spec import LayerPlan, Token
from snnexp.models.sums import Sums
from snnexp.neurons.engines import spikes_over_time
from snnexp.neurons.equation import Pool
from snnexp.neurons.layer import NeuronOutput, SpikingLayer
from snnexp.neurons.module_layer import build_layer
from snnexp.registry import MODELS, load

log = logging.getLogger(__name__)

_COUNTED = (nn.Linear, nn.Conv2d)  # layers whose synaptic operations are counted
_PLANNED: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv2d: "conv",
    nn.modules.batchnorm._BatchNorm: "batch_norm",
    nn.GroupNorm: "layer_norm",
    SpikingLayer: "spiking",
}


class OwnNetwork(Network):
    """A user's module in the place of a planned network. `layers` are what a trial run has seen of it.

    Raises: ConfigError if the module cannot be made or run, or does not give one output per class and step.
    """

    module: nn.Module

    def __init__(self, model: ModelConf, neuron: NeuronConf, info: DataInfo) -> None:
        super().__init__([], model, neuron, info)
        assert model.module is not None
        self.word = model.module
        self.normalises_weights = True  # model.gain would change nothing, so nobody advises it
        self.num_classes = info.num_classes
        self.module = self._build(model, neuron, info)
        self.neurons = self._named_neurons()
        self.layers = tuple(self._plans())

    def forward(
        self, x: Tensor | ConstantInput | EventFrames, observer: Observer | None = None, sums: Sums | None = None
    ) -> Output:
        """Run the module; see `Network.forward`."""
        dense = x if isinstance(x, Tensor) else x.to_dense()
        if tuple(dense.shape[2:]) != self.input_shape:
            raise ValueError(f"the network was built for input {self.input_shape} at each step, not {dense.shape[2:]}")
        if observer is None and sums is None:
            return self._output(dense)
        calls = _Calls(self)
        with calls.watching():
            output = self._output(dense)
        if observer is not None:
            calls.tell(observer, dense.shape[0], dense.shape[1])
        if sums is not None:
            calls.sum_up(sums)
        return output

    def _output(self, x: Tensor) -> Output:
        with blamed(MODELS.key, self.word, type(self.module).__module__):
            out = self.module(x)
        spk, mem = (out[0], out[1]) if isinstance(out, tuple) and len(out) >= 2 else (out, None)
        wanted = (*x.shape[:2], self.num_classes)
        if not isinstance(spk, Tensor) or spk.shape != wanted or not (mem is None or mem.shape == wanted):
            shown = [list(o.shape) if isinstance(o, Tensor) else type(o).__name__ for o in (spk, mem) if o is not None]
            raise ConfigError(
                f"{MODELS.key}={self.word}: forward must return spikes, or spikes and membranes, of shape "
                f"[T, B, classes] = {list(wanted)}; it returned {' and '.join(map(str, shown))}."
            )
        return Output(spk, spk if mem is None else mem)

    def pool_after(self, index: int) -> Pool | None:
        """Pooling is the module's own."""
        return None

    @property
    def wants_events(self) -> bool:
        """A module sees tensors."""
        return False

    def get_submodule(self, target: str) -> nn.Module:
        """The part of that name, of this network or of the user's module."""
        inside = target and target.partition(".")[0] not in self._modules
        return super().get_submodule(f"module.{target}" if inside else target)

    # --- building -------------------------------------------------------------------------------------------------

    def _build(self, model: ModelConf, neuron: NeuronConf, info: DataInfo) -> nn.Module:
        make = load(MODELS, self.word)
        if not callable(make):
            raise ConfigError(f"{MODELS.key}={self.word}: this is no class but {type(make).__name__}.")

        def neurons(shape: tuple[int, ...] | int, name: str, spiking: bool = True) -> SpikingLayer:
            return build_layer(neuron, (shape,) if isinstance(shape, int) else tuple(shape), name, spiking)

        given: dict[str, Any] = {
            "shape": tuple(info.shape),
            "num_classes": info.num_classes,
            "num_steps": info.num_steps,
            "neurons": neurons,
        }
        try:
            takes = inspect.signature(make).parameters
            arguments = {name: value for name, value in given.items() if name in takes} | model.kwargs
            inspect.signature(make).bind(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{MODELS.key}={self.word}: it may take {', '.join(given)}, and what model.kwargs has: {error}."
            ) from error
        with blamed(MODELS.key, self.word, make.__module__):
            module = make(**arguments)
        if not isinstance(module, nn.Module):
            raise ConfigError(f"{MODELS.key}={self.word}: this makes no torch.nn.Module but {type(module).__name__}.")
        return module

    def _named_neurons(self) -> dict[str, SpikingLayer]:
        found: dict[str, SpikingLayer] = {}
        for path, layer in self.module.named_modules():
            if not isinstance(layer, SpikingLayer):
                continue
            name = layer.name or path
            if name in found:
                raise ConfigError(f"{MODELS.key}={self.word}: two layers of neurons are called {name}.")
            found[name] = layer
        if not found:
            raise ConfigError(
                f"{MODELS.key}={self.word}: it has no layer of neurons: make them with the argument `neurons`, as in "
                "self.sn1 = neurons((64,), 'sn1'), or snnexp.SpikingLayer."
            )
        return found

    def _plans(self) -> Iterator[LayerPlan]:
        """What a trial run sees: layers with weights, normalisations and neurons, in the order in which they ran."""
        calls = _Calls(self, every=True)
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), calls.watching():
                self._output(torch.zeros(self.num_steps, 1, *self.input_shape))
        finally:
            self.module.train(training)
        for position, (name, module, shapes) in enumerate(calls.order):
            kind = next(kind for made_of, kind in _PLANNED.items() if isinstance(module, made_of))
            token = Token(type(module).__name__, kind, {}, 0, 0)
            args = {"k": module.kernel_size[0]} if isinstance(module, nn.Conv2d) else {}
            parameters = sum(p.numel() for p in module.parameters())
            bias = getattr(module, "bias", None) is not None
            yield LayerPlan(token, kind, name, *shapes, args, bias, parameters, position)


class _Calls:
    """What the layers of a module were given and gave in one forward pass, by their names."""

    def __init__(self, network: OwnNetwork, every: bool = False) -> None:
        self.spiking: dict[str, list[NeuronOutput]] = {}
        self.inputs: dict[str, list[Tensor]] = {}
        self.order: list[tuple[str, nn.Module, tuple[tuple[int, ...], tuple[int, ...]]]] = []
        self.modules: dict[str, nn.Module] = {**network.neurons}
        known = {id(layer) for layer in network.neurons.values()}
        inside = {id(part) for layer in network.neurons.values() for part in layer.modules()}
        kinds = tuple(_PLANNED) if every else _COUNTED
        for path, part in network.module.named_modules():
            if isinstance(part, kinds) and id(part) not in known | inside:
                self.modules[path] = part

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every layer while it runs."""
        handles = [part.register_forward_hook(self._hook(name)) for name, part in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def see(module: nn.Module, given: Any, out: Any) -> None:
            if all(name != seen for seen, _, _ in self.order):
                last = 2 if isinstance(module, SpikingLayer) else -self._rank(module)
                made = out.spk if isinstance(module, SpikingLayer) else out
                self.order.append((name, module, (tuple(given[0].shape[last:]), tuple(made.shape[last:]))))
            if isinstance(module, SpikingLayer):
                self.spiking.setdefault(name, []).append(out)
            elif isinstance(module, _COUNTED):
                self.inputs.setdefault(name, []).append(given[0])

        return see

    @staticmethod
    def _rank(module: nn.Module) -> int:
        """Dimensions of one sample at one step."""
        return 3 if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm) else 1

    def sum_up(self, sums: Sums) -> None:
        """Add what `sums` wishes for."""
        for name, runs in self.spiking.items():
            if name in sums.counts:
                for run in runs:
                    sums.add(name, run.spk.float().sum(0) if run.spk.dtype != torch.float64 else run.spk.sum(0))
        for name, inputs in self.inputs.items():
            for x in inputs:
                sums.spent(name, x.reshape(-1, *x.shape[x.dim() - self._rank(self.modules[name]) :]))

    def tell(self, observer: Observer, steps: int, batch: int) -> None:
        """Hand on what was seen: a layer that was called step by step as if it had been called once."""
        for name, _, _ in self.order:
            module = self.modules[name]
            if isinstance(module, SpikingLayer):
                runs = self.spiking[name]
                spk = runs[0].spk if len(runs) == 1 else torch.cat([run.spk for run in runs])
                mem = runs[0].mem if len(runs) == 1 else torch.cat([run.mem for run in runs])
                if module.dynamics.spiking:
                    observer.spiking(name, module, Firing(spikes_over_time(spk), mem.detach(), spk, True))
            else:
                rows = [x.reshape(-1, *x.shape[x.dim() - self._rank(module) :]) for x in self.inputs[name]]
                x = torch.cat(rows) if len(rows) > 1 else rows[0]
                constant = len(rows) == 1 and steps > 1 and x.shape[0] == batch
                observer.connection(name, module, x, steps if constant else 1)
