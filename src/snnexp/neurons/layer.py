"""The spiking layer: owns thresholds and decays, hands the time loop to an engine, never keeps state."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from snntorch import SpikingNeuron
from torch import Tensor, nn
from torch.nn import functional

from snnexp import collectives
from snnexp.config import NeuronConf
from snnexp.errors import ConfigError, unknown_choice
from snnexp.layout import memory_order
from snnexp.neurons.custom import OURS, Equation, Param, load_equation
from snnexp.neurons.engines import (
    LayerRun,
    can_count_near,
    can_normalise,
    can_pool,
    choose_engine,
    run_layer,
    run_neurons,
)
from snnexp.neurons.engines.calls import InputNorm, Near
from snnexp.neurons.equation import Dynamics, Pool, State, advance, initial_state, reset, state_names, value_dict
from snnexp.neurons.names import RESETS
from snnexp.neurons.surrogates import SpikeGrad, build_surrogate, with_value


class NeuronOutput(NamedTuple):
    """Spikes and membranes before the reset, both [T, B, *shape], and the state after the last step."""

    spk: Tensor
    mem: Tensor
    state: State


class Within(NamedTuple):
    """What surrounds a layer in a network; see `engines.run_layer`."""

    pool: Pool | None = None
    counts: bool = False
    private: bool = False
    needed: bool = False
    norm: InputNorm | None = None
    unseen: bool = False
    near: Near | None = None


# Options of the equation that are keys of the configuration.
OPTIONS = {f.name for f in fields(Dynamics)} & {f.name for f in fields(NeuronConf)} - {"surrogate", "equation"}


def build_dynamics(conf: NeuronConf, spiking: bool = True) -> Dynamics:
    """Build the options of the equation from the configuration.

    Raises: ConfigError for an unknown reset or surrogate.
    """
    if conf.reset not in RESETS:
        raise ConfigError(unknown_choice("neuron.reset", conf.reset, RESETS))
    options = {f.name: getattr(conf, f.name) for f in fields(Dynamics) if f.name in OPTIONS}
    equation = None if conf.equation is None else load_equation(conf.equation, conf.params, spiking)
    return Dynamics(build_surrogate(conf.surrogate), **options, spiking=spiking, equation=equation)


class SpikingLayer(SpikingNeuron):  # type: ignore[misc]
    """A layer of neurons of shape [C, H, W] or [N], built from `NeuronConf`; the first axis is the channel.

    What is stored and learned is `raw_threshold`, `raw_beta` and `raw_alpha` (parameters where learned, else buffers);
    `threshold`, `beta` and `alpha` are the values in effect:

        threshold_param  direct: raw;  softplus: ln(1 + e^raw), always > 0;  tanh: tanh(raw) (LTMD)
        decay_param      sigmoid: 1 - sigmoid(raw), raw = -ln(tau - 1) at the start (PLIF);
                         clamp: raw clamped to [0, 1], where its gradient passes through, so that it can come back

    A value that is not learned is stored as it is. With initial_mem: running_mean, the buffer `initial_mem` is where
    membranes start: in training it follows the mean membrane, after the reset, in which neurons that fired end a batch.

    Args:
        conf: the group `neuron`. Numbers may be YAML integers.
        shape: shape of one sample's neurons.
        name: the layer's name in messages and metrics (sn1, sn2, ...).
        spiking: false makes a leaky integrator for readouts: spikes are zero, mem is the integral, no threshold learns.
    Attributes:
        engine, engine_reason: what ran the last forward pass, and why; None before.
        overwrite_input: let the engine reuse the input's memory (see `run_neurons`); models set it where safe.
    Raises: ConfigError if a value is out of the range that its parametrisation can express.
    """

    raw_threshold: Tensor
    raw_beta: Tensor
    raw_alpha: Tensor
    engine: str | None = None
    engine_reason: str | None = None
    overwrite_input: bool = False

    def __init__(self, conf: NeuronConf, shape: tuple[int, ...], name: str, spiking: bool = True) -> None:
        # Not SpikingNeuron.__init__: it would keep every layer alive in a class-level list (snntorch#328) and claim the
        # name `threshold`. What snnTorch's and NeuroBench's tools read of a neuron is set here instead.
        nn.Module.__init__(self)
        self.init_hidden = self.inhibition = self.output = self.surrogate_disable = self.state_quant = False
        self.graded_spikes_factor = 1.0
        self._reset_mechanism = "subtract" if str(conf.reset).startswith("subtract") else str(conf.reset)

        self.name = name
        self.shape = tuple(shape)
        self.requested_engine = str(conf.engine)
        self.dynamics = build_dynamics(conf, spiking)
        self.spike_grad = SpikeGrad(self.dynamics.surrogate, self.dynamics.strict)
        self.threshold_param = str(conf.threshold_param) if conf.learn_threshold and spiking else "direct"
        self.beta_param = str(conf.decay_param) if conf.learn_beta else "direct"
        self.alpha_param = str(conf.decay_param) if conf.learn_alpha else "direct"
        self._store(
            "threshold", conf.threshold, conf.threshold_per, self.threshold_param, conf.learn_threshold and spiking
        )
        self._store("beta", conf.beta, conf.beta_per, self.beta_param, conf.learn_beta)
        self.has_current = conf.alpha is not None
        if conf.alpha is not None:
            self._store("alpha", conf.alpha, conf.alpha_per, self.alpha_param, conf.learn_alpha)
        self.noise, self.noise_always = float(conf.noise) if spiking else 0.0, conf.noise_in == "always"
        self.follows_rate = False  # the threshold is moved from outside, and belongs to what was trained
        self.initial_mem: Tensor | None
        follows = conf.initial_mem == "running_mean" and spiking
        self.register_buffer("initial_mem", torch.zeros(()) if follows else None)
        self.params: dict[str, Param] = dict(self.dynamics.equation.params if self.dynamics.equation else ())
        for name, param in self.params.items():
            self._store(name, param.init, param.per, "direct", param.learn)
        if self.dynamics.equation is not None:
            self._try_equation(self.dynamics.equation, conf)

    def cut_gradient(self, cutoff: float) -> None:
        """From here on a derivative of the surrogate below this share of its peak is 0."""
        surrogate = replace(self.dynamics.surrogate, cutoff=cutoff)
        self.dynamics = replace(self.dynamics, surrogate=surrogate)
        self.spike_grad = SpikeGrad(surrogate, self.dynamics.strict)

    def _try_equation(self, equation: Equation, conf: NeuronConf) -> None:
        """Run one step. Raises: ConfigError that names the equation's line, or a value that it does not have."""
        for name in OURS:
            if self.dynamics.spiking and name not in equation.values and getattr(conf, f"learn_{name}"):
                raise ConfigError(f"neuron.learn_{name}=true: the equation {equation.reference} has no {name}.")
            if name in equation.values and name not in self.values():
                raise ConfigError(f"neuron.{name}: the equation {equation.reference} needs it. Give it a number.")
        with torch.no_grad():
            state = self.init_state(1)
            advance(torch.zeros_like(state.mem), state, self.values(), self.dynamics, False)

    def _store(self, name: str, value: Any, per: str, parametrisation: str, learn: bool) -> None:
        """Keep a value of the given granularity as the parameter or buffer raw_<name>; two numbers: drawn between."""
        sizes: dict[str, tuple[int, ...]] = {
            "layer": (),
            "channel": (self.shape[0], *(1 for _ in self.shape[1:])),
            "neuron": self.shape,
        }
        if per == "auto":
            per = "neuron" if isinstance(value, Sequence) else "layer"
        if per not in sizes:
            raise ConfigError(unknown_choice(f"neuron.{name}_per", per, ("auto", *sizes)))
        if isinstance(value, Sequence):
            low, high = map(float, value)
            drawn = low + (high - low) * torch.rand(sizes[per], generator=self._generator(name), dtype=torch.float64)
            inverted = [invert(name, v, parametrisation) for v in drawn.flatten().tolist()]
            raw = torch.tensor(inverted, dtype=torch.float32).view(sizes[per])
        else:
            raw = torch.full(sizes[per], invert(name, float(value), parametrisation), dtype=torch.float32)
        if learn:
            self.register_parameter(f"raw_{name}", nn.Parameter(raw))
        else:
            self.register_buffer(f"raw_{name}", raw)

    def _generator(self, name: str) -> torch.Generator:
        """Random numbers of a value's own, from torch's seed: those of the weights stay what they are without it."""
        digest = hashlib.sha256(f"{torch.initial_seed()} {self.name} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    @property
    def threshold(self) -> Tensor:
        """Firing level theta in effect; broadcasts to `shape`."""
        match self.threshold_param:
            case "softplus":
                return functional.softplus(self.raw_threshold)
            case "tanh":
                return torch.tanh(self.raw_threshold)
        return self.raw_threshold

    @property
    def beta(self) -> Tensor:
        """Share of the membrane kept per step; broadcasts to `shape`."""
        return _decay(self.raw_beta, self.beta_param)

    @property
    def alpha(self) -> Tensor | None:
        """Share of the current kept per step; None if the neuron has no current."""
        return _decay(self.raw_alpha, self.alpha_param) if self.has_current else None

    @property
    def states(self) -> int:
        """How many numbers a neuron carries from step to step."""
        return len(state_names(self.dynamics, self.values()))

    def more_values(self) -> dict[str, Tensor]:
        """Values in effect of a user's equation, without threshold, beta and alpha."""
        values = {}
        for name, param in self.params.items():
            raw = values[name] = getattr(self, f"raw_{name}")
            if param.learn and (param.low is not None or param.high is not None):
                values[name] = with_value(raw.clamp(param.low, param.high), gradient_of=raw)
        return values

    def values(self) -> dict[str, Tensor]:
        """All values in effect, by name; each broadcasts to `shape`."""
        return value_dict(self.alpha, self.beta, self.threshold, self.more_values())

    def effective(self, name: str) -> Tensor | None:
        """The value of this name that a step uses; None if there is none."""
        equation = self.dynamics.equation
        return None if equation is not None and name not in equation.values else self.values().get(name)

    def learned(self) -> dict[str, Tensor]:
        """Return the values in effect of what is learned: any of threshold, beta, alpha, and of a user's equation."""
        values = self.values()
        return {name: values[name] for name in (*OURS, *self.params) if self._parameter(name) is not None}

    def threshold_parameters(self) -> list[nn.Parameter]:
        """Return the parameters behind learned thresholds (optimizer.lr_threshold)."""
        return [p for p in (self._parameter("threshold"),) if p is not None]

    def decay_parameters(self) -> list[nn.Parameter]:
        """Return the parameters behind learned beta, alpha and values of a user's equation (optimizer.lr_decay)."""
        return [p for p in map(self._parameter, ("beta", "alpha", *self.params)) if p is not None]

    def _parameter(self, name: str) -> nn.Parameter | None:
        parameters: dict[str, nn.Parameter | None] = self._parameters
        return parameters.get(f"raw_{name}")

    def init_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the state that a batch starts from; device and dtype default to the layer's own."""
        like = self.raw_beta.new_empty((batch_size, *self.shape), device=device, dtype=dtype, requires_grad=False)
        state = initial_state(like, self.dynamics, self.has_current)
        return state if self.initial_mem is None else state._replace(mem=state.mem + self.initial_mem)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        recurrent: Tensor | None = None,
        within: Within | None = None,
        last: bool = True,
    ) -> NeuronOutput | LayerRun:
        """Run all time steps of x [T, B, *shape] from `state` (None: at rest, or `initial_mem`).

        recurrent [N, N]: weights V of a recurrent layer, x[t] + V S[t-1] drives it; as in nn.Linear, V[to, from].
        within: what surrounds the layer in a network. It then starts as without a state, returns a `LayerRun`, and
            pools, counts and saves memory in the same pass where the engine can.
        last: x ends where the sample ends.
        Half-precision input is computed in float32; spikes come back in the input's dtype, membranes in float32.
        Raises: ConfigError if x is not [T, B, *shape], or the engine asked for cannot run here.
        """
        dynamics, engine = self._choose(x, last)
        if within is not None and (state is not None or not last):
            raise ValueError(f"{self.name}: with `within` a layer runs from its start to the sample's end")
        values, dtype = (self.alpha, self.beta, self.threshold), torch.promote_types(x.dtype, torch.float32)
        noise = self._noise(x.shape, x.device, dtype) if dynamics.noisy else None
        options: dict[str, Any] = {"overwrite_input": self.overwrite_input, "recurrent": recurrent, "noise": noise}
        options["more"] = self.more_values()
        if self.initial_mem is not None and state is None:
            state = self.init_state(x.shape[1], x.device, dtype)
        if within is None:
            out: NeuronOutput | LayerRun = NeuronOutput(*run_neurons(x, *values, dynamics, state, engine, **options))
        else:
            options |= {"start": state, **within._asdict()}
            out = run_layer(x, *values, dynamics, engine, **options)
        self.follow(out.spk, out.mem)
        return out

    def _noise(self, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
        def draw(like: Tensor) -> Tensor:
            return torch.randn(like.shape, device=device, dtype=dtype)

        like = torch.empty((), device=device, dtype=dtype).expand(shape)
        return collectives.drawn(draw, like, len(shape) - len(self.shape) - 1).mul_(self.noise)

    @torch.no_grad()
    def follow(self, spk: Tensor, mem: Tensor) -> None:
        """Let `initial_mem`, if there is one, follow a batch's membranes and spikes, [T, B, *shape] (MP-Init)."""
        if self.initial_mem is None or not self.training:
            return
        kept, removed = reset(mem[-1], spk[-1].to(mem.dtype), self.threshold, self.dynamics)
        after = kept if removed is None else kept - removed
        active = (spk > 0).any(0)
        total, count = (after * active).sum(dtype=torch.float64), active.sum()
        mean = collectives.total_of_rows(total) / collectives.total_of_rows(count).clamp(min=1)
        self.initial_mem.mul_(0.9).add_(0.1 * mean)

    def can_pool(self, x: Tensor) -> bool:
        """Whether a pooling layer behind this one is done in the same pass: if the engine can, and nobody hooked in.

        Channels must lie next to each other in memory: over single pixels torch's own pooling is faster.
        """
        channels_last = x.shape[2] >= 4 and memory_order(x)[2:] == [3, 4, 2]  # which maps of one pixel never are
        seen = self._forward_hooks or (self.initial_mem is not None and self.training)
        return channels_last and not seen and can_pool(*self._choose(x), x.dtype)

    def can_normalise(self, x: Tensor) -> bool:
        """Whether a batch norm before this layer is done in the same pass, as far as the engine goes."""
        dynamics, engine = self._choose(x)
        return can_normalise(dynamics, tuple(self.values()), engine, x)

    def can_count_near(self, x: Tensor, recurrent: bool) -> bool:
        """Whether the engine counts membranes in a window in the same pass."""
        dynamics, engine = self._choose(x)
        return can_count_near(dynamics, engine, x, recurrent)

    def _choose(self, x: Tensor, last: bool = True) -> tuple[Dynamics, str]:
        if tuple(x.shape[2:]) != self.shape:
            raise ConfigError(
                f"{self.name}: the input is {list(x.shape)}, but the layer has neurons of shape {list(self.shape)}; "
                f"expected [T, B, {', '.join(map(str, self.shape))}]."
            )
        dynamics = self.active_dynamics(last)
        found = choose_engine(self.requested_engine, x.device, dynamics, x.dtype)
        if found != (self.engine, self.engine_reason):  # a module takes its time to set what it has
            self.engine, self.engine_reason = found
        return dynamics, found[0]

    def engine_on(self, device: torch.device) -> tuple[str, str]:
        """The engine that the layer runs on there, and why."""
        return choose_engine(self.requested_engine, device, self.active_dynamics(), torch.float32)

    def single_step(self, x_t: Tensor, state: State, last: bool = False) -> tuple[Tensor, Tensor, State]:
        """Run one step of x_t [B, *shape], for loops that need the spikes before the next input; any device.

        `last` marks the last step of the sample, which only force_last_spike asks about.
        Returns: spikes in x_t's dtype, membrane before the reset, new state.
        """
        x = x_t if x_t.dtype == state.mem.dtype else x_t.to(state.mem.dtype)
        dynamics = self.active_dynamics(last)
        noise = self._noise(x.shape, x.device, x.dtype) if dynamics.noisy else None
        state = advance(x, state, self.values(), dynamics, last, noise)
        return state.spk.to(x_t.dtype), state.mem, state

    def active_dynamics(self, last: bool = True) -> Dynamics:
        """Return the options in force: silent neurons are forced to fire in training only, where the sample ends.

        Noise is there in training only, unless it is asked for always. Before the sample's end, the state must know who
        has fired: it does with fire_once, which force_last_spike needs.
        """
        noisy = self.noise > 0 and (self.training or self.noise_always)
        if self.dynamics.force_last_spike and not (self.training and last):
            return replace(self.dynamics, force_last_spike=False, noisy=noisy)
        return replace(self.dynamics, noisy=noisy) if noisy else self.dynamics

    def extra_repr(self) -> str:
        kind = "" if self.dynamics.spiking else ", spiking=False"
        return f"{self.name}, {list(self.shape)}, reset={self.dynamics.reset}, engine={self.requested_engine}{kind}"


def _decay(raw: Tensor, parametrisation: str) -> Tensor:
    match parametrisation:
        case "sigmoid":
            return 1 - torch.sigmoid(raw)
        case "clamp":
            return with_value(raw.clamp(0, 1), gradient_of=raw)
    return raw


def invert(name: str, value: float, parametrisation: str) -> float:
    """Return the raw number that the parametrisation maps to `value`. Raises: ConfigError if there is none."""
    match parametrisation:
        case "direct":
            return value
        case "softplus":
            if value > 0:
                return value + math.log(-math.expm1(-value))
            legal = "above 0"
        case "tanh":
            if -1 < value < 1:
                return math.atanh(value)
            legal = "between -1 and 1, both excluded"
        case "sigmoid":
            if 0 < value < 1:
                return math.log1p(-value) - math.log(value)
            legal = "between 0 and 1, both excluded (tau = 1/(1 - beta) above 1)"
        case "clamp":
            if 0 <= value <= 1:
                return value
            legal = "from 0 to 1"
        case _:
            raise ConfigError(f"neuron.{name}: unknown parametrisation {parametrisation}.")
    key = "threshold_param" if name == "threshold" else "decay_param"
    raise ConfigError(f"neuron.{name}={value}: neuron.{key}={parametrisation} can only learn values {legal}.")
