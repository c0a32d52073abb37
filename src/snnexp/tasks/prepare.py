"""task=prepare: fetch, check and pack the data set, and say what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from snnexp.collector import importing
from snnexp.config import Config
from snnexp.terminal import wrapped

if TYPE_CHECKING:
    from snnexp.data.base import DataInfo


def prepare(conf: Config, cfg: DictConfig) -> None:
    """Download what is missing, build the packed event store, and print the sample counts."""
    with importing(freeze=True):
        import torch

        from snnexp.data import open_data
        from snnexp.data.fetching.downloads import prepare as fetch

    print(fetch(conf.dataset))
    source = open_data(conf.dataset, torch.device("cpu"))
    for line in describe_data(source.info, conf):
        print(wrapped(line))


def describe_data(info: DataInfo, conf: Config) -> list[str]:
    """Lines about a data set: what it is, how many samples each split has, and whether it is whole."""
    counts = ", ".join(f"{split} {n:,}" for split, n in info.counts.items())
    variant = f", variant {info.variant}" if info.variant else ""
    whole = "complete" if info.complete else "NOT complete: a part of the official data set"
    limits = [name for name in ("limit_train", "limit_val", "limit_test") if getattr(conf.dataset, name) is not None]
    if limits:
        whole = f"{'' if info.complete else whole + '; '}limited by dataset.{', '.join(limits)}"
    lines = [
        f"data: {info.name}{variant}, {info.num_classes} classes, {counts} samples ({whole}), split {info.split_hash}"
    ]
    return [*lines, *(f"      {note}" for note in info.notes)]
