"""Keys that a data set never reads are refused before any file is touched, with those that it does read."""

from __future__ import annotations

import pytest
import torch

from snnexp.config import AugmentConf, DatasetConf, EventDatasetConf, ImageDatasetConf, RandmanDatasetConf
from snnexp.data import open_data
from snnexp.data.facts import FACTS, unread_keys
from snnexp.data.readers import cifar10dvs, dvs128
from snnexp.errors import ConfigError


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        (EventDatasetConf(name="nmnist", variant="tonic"), "variant=tonic: dataset=nmnist never reads this key"),
        (EventDatasetConf(name="shd", split="plif"), "split=plif: dataset=shd never reads this key"),
        (EventDatasetConf(name="ssc", val_fraction=0.2), "val_fraction=0.2: dataset=ssc never reads this key"),
        (EventDatasetConf(name="shd", augment=AugmentConf(flip_polarity=0.5)), "events have no polarity"),
        (EventDatasetConf(name="nmnist", augment=AugmentConf(crop_padding=2)), "dataset.augment.shift"),
        (RandmanDatasetConf(name="randman", store="/x"), "store=/x: dataset=randman never reads this key"),
        (ImageDatasetConf(name="mnist", augment=AugmentConf(jitter_ms=1.0)), "jitter_ms=1.0: dataset=mnist never"),
        (EventDatasetConf(name="cifar10dvs", split="plf"), "Did you mean plif"),
        (EventDatasetConf(name="dvs128", variant="trial"), "Did you mean trials"),
    ],
)
def test_unread_keys_are_refused(conf: DatasetConf, message: str) -> None:
    (error,) = unread_keys(conf)
    assert message in error
    if "never reads" in error:
        assert "val_fraction" in error and "split_seed" in error and " variant" not in error.split("it reads")[1]
    if conf.name == "randman":  # needs no files: the same at the door of the data path
        with pytest.raises(ConfigError, match="never reads this key"):
            open_data(conf, torch.device("cpu"))


@pytest.mark.parametrize("name", list(FACTS))
def test_defaults_and_the_named_choices_pass(name: str) -> None:
    kind = EventDatasetConf if FACTS[name].kind == "events" else ImageDatasetConf
    assert unread_keys(kind(name=name)) == []
    for key, choices in (("variant", FACTS[name].variants), ("split", FACTS[name].splits)):
        for value in choices:
            assert unread_keys(EventDatasetConf(**{"name": name, key: value})) == []  # type: ignore[arg-type]


def test_choices_are_those_of_the_readers() -> None:
    assert FACTS["dvs128"].variants == tuple(dvs128.VARIANTS)
    assert (
        FACTS["cifar10dvs"].variants == tuple(cifar10dvs.VARIANTS) and FACTS["cifar10dvs"].splits == cifar10dvs.SPLITS
    )
