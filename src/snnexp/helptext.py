"""The text of `snnexp --help`: every group with one line for each option, read from the files in conf/.

The first comment line of an option's file is its description, so a new option documents itself. Standard library only:
help must not wait for torch.
"""

from __future__ import annotations

from pathlib import Path

from snnexp.registry import KINDS, registered_names

GROUPS = {
    "task": "what to do",
    "dataset": "what to learn",
    "neuron": "what a neuron computes",
    "recipe": "each paper's own choices, or the same for all neurons",
    "model": "how neurons are connected",
    "encoder": "how an image becomes input over time",
    "decoder": "how spikes become a decision, and the loss",
    "optimizer": "how weights, thresholds, decays and delays are updated",
    "rescue": "what wakes dead neurons, or keeps them from dying",
    "scheduler": "how the learning rates change",
    "trainer": "how long, how precise, when to stop",
    "tracking": "where the record goes",
    "experiment": "published experiments, each in one file; with a plus: +experiment=NAME",
}

EXAMPLES = (
    ("snnexp", "train a small network on bundled data, under a minute, no download"),
    ("snnexp dataset=nmnist neuron=rouser", "another data set and neuron; model, encoder and decoder follow"),
    ("snnexp dataset=mnist model.spec=c32k3-SN-MP2-FC-SN trainer.max_epochs=5", "your own network, in one line"),
    (
        "snnexp -m neuron=fixed,rouser,plif,ttfs recipe=common seed=0,1,2",
        "a sweep: 12 runs under one parent; then: mlflow ui",
    ),
    ("snnexp task=reproduce +experiment=rouser_fig6b", "a published figure: published, ours, difference, verdict"),
    ("snnexp task=inspect dataset=dvs128 neuron=plif", "look before you train"),
)

KEYS = (
    ("seed=0", "same seed, data, machine and threads: same numbers"),
    ("device=auto|cpu|cuda", ""),
    ("dataset.root=DIR", "folder of the data sets (default: $SNNEXP_DATA, else ./data)"),
    ("dataset.num_steps, .batch_size, .limit_train", "time steps, samples per batch, use fewer samples"),
    (
        "neuron.threshold, .beta, .engine",
        "firing threshold, share of the membrane kept per step, auto|reference|numba|triton",
    ),
    ("optimizer.lr, .lr_threshold, .lr_decay, .lr_delay", "learning rates of weights, thresholds, decays and delays"),
    ("trainer.max_epochs, .precision, .resume", "epochs, 32|bf16, auto|never"),
    ("tracking.uri, .experiment", "MLflow store and experiment"),
)


def describe(path: Path) -> str:
    """The first comment of a configuration file that is not a Hydra directive."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            break
    return ""


def options(conf: Path, group: str) -> dict[str, str]:
    """Option -> description of one group, in alphabetical order."""
    return {path.stem: describe(path) for path in sorted((conf / group).glob("*.yaml"))}


def help_text(conf: Path) -> str:
    """The whole text of `snnexp --help`."""
    lines = [
        "snnexp trains spiking neural networks and keeps a complete record of every run in MLflow.",
        "",
        "Usage: snnexp [-m] [GROUP=OPTION ...] [KEY=VALUE ...]",
        "",
        "Examples:",
    ]
    for command, meaning in EXAMPLES:
        lines += [f"  {command}", f"      {meaning}"]
    for group, meaning in GROUPS.items():
        found = options(conf, group)
        if found:
            width = max(14, *(len(name) for name in found)) + 1
            lines += ["", f"{group}: {meaning}", *(f"  {name:<{width}}{text}" for name, text in found.items())]
    lines += [
        "",
        "Your own code (docs/own_code.md): any of these keys takes package.module:name or file.py:name",
        *(f"  {kind.key:<24}{kind.contract}" for kind in KINDS.values()),
        *(f"  {key}={name}: of the package {package}" for key, name, package in registered_names()),
    ]
    lines += ["", "Keys used most (any key of the configuration can be set; `snnexp --cfg job` prints them all):"]
    lines += [f"  {key:<46} {meaning}".rstrip() for key, meaning in KEYS]
    lines += [
        "",
        "  -m, --multirun   one run for each combination of comma-separated values",
        "  --cfg job        print the composed configuration",
        "  --config-dir DIR add your own options from DIR",
        '  -sc install=bash shell completion: eval "$(snnexp -sc install=bash)"',
        "  --version        print the version",
        "  --hydra-help     Hydra's own flags",
    ]
    return "\n".join(lines)
