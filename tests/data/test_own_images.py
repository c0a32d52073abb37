"""`dataset=images`: pictures in class folders, as uint8; what differs or is damaged is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from snnexp.data import open_data
from snnexp.data.images.folder import load
from snnexp.data.shapes import frame_shape, num_classes
from snnexp.errors import ConfigError, DataError
from snnexp.schema.dataset import FolderImagesConf

CPU = torch.device("cpu")


def conf_of(base: Path, **keys: Any) -> FolderImagesConf:
    return FolderImagesConf(name="images", path=str(base), root=str(base), **keys)


def write(base: Path, name: str, values: Any, mode: str | None = None) -> Path:
    path = base / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    (picture.convert(mode) if mode else picture).save(path, quality=95)
    return path


def two_classes(base: Path, count: int = 10, channels: int = 1) -> Path:
    shape = (4, 6) if channels == 1 else (4, 6, 3)
    for number in range(count):
        write(base, f"dark/{number}.png", np.full(shape, number, np.uint8))
        write(base, f"light/{number}.png", np.full(shape, 200 + number, np.uint8))
    return base


def test_pictures_are_uint8_as_they_are(tmp_path: Path) -> None:
    conf = conf_of(two_classes(tmp_path))
    assert (frame_shape(conf), num_classes(conf)) == ((1, 4, 6), 2)
    source = open_data(conf, CPU)
    assert source.info.counts == {"train": 14, "val": 2, "test": 4} and source.info.class_names == ("dark", "light")
    assert source.info.complete and source.info.shape == (1, 4, 6)
    seen = set()
    for split in ("train", "val", "test"):
        for batch in source.batches(split):
            assert isinstance(batch.frames, torch.Tensor) and batch.frames.dtype == torch.uint8
            assert ((batch.frames[:, 0, 0, 0] >= 200).long() == batch.labels).all()
            seen |= set(batch.frames[:, 0, 0, 0].tolist())
    assert seen == set(range(10)) | set(range(200, 210))


def test_a_pixel_by_hand_and_every_mode(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 2], pixels[1, 0] = (10, 20, 30), (255, 0, 0)
    write(tmp_path, "a/1.png", pixels)
    write(tmp_path, "a/2.png", Image.fromarray(pixels).quantize())  # a palette
    clear = Image.fromarray(np.concatenate([pixels, np.full((2, 3, 1), 128, np.uint8)], axis=2))
    write(tmp_path, "b/1.png", clear)
    write(tmp_path, "b/2.png", pixels)
    parts, names, notes = load(conf_of(tmp_path, test_fraction=0.5))
    found = {name: image for part in parts.values() for image, _, name in zip(*part, strict=True)}
    assert names == ("a", "b")
    assert (found["a/1.png"] == pixels.transpose(2, 0, 1)).all() and (found["a/2.png"] == found["a/1.png"]).all()
    assert found["b/1.png"][:, 1, 0].tolist() == [128, 0, 0]
    assert notes == ("1 of 4 pictures are partly transparent: laid on black",)


def test_sixteen_bits_keep_their_upper_half(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, f"{name}/1.png", np.array([[0, 256, 65535, 4660]], np.uint16))
        write(tmp_path, f"{name}/2.png", np.array([[0, 1, 255, 18]], np.uint8))
    parts, _, notes = load(conf_of(tmp_path, test_fraction=0.5))
    assert all((image == [[[0, 1, 255, 18]]]).all() for part in parts.values() for image in part[0])
    assert any("16 bits" in note for note in notes)


def test_size_and_colour(tmp_path: Path) -> None:
    base = two_classes(tmp_path / "set", channels=3)
    write(base, "dark/big.jpg", np.full((40, 80), 77, np.uint8))
    with pytest.raises(DataError, match=r"big.jpg: is grey, but 0.png is in colour. Set\s+dataset.colour=grey"):
        load(conf_of(base))
    with pytest.raises(DataError, match=r"big.jpg: has 80x40 pixels, but 0.png has 6x4.*dataset.size=32"):
        load(conf_of(base, colour="rgb"))
    parts, _, notes = load(conf_of(base, colour="grey", size="8x5"))
    assert (
        all(part[0].shape[1:] == (1, 5, 8) for part in parts.values()) and "21 of 21 pictures brought to 8x5" in notes
    )
    assert frame_shape(conf_of(base, colour="rgb", size=16)) == (3, 16, 16)
    images, _, names = parts["train"] if "dark/big.jpg" in parts["train"][2] else parts["test"]
    assert (images[names.index("dark/big.jpg")] == 77).all()
    for keys, pattern in (
        ({"colour": "red"}, "dataset.colour=red.*grey"),
        ({"size": "huge"}, "dataset.size=huge: write"),
    ):
        with pytest.raises(ConfigError, match=pattern):
            load(conf_of(base, **keys))


@pytest.mark.parametrize("damage", [b"", b"not a picture", b"\0" * 100, None])
def test_a_damaged_picture_is_named(tmp_path: Path, damage: bytes | None) -> None:
    base = two_classes(tmp_path / "set", 2)
    victim = write(base, "light/1.png", np.random.default_rng(0).integers(0, 256, (4, 6), np.uint8))
    victim.write_bytes(victim.read_bytes()[:-30] if damage is None else damage)
    with pytest.raises(DataError, match=str(victim)):
        load(conf_of(base))


def test_parts_and_a_changed_picture(tmp_path: Path) -> None:
    base = tmp_path / "set"
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        two_classes(base / part, count)
    conf = conf_of(base)
    info = open_data(conf, CPU).info
    assert info.counts == {"train": 12, "val": 4, "test": 6} and "validation: the data set's own part" in info.notes
    write(base, "val/dark/0.png", np.full((4, 6), 99, np.uint8))
    changed = open_data(conf, CPU).info
    assert (changed.split_hash, changed.data_fingerprint != info.data_fingerprint) == (info.split_hash, True)
