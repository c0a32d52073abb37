"""The notation of networks, second half: tokens -> layers with shapes, and every rule on what may stand where.

Pure Python, so that configuration checks run without torch. Errors point at the token with a caret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from snnexp.config import ModelConf
from snnexp.errors import ConfigError
from snnexp.models.residual import Blocks
from snnexp.models.tokens import BRANCHES, Token, parse, spec_error

__all__ = [
    "NORMS",
    "WEIGHT_KINDS",
    "LayerPlan",
    "Shape",
    "Token",
    "constant_layers",
    "parse",
    "plan",
    "why_not_in_segments",
    "why_not_on_engine",
]

Shape = tuple[int, ...]  # [C, H, W], or [N] once flattened

WEIGHT_KINDS = frozenset({"conv", "linear", "recurrent"})
NORMS = ("batch_norm", "layer_norm")
DROPOUT_KINDS = frozenset({"dropout", "dropout_step", "dropout_rate"})
_NAMES = {"linear": "fc", "recurrent": "rfc", "batch_norm": "bn", "layer_norm": "ln", "neunorm": "nn", "spiking": "sn"}
_NAMES |= {
    "delay": "dl",
    "max_pool": "mp",
    "avg_pool": "ap",
    "dropout": "dp",
    "dropout_step": "dpt",
    "dropout_rate": "dpm",
    "flatten": "flat",
    "conv": "conv",
    "shortcut": "skip",
    "join": "add",
}


@dataclass(frozen=True)
class LayerPlan:
    """One layer with its shapes, before anything is built. `params`: trainable values, without the neurons' own."""

    token: Token
    kind: str
    name: str  # conv1, fc1, sn1, ... in order; the same names in metrics, checkpoints and messages
    in_shape: Shape
    out_shape: Shape
    args: Mapping[str, int | float]
    bias: bool
    params: int
    position: int  # index in the expanded list of layers

    @property
    def fan_in(self) -> int:
        """Inputs of one output neuron: C * k * k, or the number of input features."""
        if self.kind == "conv":
            return self.in_shape[0] * int(self.args["k"]) ** 2
        return prod(self.in_shape)


def effective_spec(model: ModelConf) -> str:
    """Return the specification that is built: with model.pooling=average every MP is an AP.

    Max pooling over neurons that fire at different steps gives trains of up to k^2 spikes, which breaks the rule of one
    spike per neuron; average pooling keeps a total of at most one (ETTFS). With model.neunorm.form=off every NN goes.
    """
    if model.module is not None:
        return model.module
    spec = model.spec.replace("MP", "AP") if model.pooling == "average" else model.spec
    return re.sub(r"-\s*NN\s*(?=[-)}|]|$)", "", spec) if model.neunorm.form == "off" else spec


def plan(spec: str, in_shape: Shape, num_classes: int, votes: int = 1, bias: bool = True) -> list[LayerPlan]:
    """Infer all shapes of `spec` for input [C, H, W] and check that it ends in one output per class.

    Args:
        votes: output neurons per class; if more than 1 and the spec has no VOTE, VOTE<votes> is appended.
        bias: of convolutions and FC; those followed by BN never have one.
    Raises: ConfigError that points at the token that does not fit, with the sizes involved.
    """
    tokens = parse(spec)
    has_vote = any(token.kind == "vote" for token in tokens)
    if votes > 1 and not has_vote:
        tokens.append(Token(f"VOTE{votes}", "vote", {"n": votes}, len(spec), len(spec)))
    layers: list[LayerPlan] = []
    shape: Shape = tuple(in_shape)
    counters: dict[str, int] = {}
    blocks = Blocks(spec)

    def add(
        token: Token, kind: str, out_shape: Shape, args: Mapping[str, int | float], params: int, biased: bool
    ) -> None:
        nonlocal shape
        stem = _NAMES.get(kind, kind)
        counters[stem] = counters.get(stem, 0) + 1
        name = f"{stem}{counters[stem]}"
        layers.append(LayerPlan(token, kind, name, shape, out_shape, args, biased, params, len(layers)))
        shape = out_shape

    for index, token in enumerate(tokens):
        following = tokens[index + 1].kind if index + 1 < len(tokens) else None
        _check_neighbours(spec, token, layers, following)
        kind = token.kind
        ahead = following if kind == "delay" else kind
        if ahead in ("linear", "recurrent") and len(shape) == 3:  # a delay of an FC's inputs has one for each of them
            add(replace(token, text="FLAT"), "flatten", (prod(shape),), {}, 0, False)
        if kind in BRANCHES:
            add(token, kind, blocks.shape_after(token, shape, layers[-1].kind if layers else ""), {}, 0, False)
        elif kind in ("linear", "recurrent"):
            out = int(token.args["out"]) if "out" in token.args else _outputs(spec, tokens, index, num_classes)
            biased = bias and following != "batch_norm"
            numbers = {**{key: int(value) for key, value in token.args.items()}, "out": out}
            weights = out * shape[0] + (out * out if kind == "recurrent" else 0) + (out if "max" in numbers else 0)
            add(token, kind, (out,), numbers, weights + out * biased, biased)
        elif kind == "conv":
            out_shape, args = _conv(spec, token, shape)
            biased = bias and following != "batch_norm"
            weights = out_shape[0] * shape[0] * int(args["k"]) ** 2
            add(token, kind, out_shape, args, weights + out_shape[0] * biased, biased)
        elif kind in ("max_pool", "avg_pool") and not (kind == "avg_pool" and len(shape) == 1):
            out_shape, args = _pool(spec, token, shape)
            add(token, kind, out_shape, args, 0, False)
        elif kind in ("vote", "avg_pool"):  # PLIF's APk10s10 after the last layer is VOTE10
            out_shape, args = _vote(spec, token, shape)
            add(token, "vote", out_shape, args, 0, False)
        elif kind == "flatten":
            add(token, kind, (prod(shape),), {}, 0, False)
        else:
            add(token, kind, shape, *_same_shape(token, shape), False)
    _check_end(spec, layers, num_classes)
    return layers


