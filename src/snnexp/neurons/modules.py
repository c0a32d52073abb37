"""The module of `neuron.module`: made with the sizes and the surrogate that it takes by name, or refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import snntorch
from torch import nn

from snnexp.blame import line_of, said
from snnexp.config import NeuronConf, SurrogateConf
from snnexp.errors import ConfigError
from snnexp.neurons.surrogates import SpikeGrad, build_surrogate
from snnexp.registry import NEURON_MODULES, load

_ALL_AT_ONCE = (
    "it computes all time steps at once and keeps no state from one to the next. Use it within a network of your own "
    "(model.module); neuron=fixed neuron.reset=none is a neuron that integrates without reset"
)
_NO_STEP = "it is the base of other classes, without a step. Take one of those: neuron.module=snntorch.Leaky"
REFUSED: dict[type, str] = {
    **dict.fromkeys(
        (snntorch.LeakyParallel, snntorch.StateLeaky, snntorch.LinearLeaky, snntorch.AssociativeLeaky), _ALL_AT_ONCE
    ),
    **dict.fromkeys((snntorch.SpikingNeuron, snntorch.LIF), _NO_STEP),
    snntorch.GradedSpikes: (
        "it scales what neurons send and is none. Take snntorch.Leaky with graded_spikes_factor in neuron.kwargs"
    ),
    snntorch.DeltaLeaky: (
        "its state is a pair in one argument. The same neuron as neuron.equation, a step(x, mem, spk, *, spike, beta, "
        "threshold) of two lines: new = beta * mem + x; return new, spike(abs(new - mem) - threshold)"
    ),
}
_UNLEARNED: dict[tuple[type, str], str] = {
    (snntorch.Alpha, "learn_alpha"): "snnTorch fails to learn Alpha's alpha. Leave it out; learn_beta works",
    (snntorch.Lapicque, "learn_beta"): (
        "its step uses R and C, which it works out from beta once. Take snntorch.Leaky, whose beta learns"
    ),
}
_DIMENSIONS: dict[type, tuple[int, str]] = {
    snntorch.SLSTM: (1, "takes no maps. Take a network without them: model.spec=FC64-SN-FC-SN, say"),
    snntorch.SConv2dLSTM: (
        3,
        "takes maps only, but networks of model.spec end in neurons without. Write the network yourself "
        "(model.module), with neurons(shape, name) for its maps and a plain layer at its end",
    ),
}


def make_module(conf: NeuronConf, shape: tuple[int, ...], name: str) -> nn.Module:
    """Make `neuron.module` with `neuron.kwargs` for the layer `name` of neurons of this shape, [C, H, W] or [N].

    Sizes that it takes by name and are not given come from the shape, so that one line serves layers of any size; the
    surrogate, if one is configured, arrives as `spike_grad`.

    Raises: ConfigError if it is no module, cannot be a neuron here, or fails.
    """
    source = f"neuron.module={conf.module}"
    kind = load(NEURON_MODULES, str(conf.module))
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(f"{source}: this is no torch.nn.Module.")
    if (reason := REFUSED.get(kind)) is not None:
        raise ConfigError(f"{source}: {reason}.")
    for word in (word for word, value in conf.kwargs.items() if value):
        if (reason := _UNLEARNED.get((kind, word))) is not None:
            raise ConfigError(f"{source}: neuron.kwargs.{word}: {reason}.")
    dimensions, where = _DIMENSIONS.get(kind, (len(shape), ""))
    if len(shape) != dimensions:
        raise ConfigError(f"{source}: {name} has neurons {list(shape)}, and the class {where}.")
    before = len(snntorch.SpikingNeuron.instances)
    try:
        module = kind(**_arguments(source, kind, conf, shape))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{source} neuron.kwargs={dict(conf.kwargs)}: {blame(kind, error)}") from error
    finally:
        del snntorch.SpikingNeuron.instances[before:]  # snntorch#328: it would keep every neuron alive
    if getattr(module, "init_hidden", False):
        raise ConfigError(f"{source}: init_hidden=true hides its state; leave it out.")
    return module


def blame(kind: type, error: Exception) -> str:
    """What went wrong in a module's code, with the user's line; snnTorch's own lines would help nobody."""
    file = inspect.getfile(kind)
    ours = kind.__module__.partition(".")[0] == "snntorch"
    return str(error) if ours else f"{line_of(error, lambda at: at == file)}{said(error)}"


def _arguments(source: str, kind: type[nn.Module], conf: NeuronConf, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the module is made with."""
    takes, given = inspect.signature(kind).parameters, dict(conf.kwargs)
    if issubclass(kind, snntorch.SpikingNeuron):  # YAML's 1 is a number, too; a learned one must not be an integer
        numbers = [name for name in ("alpha", "beta", "threshold", "V") if type(given.get(name)) is int]
        given |= {name: float(given[name]) for name in numbers}
    given = {name: value for name, value in _sizes(shape, given).items() if name in takes} | given
    if len(shape) == 1 and "linear_features" in takes:  # a kernel is for the layers that are maps
        given.pop("kernel_size", None)
    if isinstance(given.get("spike_grad"), str):
        raise ConfigError(
            f"{source}: neuron.kwargs.spike_grad is no word. Say neuron.surrogate.name, with its numbers."
        )
    if conf.surrogate != SurrogateConf():
        if "spike_grad" not in takes:
            raise ConfigError(f"{source}: it takes no spike_grad. Leave neuron.surrogate out, it would change nothing.")
        given["spike_grad"] = SpikeGrad(build_surrogate(conf.surrogate), strict=True)
    return given


def _sizes(shape: tuple[int, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """The names under which modules ask for the neurons' shape, and what each of them means for this one."""
    total, channels = math.prod(shape), shape[0]
    sizes: dict[str, Any] = {"shape": shape, "input_size": total, "hidden_size": total}
    if given.get("all_to_all") is False:  # of RLeaky and RSynaptic, which then want no size
        return sizes
    if len(shape) == 1:
        return sizes | {"linear_features": total}
    return sizes | {"conv2d_channels": channels, "in_channels": channels, "out_channels": channels}
