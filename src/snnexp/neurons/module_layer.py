"""A neuron that is a module of its own: one of snnTorch's classes, or a user's nn.Module with a one-step forward.

    module(x_t, *states) -> spikes, *states       states: as many as it returns; the last one is the membrane

States have the shape of the input and start at zero; how many there are, a first call of module(x_t) tells. A forward
whose first state is called `spk` gets the spikes of the step before, too. It runs step by step, as the reference engine
does.
"""

from __future__ import annotations

import inspect
from collections import namedtuple
from typing import Any

import torch
from torch import Tensor, nn

from snnexp.config import NeuronConf
from snnexp.errors import ConfigError
from snnexp.layout import laid_as, stacked
from snnexp.neurons.engines import LayerRun, pooled, spikes_over_time
from snnexp.neurons.layer import NeuronOutput, SpikingLayer, Within
from snnexp.neurons.modules import blame, make_module


def build_layer(conf: NeuronConf, shape: tuple[int, ...], name: str, spiking: bool = True) -> SpikingLayer:
    """Build the layer for `neuron`: of our equation, a user's, or a module.

    Raises: ConfigError as `SpikingLayer` does, and if the module cannot be made or run.
    """
    return SpikingLayer(conf, shape, name, spiking) if conf.module is None else ModuleLayer(conf, shape, name, spiking)


class ModuleLayer(SpikingLayer):
    """A layer whose neurons are `neuron.module`, made with `neuron.kwargs`. Its own parameters are what learns."""

    module: Any

    def __init__(self, conf: NeuronConf, shape: tuple[int, ...], name: str, spiking: bool = True) -> None:
        super().__init__(conf, shape, name, spiking)
        self.source = f"neuron.module={conf.module}"
        if conf.engine not in ("auto", "reference"):
            raise ConfigError(f"neuron.engine={conf.engine}: {self.source} runs step by step; use auto or reference.")
        if not spiking:
            raise ConfigError(f"{self.source}: it cannot be a readout without spikes; set decoder.integrate=false.")
        self.engine, self.engine_reason = self.engine_on(torch.device("cpu"))
        self.module = make_module(conf, self.shape, name)
        takes = list(inspect.signature(self.module.forward).parameters)
        self.sees_spikes = takes[1:2] == ["spk"]  # snntorch.RLeaky, RSynaptic
        with torch.no_grad():
            count = len(self._step(torch.zeros(1, *shape), [])) - 1
        self.state_type: Any = namedtuple("State", ["mem", "spk", *(f"state{i}" for i in range(count))])  # type: ignore[misc]
        self._forget()

    @property
    def states(self) -> int:
        """How many numbers a neuron carries from step to step."""
        return len(self.state_type._fields)

    def learned(self) -> dict[str, Tensor]:
        """The module's parameters, by name."""
        return {name.replace(".", "_"): p for name, p in self.module.named_parameters()}

    def effective(self, name: str) -> Tensor | None:
        """The module's own value of this name, if it has one for each neuron or for all."""
        found = getattr(self.module, name, None)
        return found if isinstance(found, Tensor) else None

    @property
    def threshold(self) -> Tensor:
        """The module's own; nan if it has none."""
        found = self.effective("threshold")
        return torch.full_like(self.raw_threshold, torch.nan) if found is None else found

    def threshold_parameters(self) -> list[nn.Parameter]:
        """Those of the module's parameters that are called threshold."""
        return [p for name, p in self.module.named_parameters() if name.endswith("threshold")]

    def decay_parameters(self) -> list[nn.Parameter]:
        """Those that are called alpha or beta."""
        return [p for name, p in self.module.named_parameters() if name in ("alpha", "beta")]

    def engine_on(self, device: torch.device) -> tuple[str, str]:
        """Always step by step."""
        return "reference", f"{self.source} runs step by step"

    def can_pool(self, x: Tensor) -> bool:
        """Pooling is torch's."""
        return False

    def can_normalise(self, x: Tensor) -> bool:
        """Normalising is batch norm's own."""
        return False

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        recurrent: Tensor | None = None,
        within: Within | None = None,
        last: bool = True,
    ) -> NeuronOutput | LayerRun:
        """Run all time steps; see `SpikingLayer`."""
        if tuple(x.shape[2:]) != self.shape:
            raise ConfigError(f"{self.name}: the input is {list(x.shape)}, but the neurons are {list(self.shape)}.")
        spk, mem, after = self._over_time(x.to(torch.promote_types(x.dtype, torch.float32)), state, recurrent)
        spk = spk.to(x.dtype)
        if within is None:
            return NeuronOutput(spk, mem, after)
        counts = spikes_over_time(spk, high=True) if within.counts else None  # graded spikes count as one
        return LayerRun(pooled(spk, within.pool), mem.detach() if within.private else mem, counts)

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """Return the state at rest."""
        zero = torch.zeros(batch_size, *self.shape, device=device or self.raw_beta.device, dtype=dtype)
        return self.state_type(*[zero] * self.states)

    def single_step(self, x_t: Tensor, state: Any, last: bool = False) -> tuple[Tensor, Tensor, Any]:
        """Run one step."""
        spk, *states = self._step(x_t.to(state.mem.dtype), list(state[1 if self.sees_spikes else 2 :]))
        after = self.state_type(states[-1] if states else spk, spk, *states)
        return spk.to(x_t.dtype), after.mem, after

    def _over_time(self, x: Tensor, state: Any, recurrent: Tensor | None) -> tuple[Tensor, Tensor, Any]:
        state = self.init_state(x.shape[1], x.device, x.dtype) if state is None else state
        state = laid_as(state, x[0])
        spks, mems = [], []
        for x_t in x.unbind(0):
            if recurrent is not None:
                x_t = torch.addmm(x_t, state.spk, recurrent.to(x.dtype).t())
            spk, mem, state = self.single_step(x_t, state)
            spks.append(spk)
            mems.append(mem)
        self._forget()
        return stacked(spks), stacked(mems), state

    def _forget(self) -> None:
        """snnTorch's neurons keep their last state, and with it the graph of the batch."""
        if hasattr(self.module, "reset_mem"):
            self.module.reset_mem()

    def _step(self, x_t: Tensor, states: list[Tensor]) -> tuple[Tensor, ...]:
        try:
            out = self.module(x_t, *states)
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch's: what to lower is said elsewhere
                raise
            why = blame(type(self.module), error)
            raise ConfigError(
                f"{self.source}: its step failed in layer {self.name} with neurons {list(self.shape)}: {why}"
            ) from error
        out = out if isinstance(out, tuple) else (out,)
        if not all(isinstance(o, Tensor) and o.shape == x_t.shape for o in out):
            shapes = ", ".join(str(list(o.shape)) if isinstance(o, Tensor) else type(o).__name__ for o in out)
            raise ConfigError(
                f"{self.source}: its step must return (spikes, *states), each of the shape of its input, "
                f"{list(x_t.shape)}; it returned {shapes}."
            )
        return out
