"""Every check that needs no data: unknown keys, choices, ranges, and what joins two groups. All errors at once.

Hydra and the schemas catch wrong types and misspelt keys while composing. What they let pass is caught here: keys that
came in with `+`, words out of range, and combinations that cannot work.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, read_write
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from snnexp import registry
from snnexp.any_run import TASKS
from snnexp.claims.checks import check_claim
from snnexp.coding_rules import DECODER_LOSSES, check_decoder, check_encoder
from snnexp.config import (
    Config,
    EventDatasetConf,
    ImageDatasetConf,
    ModelConf,
    NeuronConf,
    OptimizerConf,
    OwnDatasetConf,
)
from snnexp.data.facts import FACTS, unread_keys
from snnexp.data.shapes import frame_shape, num_classes
from snnexp.errors import ConfigError, did_you_mean, unknown_choice
from snnexp.models.spec import DROPOUT_KINDS, LayerPlan, effective_spec, plan, why_not_in_segments, why_not_on_engine
from snnexp.models.ways import accumulating
from snnexp.neurons.names import FUSED_SURROGATES, SNNTORCH_PREFIX
from snnexp.own_code import own_words
from snnexp.rescue.rules import check_rescue
from snnexp.schema.fields import ends

TRACKERS = ("mlflow", "off")


def validate(cfg: DictConfig) -> Config:
    """Return the configuration as typed objects, or raise one ConfigError that lists everything that is wrong."""
    errors = list(_unknown_keys(cfg, ""))
    if not errors:
        errors += wrong_spreads(cfg, "")
    if errors:
        raise ConfigError(_listed(errors))
    try:
        conf = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: a value is needed. Give one with {error.full_key}=...") from error
    except InterpolationResolutionError as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(conf, Config)
    errors += _values(conf, "")
    if conf.task in TASKS:  # whatever else it says is about no run of its own
        if errors := [*errors, *_past(conf)]:
            raise ConfigError(_listed(errors))
        return conf
    if not errors:
        errors += _names(conf)
    if conf.claim is not None:
        errors += check_claim(conf.claim)
    if not errors:
        errors += [*_neuron(conf), *_input(conf), *_training(conf), *_decoder(conf), *check_rescue(conf)]
    if not errors:
        errors += _network(conf)
    if errors:
        raise ConfigError(_listed(errors))
    return conf


def _listed(errors: list[str]) -> str:
    return errors[0] if len(errors) == 1 else "\n".join(f"- {error}" for error in errors)


def _unknown_keys(node: DictConfig, prefix: str) -> Iterator[str]:
    """Keys that no schema has; `+neuron.treshold=1` puts them past Hydra and OmegaConf (hydra#981)."""
    schema = OmegaConf.get_type(node)
    known = {f.name for f in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else None
    for key in map(str, node):
        name = f"{prefix}{key}"
        if known is not None and key not in known:
            yield f"{name}: no such key.{did_you_mean(key, known)} Valid keys: {', '.join(sorted(known))}."
        elif (
            isinstance(node._get_node(key), DictConfig)
            and not OmegaConf.is_missing(node, key)
            and node[key] is not None
        ):
            yield from _unknown_keys(node[key], f"{name}.")


def wrong_spreads(node: DictConfig, prefix: str) -> Iterator[str]:
    """Keys that take a number or two to draw between: become floats in place, as OmegaConf makes them."""
    schema = OmegaConf.get_type(node)
    fields = dataclasses.fields(schema) if dataclasses.is_dataclass(schema) else ()
    spread = {f.name: f.default is None for f in fields if "spread" in f.metadata}  # may it be null?
    for key in map(str, node):
        inner = node._get_node(key)
        if key in spread:
            given = node[key]
            if given is None and spread[key]:
                continue
            try:
                numbers = [_number(v) for v in (given if isinstance(given, ListConfig) else [given])]
                if len(numbers) != (2 if isinstance(given, ListConfig) else 1):
                    raise ValueError("not two")
            except (TypeError, ValueError):
                yield f"{prefix}{key}={given}: must be a number, or two to draw between, as in {prefix}{key}=[0.8,0.9]."
                continue
            if numbers != sorted(numbers):
                yield f"{prefix}{key}={given}: the smaller one comes first; write {prefix}{key}={sorted(numbers)}."
            with read_write(node):
                node[key] = numbers if isinstance(given, ListConfig) else numbers[0]
        elif isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_missing():
            yield from wrong_spreads(inner, f"{prefix}{key}.")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)


def _values(conf: Any, prefix: str) -> Iterator[str]:
    """Choices and ranges from the fields' metadata."""
    for f in dataclasses.fields(conf):
        value, name = getattr(conf, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{name}.")
        elif isinstance(value, str) and not value.strip() and not prefix.startswith("claim."):
            yield f"{name}: an empty word. Leave {name} out, or give it a value (is a variable of the shell not set?)."
        elif "choices" in f.metadata and value not in f.metadata["choices"]:
            yield unknown_choice(name, value, f.metadata["choices"])
        elif "low" in f.metadata and value is not None:
            messages = (_out_of_range(v, f.metadata) for v in ends(value))
            if message := next(filter(None, messages), ""):
                yield f"{name}={value}: must be {message}."


def _out_of_range(value: float, limits: Any) -> str:
    wants = {"low": ">=", "high": "<=", "above": ">", "below": "<"}
    if value != value:  # nan compares false with every limit
        return "a number"
    checks = {
        "low": lambda x, y: x >= y,
        "high": lambda x, y: x <= y,
        "above": lambda x, y: x > y,
        "below": lambda x, y: x < y,
    }
    broken = any(limits[key] is not None and not checks[key](value, limits[key]) for key in wants)
    return " and ".join(f"{sign} {limits[key]:g}" for key, sign in wants.items() if limits[key] is not None) * broken


def _names(conf: Config) -> Iterator[str]:
    """`name` in each group is what the code dispatches on."""
    if conf.dataset.name not in FACTS:
        yield unknown_choice("dataset.name", conf.dataset.name, FACTS)
    for key, value, valid in (
        ("decoder.name", conf.decoder.name, DECODER_LOSSES),
        ("tracking.name", conf.tracking.name, TRACKERS),
    ):
        if value not in valid:
            yield unknown_choice(key, value, valid)
    for kind, word in own_words(conf):
        if (message := registry.problem(kind, word)) is not None:
            yield message


VALUES = ("threshold", "beta", "alpha", "learn_alpha")  # of our equation, as snnTorch's classes call them, too


def _foreign_neuron(n: NeuronConf) -> Iterator[str]:
    """A neuron of the user's own: nothing may be set that it would not heed."""
    if n.equation is not None and n.module is not None:
        yield "neuron.equation and neuron.module: a neuron is one or the other. Leave one of them out."
    if n.params and n.equation is None:
        yield f"neuron.params.{next(iter(n.params))}: only neuron.equation has values of its own. Set that, too."
    if n.kwargs and n.module is None:
        yield f"neuron.kwargs.{next(iter(n.kwargs))}: only neuron.module is made with arguments. Set that, too."
    if n.equation is None and n.module is None:
        return
    ours = ["reset", "tau_form", "detach_reset", "ignore_reset_in_backward", "fire_once", "force_last_spike"]
    ours += ["spike_height", "initial_mem", "noise"]
    ours += ["relative_surrogate"] if n.module is None else ["relative_surrogate", "learn_threshold", "learn_beta"]
    key = "equation" if n.module is None else "module"
    for f in dataclasses.fields(n):
        if f.name in ours and getattr(n, f.name) != f.default:
            word = str(getattr(n, f.name)).lower()
            yield f"neuron.{f.name}={word}: neuron.{key} has a step of its own, without it. Start from neuron=fixed."
        elif n.module is not None and f.name in VALUES and getattr(n, f.name) != f.default:
            word = f"neuron.{f.name}={getattr(n, f.name)}"
            yield f"{word}: neuron.module takes its values in neuron.kwargs. Say neuron.kwargs.{f.name}."


def _neuron(conf: Config) -> Iterator[str]:
    n = conf.neuron
    yield from _foreign_neuron(n)
    theta = ends(n.threshold)
    if min(theta) < 0:
        yield f"neuron.threshold={n.threshold}: must be >= 0; below it a neuron at rest fires at every step."
    if n.threshold_param == "tanh" and not all(-1 < v < 1 for v in theta):
        yield f"neuron.threshold={n.threshold}: with threshold_param=tanh it must lie between -1 and 1."
    if n.threshold_param == "softplus" and min(theta) <= 0:
        yield f"neuron.threshold={n.threshold}: with threshold_param=softplus it must be > 0."
    if n.spike_height == "threshold":
        if min(theta) <= 0 or (n.learn_threshold and n.threshold_param == "direct"):
            yield "neuron.spike_height=threshold: thresholds must stay > 0. Set neuron.threshold_param=softplus."
        if n.reset == "zero" and not n.detach_reset:
            yield "neuron.spike_height=threshold: with reset=zero it needs neuron.detach_reset=true."
        if n.fire_once:
            yield "neuron.spike_height=threshold: not with fire_once; first spikes have a time, no height."
    in_parts = next((k for k in ("checkpoint_steps", "truncate_steps") if getattr(conf.trainer, k) is not None), None)
    if n.initial_mem != "zero" and in_parts is not None:
        yield f"neuron.initial_mem={n.initial_mem}: needs all steps at once. Leave trainer.{in_parts} out."
    if n.relative_surrogate and min(theta) <= 0:
        yield f"neuron.threshold={n.threshold}: relative_surrogate divides by the threshold, so it must be > 0."
    if n.decay_param == "sigmoid":
        for name, learned, value in (("beta", n.learn_beta, n.beta), ("alpha", n.learn_alpha, n.alpha)):
            if learned and not all(0 < v < 1 for v in ends(value)):
                yield (
                    f"neuron.{name}={value}: a learned {name} starts strictly between 0 and 1 (it is a sigmoid; a time "
                    f"constant of tau steps is {name} = 1 - 1/tau, tau > 1)."
                )
    if n.learn_alpha and n.alpha is None:
        yield "neuron.learn_alpha=true: there is no current state to learn. Set neuron.alpha, e.g. neuron.alpha=0.75."
    if n.tau_form and 1 in ends(n.beta) and not n.learn_beta:
        yield "neuron.beta=1: with tau_form=true the input is multiplied by 1 - beta = 0, so nothing ever fires."
    if n.force_last_spike and not n.fire_once:
        yield "neuron.force_last_spike=true: needs neuron.fire_once=true."
    if n.engine in ("numba", "triton") and n.surrogate.name.startswith(SNNTORCH_PREFIX):
        yield (
            f"neuron.engine={n.engine}: has no kernel for surrogate {n.surrogate.name}. "
            f"Use neuron.engine=reference (or auto), or one of {', '.join(FUSED_SURROGATES)}."
        )
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels in Python, on any device
    if conf.device == "cpu" and n.engine == "triton" and not interpreted:
        yield "neuron.engine=triton: needs device=cuda. On the CPU use neuron.engine=numba, reference or auto."
    if conf.device == "cuda" and n.engine == "numba":
        yield "neuron.engine=numba: runs on the CPU only. With device=cuda use neuron.engine=triton, reference or auto."


def _input(conf: Config) -> Iterator[str]:
    d = conf.dataset
    yield from check_encoder(conf.encoder, FACTS[d.name].kind, isinstance(d, ImageDatasetConf) and d.normalize)
    yield from unread_keys(d)
    if isinstance(d, OwnDatasetConf) and d.reader in registry.READERS.ours:
        yield f"dataset.reader={d.reader}: this is a data set of ours. Use dataset={d.reader}."
    if isinstance(d, EventDatasetConf) and d.bin_by == "width" and d.bin_ms is None:
        yield "dataset.bin_by=width: needs the width of a bin, e.g. dataset.bin_ms=1."
    if isinstance(d, EventDatasetConf) and d.stride_ms is not None and d.window_ms is None:
        yield f"dataset.stride_ms={d.stride_ms:g}: how long is a window? Set dataset.window_ms, too."


def _decoder(conf: Config) -> Iterator[str]:
    yield from check_decoder(conf.decoder, conf.neuron, conf.dataset.num_steps)
    if conf.decoder.loss == "tet" and conf.decoder.name == "membrane" and conf.decoder.reduce != "mean":
        yield (
            f"decoder.loss=tet with decoder.reduce={conf.decoder.reduce}: it trains the output of every step, and their"
            " mean decides. Use decoder.reduce=mean (decoder=tet has both), or decoder.loss=ce_step."
        )


def _training(conf: Config) -> Iterator[str]:
    t = conf.trainer
    if conf.dataset.val_fraction == 0 and t.patience is not None and conf.dataset.name != "ssc":
        yield "trainer.patience: early stopping looks at validation only. Set dataset.val_fraction above 0."
    if conf.scheduler.kwargs and conf.scheduler.name in ("none", "cosine", "step"):
        yield f"scheduler.kwargs: scheduler={conf.scheduler.name} has keys of its own; torch's class takes these."
    if t.gradient_cutoff is not None:
        yield from _gradient_cutoff(conf, t.gradient_cutoff)
    yield from _optimizer(conf.optimizer)
    if len(conf.optimizer.betas) != 2 or not all(0 <= b < 1 for b in conf.optimizer.betas):
        yield f"optimizer.betas={list(conf.optimizer.betas)}: must be two numbers, each >= 0 and < 1."
    if conf.optimizer.nesterov and conf.optimizer.momentum == 0:
        yield "optimizer.nesterov=true: needs optimizer.momentum above 0."


def _gradient_cutoff(conf: Config, cutoff: float) -> Iterator[str]:
    word, n = f"trainer.gradient_cutoff={cutoff:g}", conf.neuron
    if not 0 < cutoff < 1:
        meant = f" Truncated backpropagation through time is trainer.truncate_steps={cutoff:g}." if cutoff >= 1 else ""
        yield (
            f"{word}: the share of the surrogate's peak below which a derivative counts as 0 lies between 0 and 1, "
            f"both excluded.{meant}"
        )
    elif n.module is not None:
        yield f"{word} with neuron.module={n.module}: it keeps its surrogate to itself. Leave the cutoff out."
    elif n.surrogate.name.startswith(SNNTORCH_PREFIX):
        yield (
            f"{word} with neuron.surrogate.name={n.surrogate.name}: snnTorch's functions keep their derivative to "
            f"themselves. Use one of {', '.join(FUSED_SURROGATES)}."
        )


def _optimizer(o: OptimizerConf) -> Iterator[str]:
    """Keys that would not be heeded, or given twice."""
    heeded = {"adam": ("betas",), "adamw": ("betas",), "sgd": ("momentum", "nesterov")}.get(o.name)
    for key in ("lr", "weight_decay", *(heeded or ())):
        if key in o.kwargs:
            yield f"optimizer.kwargs.{key}: this has a key of its own, optimizer.{key}."
    plain = OptimizerConf(name=o.name)
    for key in () if heeded is not None else ("betas", "momentum", "nesterov"):
        if getattr(o, key) != getattr(plain, key):
            yield f"optimizer.{key}: optimizer={o.name} does not read it. Use optimizer.kwargs={{{key}: ...}}."


def _past(conf: Config) -> Iterator[str]:
    if conf.task in ("evaluate", "export", "probe", "diagnose") and conf.run_id is None:
        yield f"task={conf.task}: needs run_id=<id of an MLflow run>; the last lines of each run print it."
    if conf.tracking.name not in TRACKERS:
        yield unknown_choice("tracking.name", conf.tracking.name, TRACKERS)


def _network(conf: Config) -> list[str]:
    """The network must fit the data: parsed and sized without torch; one of the user's own tells when it is built."""
    if conf.model.module is not None:
        return [*_own_network(conf)]
    if conf.model.kwargs:
        return ["model.kwargs: only a network of your own takes these. Set model.module, too."]
    try:
        votes = conf.decoder.votes if conf.decoder.name == "vote" else 1
        layers = plan(effective_spec(conf.model), frame_shape(conf.dataset), num_classes(conf.dataset), votes)
    except ConfigError as error:
        return [str(error)]
    problems = [
        *_delays(conf),
        *_budget(conf, layers),
        why_not_on_engine(layers, conf.neuron.engine),
        *_agreement(conf, layers),
    ]
    steps = conf.trainer.checkpoint_steps
    if steps is not None and steps < conf.dataset.num_steps:
        problems.append(why_not_in_segments(layers, conf.model.bn_per_step, conf.encoder.name == "direct"))
    cutoff = conf.trainer.truncate_steps
    if cutoff is not None and cutoff < conf.dataset.num_steps:
        direct = conf.encoder.name == "direct"
        problems.append(why_not_in_segments(layers, conf.model.bn_per_step, direct, "truncate_steps"))
    if cutoff is not None and steps is not None:
        problems.append(
            "trainer.truncate_steps with trainer.checkpoint_steps: what is cut off needs no recomputing. Use one."
        )
    return [problem for problem in problems if problem is not None]


def _budget(conf: Config, layers: Sequence[LayerPlan]) -> Iterator[str]:
    """Whether any spikes of the network's own cause synaptic operations that a budget could limit."""
    if conf.decoder.synops is None:
        return
    word, later = f"decoder.synops={conf.decoder.synops:g}", [la.kind for la in layers]
    if not accumulating(layers) and "recurrent" not in later:
        yield (
            f"{word}: no layer with weights is driven by the network's own spikes of 0 or 1 (averages and sums of them "
            "are multiplied). Use decoder.synops=null."
        )
    if conf.neuron.spike_height != "one":
        yield f"{word} with neuron.spike_height={conf.neuron.spike_height}: such spikes are multiplied, not added up."


def _agreement(conf: Config, layers: Sequence[LayerPlan]) -> Iterator[str]:
    word = f"decoder.agreement={conf.decoder.agreement:g}"
    if not conf.decoder.agreement:
        return
    if conf.decoder.name == "first_spike":
        yield f"{word} with decoder=first_spike: spike times have no gradient there. Use decoder.agreement=0."
    elif conf.encoder.name != "rate" and not any(layer.kind in DROPOUT_KINDS for layer in layers):
        yield (
            f"{word}: model.spec has no dropout, so that both passes over a batch would be the same."
            " Put DPM0.2, say, before an FC, or use decoder.agreement=0."
        )


def _own_network(conf: Config) -> Iterator[str]:
    """Keys that a network of the user's own would not heed."""
    plain = ModelConf(name=conf.model.name, spec=conf.model.spec)
    for f in dataclasses.fields(ModelConf):
        value = getattr(conf.model, f.name)
        if f.name not in ("module", "kwargs") and value != getattr(plain, f.name):
            yield f"model.{f.name}: {conf.model.module} is built by its own code, which does not see this key."
    if conf.decoder.synops is not None:
        yield f"decoder.synops: what the spikes of {conf.model.module} reach is its own affair. Leave it out."
    if conf.model.name != "own":
        yield f"model.module with model={conf.model.name}: a network of your own has no spec. Use model=own."
    for key in ("checkpoint_steps", "truncate_steps"):
        if getattr(conf.trainer, key) is not None:
            yield f"trainer.{key}: model.module={conf.model.module} runs all time steps by itself. Leave it out."
    if conf.decoder.name == "vote":
        yield "decoder=vote: let your network vote, and use decoder=rate."
    if conf.decoder.name == "membrane" and conf.decoder.integrate:
        yield (
            "decoder.integrate=true: your network's last layer is its own: neurons(shape, name, spiking=False) "
            "integrates. Say decoder.integrate=false, and return spikes and membranes."
        )


def _delays(conf: Config) -> Iterator[str]:
    delay = conf.model.delay
    for key, sigma in (("sigma", delay.sigma), ("sigma_final", delay.sigma_final)):
        if delay.kernel == "triangle" and sigma is not None and sigma < 1:
            yield (
                f"model.delay.{key}={sigma:g}: a triangle of that half width can lie between two time steps. Use 1 or "
                "more, or model.delay.kernel=gaussian."
            )
    if delay.sigma is not None and delay.sigma_final is not None and delay.sigma_final > delay.sigma:
        yield (
            f"model.delay.sigma_final={delay.sigma_final:g}: the width falls, so it may not be above "
            f"model.delay.sigma={delay.sigma:g}."
        )
