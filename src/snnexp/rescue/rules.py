"""Which cure fits which neuron, network and trainer: checked without torch, before any work."""

from __future__ import annotations

from collections.abc import Iterator

from snnexp.config import Config
from snnexp.neurons.names import SNNTORCH_PREFIX
from snnexp.schema.fields import ends

HIGHEST = 4  # standard deviations; 3 neurons in 100,000 spike there
INITS = ("fluctuation_init", "variance_init")
OTHERS = "Use another cure, or rescue=none."


def check_rescue(conf: Config) -> Iterator[str]:
    """One message for each reason why the cure cannot work here."""
    name, n = conf.rescue.name, conf.neuron
    word = f"rescue={name}"
    if name == "none":
        return
    if n.module is not None and name in ("rouser", "homeostasis", "wide_surrogate", "pseudospike"):
        yield f"{word} with neuron.module={n.module}: thresholds and surrogates are the module's own. {OTHERS}"
        return
    if name == "rouser" and not n.learn_threshold:
        yield f"{word} with neuron.learn_threshold=false: no threshold would learn. Leave that out, or use rescue=none."
    if name == "homeostasis" and n.learn_threshold:
        yield (
            f"{word} with neuron.learn_threshold=true: gradient and firing rate would pull at the same thresholds. Use "
            "neuron.learn_threshold=false, or rescue=rouser."
        )
    if name == "homeostasis" and n.fire_once and getattr(conf.rescue, "target", 0.0) > 1 / conf.dataset.num_steps:
        yield (
            f"{word} with neuron.fire_once=true and rescue.target={getattr(conf.rescue, 'target', 0.0):g}: a neuron "
            f"that spikes once in {conf.dataset.num_steps} steps never gets there, and every threshold would fall to "
            f"rescue.lowest. Use at most rescue.target={1 / conf.dataset.num_steps:.3g}."
        )
    if name == "bounds":
        yield from _bounds(conf)
    if name == "wide_surrogate" and (":" in n.surrogate.name or n.surrogate.name.startswith(SNNTORCH_PREFIX)):
        yield f"{word} with neuron.surrogate.name={n.surrogate.name}: its width is its own. Use one of ours, atan say."
    if name == "pseudospike":
        yield from _pseudospike(conf)
    if name in INITS:
        yield from _init(conf)
    if name == "resample" and conf.model.weight_norm:
        yield f"{word} with model.weight_norm=true: single rows cannot be redrawn. Set model.weight_norm=false."


def _bounds(conf: Config) -> Iterator[str]:
    n, r = conf.neuron, conf.rescue
    if n.fire_once:
        yield (
            "rescue=bounds with neuron.fire_once=true: a neuron that spikes once has no rate to bound. Use "
            "rescue=rouser, homeostasis or resample."
        )
    if n.spike_height != "one":
        yield f"rescue=bounds with neuron.spike_height={n.spike_height}: spikes are no counts. {OTHERS}"
    lower, upper = getattr(r, "lower", 0.0), getattr(r, "upper", 1.0)
    if lower > upper:
        yield f"rescue.lower={lower:g}: it lies above rescue.upper={upper:g}."


def _pseudospike(conf: Config) -> Iterator[str]:
    n, t = conf.neuron, conf.trainer
    if n.equation is not None:
        yield f"rescue=pseudospike with neuron.equation={n.equation}: it follows our own membranes' decay. {OTHERS}"
    if n.spike_height != "one":
        yield f"rescue=pseudospike with neuron.spike_height={n.spike_height}: a pseudospike is a part of 1. {OTHERS}"
    if n.force_last_spike:
        yield (
            "rescue=pseudospike with neuron.force_last_spike=true: who is silent spikes at the last step already. Use "
            "neuron.force_last_spike=false, or rescue=none."
        )
    for key in ("checkpoint_steps", "truncate_steps"):
        steps = getattr(t, key)
        if steps is not None and steps < conf.dataset.num_steps:
            yield (
                f"rescue=pseudospike with trainer.{key}={steps}: who stayed silent is known from all steps at once "
                f"only. Leave trainer.{key} out."
            )
    if conf.model.module is not None:
        yield f"rescue=pseudospike with model.module={conf.model.module}: it hands its spikes on itself. {OTHERS}"


def _init(conf: Config) -> Iterator[str]:
    word, highest = f"rescue={conf.rescue.name}", max(ends(conf.neuron.threshold))
    if conf.rescue.name == "variance_init" and highest > HIGHEST:
        yield (
            f"{word} with neuron.threshold={highest:g}: a membrane of unit variance never gets there. Use at most "
            f"{HIGHEST}, or rescue=fluctuation_init."
        )
    if conf.trainer.init_from is not None and getattr(conf.rescue, "when", "start") == "start":
        yield f"{word} with trainer.init_from: it would draw the weights anew. Use rescue.when=diagnosed."
    if conf.model.weight_norm:
        yield f"{word} with model.weight_norm=true: weights are standardised at each pass. Set model.weight_norm=false."
