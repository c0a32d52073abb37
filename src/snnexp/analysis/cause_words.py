"""A cause in words: one sentence with its numbers, and what to type, if the cause says so by itself."""

from __future__ import annotations

from snnexp.analysis.causes import BURST, LARGE_UPDATE, Cause, Verdict
from snnexp.config import Config

LONG_MEMORY = 0.99  # beta that keeps two thirds of an input over 40 steps


def sentence(verdict: Verdict) -> str:
    """Why, with the cause's word in brackets, by which runs can be searched."""
    n = verdict.numbers
    match verdict.cause:
        case Cause.input_silent:
            text = "nothing to speak of comes in"
        case Cause.weights_too_small:
            text = "what reaches it is too weak"
            if "reachable" in n:
                text += (
                    f": summed up over all steps without leak, the input of a typical dead neuron comes to "
                    f"{n['reachable']:.3g}, and its threshold is {n['threshold']:.3g}"
                )
        case Cause.inhibited:
            text = (
                f"its input is negative where it counts (mean {n['drive']:.3g} per step): biases, the shift of batch "
                "norm, or negative weights"
            )
        case Cause.threshold_risen:
            text = f"its threshold has risen from {n['start']:.3g} to {n['threshold']:.3g} in training"
        case Cause.leak_too_strong:
            text = (
                f"it forgets its input before the next one comes: a typical dead neuron holds {n['held']:.3g}, and "
                f"would come to {n['reachable']:.3g} without leak"
            )
        case Cause.killed_by_update:
            how = []
            if n["weights"] >= LARGE_UPDATE:
                how.append(f"its weights grew {n['weights']:.3g} times")
            if n["burst"] >= BURST:
                how.append(f"its largest gradient was {n['burst']:.2g} times the usual one")
            text = f"epoch {verdict.epoch} killed it: {' and '.join(how) or 'at once'}"
        case Cause.surrogate_out_of_reach:
            text = "its membranes never come near enough to the threshold for the surrogate to pass a gradient"
        case _:
            text = "its input is far above the threshold"
    return f"{text[0].upper()}{text[1:]} ({verdict.cause})."


def advice(verdict: Verdict, conf: Config) -> list[str]:
    """Overrides that this cause asks for, before what the diagnosis proposes anyway."""
    plain = conf.neuron.module is None and conf.neuron.equation is None
    match verdict.cause:
        case Cause.leak_too_strong if plain and not isinstance(conf.neuron.beta, list) and conf.neuron.beta < 0.99:
            return [f"neuron.beta={LONG_MEMORY:g} (it is {conf.neuron.beta:g})"]
        case Cause.killed_by_update:
            rate, usual = conf.optimizer.lr, 0.1 if conf.optimizer.name == "sgd" else 1e-3
            bursts = verdict.numbers["burst"] >= BURST and conf.trainer.grad_clip is None
            clip = ["trainer.grad_clip=1"] if bursts else []
            return [*clip, f"optimizer.lr={min(rate / 10, usual):.2g} (it is {rate:g})"]
        case Cause.surrogate_out_of_reach:
            return _wider(conf)
    return []


def _wider(conf: Config) -> list[str]:
    """A surrogate that reaches ten times as far, by the key that its name reads."""
    surrogate = conf.neuron.surrogate
    match surrogate.name:
        case "triangular" | "rectangular" | "exponential":
            return [f"neuron.surrogate.width={10 * surrogate.width:g} (it is {surrogate.width:g})"]
        case "fast_sigmoid" | "sigmoid":
            return [f"neuron.surrogate.slope={surrogate.slope / 10:g} (it is {surrogate.slope:g})"]
        case "atan":
            return [f"neuron.surrogate.alpha={surrogate.alpha / 10:g} (it is {surrogate.alpha:g})"]
    return ["neuron.surrogate.name=atan"]
