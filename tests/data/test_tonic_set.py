"""`dataset=tonic`: sets in the official layout, read through tonic's own loaders."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from fake_files import nmnist_bytes, random_events, write_dvs_npy
from local_server import Site, serve
from omegaconf import OmegaConf
from tonic.datasets import DVSGesture

from snnexp.any_run import _with_all_keys
from snnexp.config import DatasetConf, structured
from snnexp.data import open_data
from snnexp.data.events.source import EventSource
from snnexp.data.readers.tonic_set import open_reader
from snnexp.data.readers.windows import recording_of
from snnexp.data.shapes import frame_shape, num_classes
from snnexp.errors import ConfigError, DataError
from snnexp.schema.dataset import TonicDatasetConf

CPU = torch.device("cpu")
CARDS = ("cl", "he", "di", "sp")


def conf_of(name: str | None, root: Path, **keys: Any) -> TonicDatasetConf:
    return TonicDatasetConf(name="tonic", root=str(root), **{"class": name, "download": False, **keys})


def write_poker(root: Path, train: int = 5, test: int = 2) -> None:
    """`POKERDVS/pips_{train,test}/<card>/<n>.npy` with the columns t, x, y, p in us, from 5 s on."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for card in CARDS:
            folder = root / "POKERDVS" / f"pips_{part}" / card
            folder.mkdir(parents=True)
            for number in range(count):
                t, x, y, p = random_events(rng, 50, 35, 35, 20_000)
                np.save(folder / f"{number}.npy", np.stack([t + 5_000_000, x, y, p], axis=1))


def test_poker_dvs(tmp_path: Path) -> None:
    write_poker(tmp_path)
    conf = conf_of("POKERDVS", tmp_path, val_fraction=0.2)
    assert (frame_shape(conf), num_classes(conf)) == ((2, 35, 35), 4)
    source = open_data(conf, CPU)
    assert isinstance(source, EventSource)
    info = source.info
    assert info.counts == {"train": 16, "val": 4, "test": 8} and info.class_names == CARDS
    assert (
        info.variant == "POKERDVS"
        and not info.complete
        and any("than tonic.datasets.POKERDVS" in n for n in info.notes)
    )
    first = np.load(tmp_path / "POKERDVS/pips_train/cl/0.npy")  # tonic walks in our order: by name
    store = source.store
    index = store.names.index("train/0")
    got = slice(int(store.starts[index]), int(store.starts[index + 1]))
    assert store.labels[index] == 0 and (store.time[got] == first[:, 0] - first[:, 0].min()).all()
    assert (store.address[got] == (first[:, 3] * 35 + first[:, 2]) * 35 + first[:, 1]).all()
    np.save(tmp_path / "POKERDVS/pips_train/cl/0.npy", first[::2])
    assert open_data(conf, CPU).info.data_fingerprint != info.data_fingerprint


def test_subjects_stay_together_with_windows_and_transforms(tmp_path: Path) -> None:
    write_dvs_npy(tmp_path, users=(1, 2, 3, 4))
    conf = conf_of("DVSGesture", tmp_path, val_fraction=0.25, window_ms=100.0, transforms=["CropTime(max=350000)"])
    source = open_data(conf, CPU)
    assert isinstance(source, EventSource)
    subjects = source.store.subjects
    assert subjects is not None
    people = {split: set(subjects[chosen].tolist()) for split, chosen in source.splits.items()}
    assert len(people["train"]) == 3 and len(people["val"]) == 1 and not people["train"] & people["val"]
    assert people["test"] == {24}
    assert {recording_of(n).split("/")[0] for n in source.store.names} == {"ibmGestureTrain", "ibmGestureTest"}
    assert "by CropTime" in source.info.dropped_events


def test_a_set_without_parts_and_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        folder = tmp_path / "NCALTECH101" / "Caltech101" / name
        folder.mkdir(parents=True)
        for number in range(10):
            (folder / f"image_{number}.bin").write_bytes(nmnist_bytes(*random_events(rng, 30, 60, 80, 9000)))
    with pytest.raises(ConfigError, match=r"NCALTECH101: its recordings differ in size. Set dataset.sensor_size"):
        open_data(conf_of("NCALTECH101", tmp_path), CPU)
    info = open_data(conf_of("NCALTECH101", tmp_path, sensor_size="80x60"), CPU).info
    assert info.counts == {"train": 14, "val": 2, "test": 4} and info.class_names == ("ant", "bee")
    assert info.shape == (2, 60, 80)