def _same_shape(token: Token, shape: Shape) -> tuple[Mapping[str, int | float], int]:
    """Arguments and number of parameters of a layer that leaves the shape alone."""
    if token.kind in ("batch_norm", "layer_norm"):
        return {}, 2 * shape[0]
    if token.kind == "neunorm":
        return {}, prod(shape)
    if token.kind == "delay":
        return {"max": int(token.args["max"])}, shape[0]
    return ({"rate": token.args.get("rate", 0.5)} if token.kind in DROPOUT_KINDS else {}), 0


def constant_layers(layers: Sequence[LayerPlan]) -> int:
    """How many of the first layers give the same at each step if the input is the same at each step."""
    return next(layer.position for layer in layers if layer.kind in ("spiking", "dropout_step", "delay", "fork"))


def why_not_in_segments(
    layers: Sequence[LayerPlan], bn_per_step: bool, constant_input: bool, key: str = "checkpoint_steps"
) -> str | None:
    """Say why these layers cannot be trained a segment of time at a time, or return None if they can."""
    rates = next((layer for layer in layers if layer.kind == "dropout_rate"), None)
    if rates is not None:
        return (
            f"trainer.{key}: {rates.token.text} drops inputs by their rate over all time steps, which is not known "
            f"before the last of them. Use DP in model.spec, or trainer.{key}=null."
        )
    rest = layers[constant_layers(layers) :] if constant_input else layers
    norm = next((layer.name for layer in rest if layer.kind == "batch_norm"), None)
    if norm is None or bn_per_step:
        return None
    return (
        f"trainer.{key}: {norm} normalises by the statistics of all time steps, which are then never in "
        "memory together. Use model.bn_per_step=true (the statistics of each step), LN in place of BN in model.spec, "
        f"or trainer.{key}=null."
    )


def why_not_on_engine(layers: Sequence[LayerPlan], engine: str) -> str | None:
    """Say why the engine asked for cannot run these layers, or return None if it can, or none was asked for."""
    if engine in ("auto", "reference"):
        return None
    layer = next((layer for layer in layers if layer.kind == "recurrent" and "max" in layer.args), None)
    if layer is None:
        return None
    return (
        f"neuron.engine={engine}: it has no kernel for a recurrence with delays ({layer.token.text}). Use "
        "neuron.engine=auto, which takes the reference for that layer alone, or reference."
    )


def _outputs(spec: str, tokens: list[Token], index: int, num_classes: int) -> int:
    """Size of an FC without a number: one neuron per class and vote. Only the last weight layer may leave it out."""
    later = tokens[index + 1 :]
    if any(token.kind in WEIGHT_KINDS for token in later):
        token = tokens[index]
        raise spec_error(spec, token.start, token.end, "only the last FC may leave its number out: write FC128, say.")
    groups = [int(token.args.get("n", token.args.get("k", 1))) for token in later if token.kind in ("vote", "avg_pool")]
    return num_classes * prod(groups)


def _size(shape: Shape) -> str:
    return "x".join(str(n) for n in shape)


def _check_neighbours(spec: str, token: Token, before: list[LayerPlan], following: str | None) -> None:
    """Rules on what may stand beside what."""

    def wrong(message: str) -> ConfigError:
        return spec_error(spec, token.start, token.end, message)

    last = before[-1] if before else None
    if token.kind == "neunorm":
        if last is None or last.kind != "spiking":
            raise wrong("NN normalises spikes, so it stands right after an SN: c64k3-SN-NN.")
        if len(last.out_shape) != 3:
            raise wrong("NN needs feature maps, so it follows the SN of a convolution, not of an FC.")
        if following is None:
            raise wrong("NN changes what the next layer sees, and there is no next layer.")
    if token.kind == "delay" and following is None:
        raise wrong(f"{token.text} delays what the next layer sees, and there is no next layer.")
    if token.kind == "recurrent" and following != "spiking":
        raise wrong(f"{token.text} feeds its own spikes back, so an SN must follow it directly: {token.text}-SN.")
    if token.kind == "batch_norm" and last is not None and last.kind == "spiking":
        return  # legal, though unusual: BN of spikes
    if token.kind == "vote" and (last is None or last.kind not in ("spiking", "vote")):
        raise wrong(f"{token.text} averages output spikes, so it stands after the last SN.")


def _maps(spec: str, token: Token, shape: Shape) -> tuple[int, int, int]:
    if len(shape) != 3:
        message = f"{token.text} needs maps [C, H, W], but its input is flat ({_size(shape)})."
        message += " Move it before FLAT or the first FC."
        raise spec_error(spec, token.start, token.end, message)
    return shape[0], shape[1], shape[2]


def _conv(spec: str, token: Token, shape: Shape) -> tuple[Shape, dict[str, int | float]]:
    _, height, width = _maps(spec, token, shape)
    size, stride = int(token.args["k"]), int(token.args.get("s", 1))
    pad = int(token.args.get("p", size // 2 if size % 2 else 0))
    new = tuple((n + 2 * pad - size) // stride + 1 for n in (height, width))
    if min(height, width) + 2 * pad < size:
        message = f"{token.text} has a window of {size}x{size}, but its input is {_size(shape)} (padding {pad})."
        raise spec_error(spec, token.start, token.end, f"{message} Pool less before it, or use a smaller window.")
    args: dict[str, int | float] = {"out": int(token.args["out"]), "k": size, "s": stride, "p": pad}
    return (int(args["out"]), *new), args


def _pool(spec: str, token: Token, shape: Shape) -> tuple[Shape, dict[str, int | float]]:
    channels, height, width = _maps(spec, token, shape)
    size = int(token.args["k"])
    stride = int(token.args.get("s", size))
    if min(height, width) < size:
        message = f"{token.text} pools {size}x{size} pixels, but its input is {_size(shape)}."
        message += " Pooling is deeper than the image."
        raise spec_error(spec, token.start, token.end, f"{message} Take a pooling out, or use a larger input.")
    return (channels, (height - size) // stride + 1, (width - size) // stride + 1), {"k": size, "s": stride}


def _vote(spec: str, token: Token, shape: Shape) -> tuple[Shape, dict[str, int | float]]:
    group = int(token.args.get("n", token.args.get("k", 1)))
    start, end = token.start, token.end
    if len(shape) != 1:
        raise spec_error(
            spec, start, end, f"{token.text} needs a flat input, but it is {_size(shape)}: end in FC-SN first."
        )
    if token.args.get("s", group) != group:
        raise spec_error(spec, start, end, f"{token.text}: voting needs a stride equal to its size, as in VOTE{group}.")
    if shape[0] % group:
        message = f"{token.text} does not divide {shape[0]} output neurons into equal groups."
        raise spec_error(
            spec, start, end, f"{message} Use FC{-(-shape[0] // group) * group} before it, or FC without a number."
        )
    return (shape[0] // group,), {"n": group}


def _check_end(spec: str, layers: list[LayerPlan], num_classes: int) -> None:
    """The network ends in spiking neurons (and perhaps votes), one output per class."""
    body = [layer for layer in layers if layer.kind != "vote"]
    last = body[-1]
    token = last.token
    if not any(layer.kind in WEIGHT_KINDS for layer in body):
        raise spec_error(spec, 0, len(spec), "the network has no layer with weights: add FC before the last SN.")
    if last.kind != "spiking":
        raise spec_error(spec, token.start, token.end, f"the network must end in SN, not in {token.text}: append -SN.")
    final = layers[-1]
    if final.out_shape != (num_classes,):
        weight = next(layer for layer in reversed(body) if layer.kind in WEIGHT_KINDS)
        group = prod(int(layer.args["n"]) for layer in layers if layer.kind == "vote")
        votes = f" ({group} neurons per class)" if group > 1 else ""
        message = (
            f"the network ends in {_size(final.out_shape)} outputs, but the data set has {num_classes} classes{votes}."
        )
        advice = f" Use FC{num_classes * group}, or FC without a number."
        raise spec_error(spec, weight.token.start, weight.token.end, message + advice)