def test_hdf5_with_speakers_and_one_channel(tmp_path: Path) -> None:
    folder = tmp_path / "SHD"
    folder.mkdir()
    rows = h5py.vlen_dtype(np.float16), h5py.vlen_dtype(np.uint16)
    for part in ("train", "test"):
        with h5py.File(folder / f"shd_{part}.h5", "w") as file:
            for name, dtype, values in (("times", rows[0], [0.25, 0.5]), ("units", rows[1], [3, 699])):
                data = file.create_dataset(f"spikes/{name}", (6,), dtype)
                for i in range(6):
                    data[i] = values
            file["labels"], file["extra/speaker"] = np.arange(6) % 2, np.arange(6) // 2
            file["extra/keys"] = [b"ZERO", b"ONE"]
    source = open_data(conf_of("SHD", tmp_path, val_fraction=0.3), CPU)
    assert isinstance(source, EventSource)
    assert source.info.shape == (1, 1, 700) and source.info.class_names == ("ZERO", "ONE")
    assert source.store.time[:2].tolist() == [250_000, 500_000] and source.store.address[:2].tolist() == [3, 699]
    assert source.store.subjects is not None and source.info.counts == {"train": 4, "val": 2, "test": 6}


@pytest.mark.parametrize(
    ("name", "keys", "pattern"),
    [
        (None, {}, "dataset=tonic needs the class of a data set: dataset.class=ASLDVS"),
        ("POKERDV", {}, "dataset.class=POKERDV: no such option. Did you mean POKERDVS"),
        ("DSEC", {}, "labelled with optical flow and depth, not classes"),
        ("POKERDVS", {"kwargs": {"speed": 2}}, "dataset.kwargs.speed: .*no such argument"),
        ("NMNIST", {"kwargs": {"train": True}}, "dataset.kwargs.train: .*first_saccade_only"),
        ("POKERDVS", {"sensor_size": "5x5"}, "tonic says 35x35"),
    ],
)
def test_wrong_keys_are_refused(tmp_path: Path, name: str | None, keys: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        open_reader(conf_of(name, tmp_path, **keys))


@pytest.mark.parametrize("name", ["POKERDVS", "DVSGesture", "SHD", "DVSLip", "NTIDIGITS18", "SMNIST", "CIFAR10DVS"])
def test_nothing_is_fetched_and_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"dataset.class={name}: files are missing below {tmp_path}.*download=false"):
        open_reader(conf_of(name, tmp_path))
    assert not list(tmp_path.iterdir())


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    np.save(path, np.array([["a", "b", "c", "d"]]))


@pytest.mark.parametrize("damage", [_cut, _empty, _text])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_poker(tmp_path)
    write_dvs_npy(tmp_path, users=(1, 2))
    for name, victim in (
        ("POKERDVS", tmp_path / "POKERDVS/pips_train/he/3.npy"),  # read when tonic opens the set
        ("DVSGesture", tmp_path / "DVSGesture/ibmGestureTrain/user02_led/7.npy"),  # read with the sample
    ):
        damage(victim)
        named = "sample train/1[0-9]" if damage is _text and name == "POKERDVS" else str(victim)
        with pytest.raises(DataError, match=rf"{named}.*tonic.datasets.{name} cannot read it"):
            list(open_reader(conf_of(name, tmp_path)).recordings())


def test_the_key_class_survives_every_copy_of_the_configuration(tmp_path: Path) -> None:
    from dataclasses import replace

    conf = conf_of("POKERDVS", tmp_path)
    assert getattr(replace(conf, batch_size=3), "class") == "POKERDVS" and "class='POKERDVS'" in repr(conf)
    assert conf != conf_of("NMNIST", tmp_path) and conf == conf_of("POKERDVS", tmp_path)
    assert getattr(OmegaConf.to_object(OmegaConf.structured(conf)), "class") == "POKERDVS"
    plain = OmegaConf.to_container(OmegaConf.structured(conf))
    stored = {"dataset": plain, "encoder": {"name": "none"}}
    assert structured(stored).dataset["class"] == "POKERDVS"
    anything = _with_all_keys(DatasetConf)  # what evaluate takes before it knows the run
    assert getattr(anything, "class") is None and {"path", "columns", "bin_by"} <= set(vars(anything))
    OmegaConf.structured(anything)
    with pytest.raises(TypeError, match="unexpected"):
        TonicDatasetConf(nmae="tonic")


def test_what_is_missing_is_fetched_by_our_downloader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dvs_npy(tmp_path / "made", users=(1, 2))
    archives: dict[str, bytes] = {}
    for part in ("train", "test"):
        name = f"ibmGesture{part.title()}"
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            tar.add(tmp_path / "made" / "DVSGesture" / name, name)
        archives[f"{name}.tar.gz"] = packed.getvalue()
        monkeypatch.setattr(DVSGesture, f"{part}_md5", hashlib.md5(packed.getvalue()).hexdigest())
    with serve(Site(files=archives)) as site:
        for part in ("train", "test"):
            monkeypatch.setattr(DVSGesture, f"{part}_url", site.url(f"ibmGesture{part.title()}.tar.gz"))
        root = tmp_path / "root"
        reader = open_reader(conf_of("DVSGesture", root, download=True))
        assert reader.total == 33 and len(site.requests) == 2
        assert open_reader(conf_of("DVSGesture", root, download=True)).total == 33 and len(site.requests) == 2
    with pytest.raises(DataError, match=r"dataset.class=DVSGesture|ibmGestureTrain.tar.gz"):
        open_reader(conf_of("DVSGesture", tmp_path / "other", download=True))  # the server is gone
