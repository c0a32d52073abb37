"""The image data sets: official layouts written here, read with the real readers; damage is named, batches repeat."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from snnexp.config import AugmentConf, ImageDatasetConf
from snnexp.data import open_data
from snnexp.data.base import DataSource
from snnexp.data.images import cifar10, idx
from snnexp.data.images.idx import read_idx
from snnexp.errors import ConfigError, DataError

CPU = torch.device("cpu")


def idx_bytes(values: NDArray[np.uint8]) -> bytes:
    return np.array([0x0800 + values.ndim, *values.shape], dtype=">u4").tobytes() + values.tobytes()


def write_mnist(root: Path, packed: bool = True, count: int = 40, name: str = "mnist") -> Path:
    """A small set in the official layout: image i is filled with i, its label is i mod 10."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    for part, size in (("train", count), ("t10k", count // 2)):
        images = np.repeat(np.arange(size, dtype=np.uint8), 28 * 28).reshape(size, 28, 28)
        labels = (np.arange(size) % 10).astype(np.uint8)
        for stem, values in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx_bytes(values)
            path = folder / (f"{stem}.gz" if packed else stem)
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def write_cifar10(root: Path, files: dict[str, int]) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(exist_ok=True)
    for file, count in files.items():
        records = np.zeros((count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10
        records[:, 1:1025], records[:, 1025:2049], records[:, 2049:] = 10, 20, 30
        records[:, 1] = np.arange(count)
        (folder / file).write_bytes(records.tobytes())
    return folder


def conf(name: str, root: Path | str = "/nonexistent", **keys: Any) -> ImageDatasetConf:
    return ImageDatasetConf(**{"name": name, "root": str(root), "download": False, "batch_size": 16, **keys})


def everything(source: DataSource, split: str, **keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(source.batches(split, **keys))
    frames = [batch.frames for batch in batches]
    assert all(isinstance(frame, torch.Tensor) and frame.dtype == torch.uint8 for frame in frames)
    return torch.cat(frames), torch.cat([batch.labels for batch in batches])  # type: ignore[arg-type]


# --- digits ---


def test_digits_counts_classes_and_grey_levels() -> None:
    source = open_data(conf("digits"), CPU)
    info = source.info
    assert info.counts == {"train": 1292, "val": 145, "test": 360} and info.complete
    assert info.shape == (1, 8, 8) and info.num_classes == 10
    images, labels = everything(source, "test")
    assert images.shape == (360, 1, 8, 8) and images.max() == 255
    assert torch.bincount(labels).tolist() == info.class_counts["test"]
    assert (torch.bincount(labels) - 36).abs().max() <= 1


def test_digits_test_part_never_moves() -> None:
    """The split is ours, so it is part of the contract: this hash may change only with 'Changes results'."""
    whole = open_data(conf("digits"), CPU).info
    assert whole.split_hash == "e7d2b14deec94b75"
    first = open_data(conf("digits", split_seed=5), CPU)
    assert first.info.split_hash != whole.split_hash
    assert torch.equal(everything(first, "test")[0], everything(open_data(conf("digits"), CPU), "test")[0])


def test_one_pixel_or_a_smaller_part_is_other_data(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, packed=False)
    keys = {"val_fraction": 0.25}
    whole = open_data(conf("mnist", tmp_path, **keys), CPU).info
    assert open_data(conf("mnist", tmp_path, **keys), CPU).info.data_fingerprint == whole.data_fingerprint
    smaller = open_data(conf("mnist", tmp_path, limit_train=20, **keys), CPU).info
    assert smaller.data_fingerprint != whole.data_fingerprint
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    changed = open_data(conf("mnist", tmp_path, **keys), CPU).info
    assert changed.split_hash == whole.split_hash and changed.data_fingerprint != whole.data_fingerprint


def test_digits_need_no_files_and_no_network() -> None:
    assert open_data(conf("digits", root="/nonexistent"), CPU).info.source == "scikit-learn"


# --- the split of an image set ---


def test_parts_do_not_overlap_and_are_whole(tmp_path: Path) -> None:
    write_mnist(tmp_path, count=200)
    source = open_data(conf("mnist", tmp_path, val_fraction=0.2), CPU)
    values = {split: set(everything(source, split)[0][:, 0, 0, 0].tolist()) for split in ("train", "val")}
    assert len(values["train"]) == 160 and len(values["val"]) == 40
    assert values["train"] | values["val"] == set(range(200))
    assert source.info.class_counts == {"train": [16] * 10, "val": [4] * 10, "test": [10] * 10}


def test_limits_are_stratified_and_counted(tmp_path: Path) -> None:
    write_mnist(tmp_path, count=200)
    limited = conf("mnist", tmp_path, val_fraction=0.2, limit_train=30, limit_val=10, limit_test=20)
    info = open_data(limited, CPU).info
    assert info.counts == {"train": 30, "val": 10, "test": 20}
    assert info.class_counts == {"train": [3] * 10, "val": [1] * 10, "test": [2] * 10}


def test_channel_statistics_are_those_of_the_training_split(tmp_path: Path) -> None:
    write_mnist(tmp_path, count=40)
    source = open_data(conf("mnist", tmp_path, val_fraction=0.25), CPU)
    images = everything(source, "train")[0].double() / 255
    assert source.info.channel_mean == pytest.approx((images.mean().item(),))
    assert source.info.channel_std == pytest.approx((images.std(correction=0).item(),))


def test_a_share_that_leaves_a_class_empty(tmp_path: Path) -> None:
    write_mnist(tmp_path, count=40)
    with pytest.raises(ConfigError, match=r"leaves class 0 \(4 samples\) without a validation sample"):
        open_data(conf("mnist", tmp_path, val_fraction=0.05), CPU)


def test_unknown_data_set() -> None:
    with pytest.raises(ConfigError, match="Did you mean mnist"):
        open_data(conf("mnst"), CPU)


# --- batches ---


def test_batches_are_shuffled_whole_and_repeatable(tmp_path: Path) -> None:
    write_mnist(tmp_path, count=90)
    source = open_data(conf("mnist", tmp_path, val_fraction=0.2), CPU)
    sizes = [len(batch.labels) for batch in source.batches("train")]
    assert sizes == [16, 16, 16, 16, 6] and source.info.counts["train"] == 70  # each class of 9 gives 2
    assert source.num_batches("train") == 5
    orders = {
        key: everything(source, "train", epoch=key[0], seed=key[1])[0][:, 0, 0, 0].tolist()
        for key in ((0, 0), (1, 0), (0, 1), (1, 1))
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    assert len({tuple(sorted(order)) for order in orders.values()}) == 1
    assert everything(source, "train", epoch=1, seed=0)[0][:, 0, 0, 0].tolist() == orders[1, 0]


def test_a_batch_does_not_depend_on_those_before_it(tmp_path: Path) -> None:
    write_mnist(tmp_path, count=90)
    keys = {"val_fraction": 0.2, "augment": AugmentConf(shift=3, rotate=20, flip=True, crop_padding=2)}
    whole = list(open_data(conf("mnist", tmp_path, **keys), CPU).batches("train", epoch=4, seed=2))
    torch.manual_seed(99)
    again = open_data(conf("mnist", tmp_path, **keys), CPU).batches("train", epoch=4, seed=2)
    torch.rand(10)  # the global generator plays no part
    for first, second in zip(whole, again, strict=True):
        assert torch.equal(first.frames, second.frames) and torch.equal(first.labels, second.labels)  # type: ignore[arg-type]


def test_evaluation_comes_in_fixed_order_without_augmentation(tmp_path: Path) -> None:
    write_mnist(tmp_path, count=40)
    augment = AugmentConf(shift=3, flip=True)
    source = open_data(conf("mnist", tmp_path, val_fraction=0.25, augment=augment, eval_batch_size=7), CPU)
    images, labels = everything(source, "test", epoch=3, seed=1)
    assert images[:, 0, 0, 0].tolist() == list(range(20)) and labels.tolist() == [i % 10 for i in range(20)]
    assert source.num_batches("test") == 3


# --- IDX files ---


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_packed_and_unpacked(packed: bool, tmp_path: Path) -> None:
    write_mnist(tmp_path, packed)
    images, labels = idx.load_part("mnist", tmp_path / "mnist", "train")
    assert images.shape == (40, 1, 28, 28) and images[7].min() == images[7].max() == 7
    assert labels.tolist() == [i % 10 for i in range(40)]
    info = open_data(conf("mnist", tmp_path, val_fraction=0.25), CPU).info
    assert not info.complete
    assert info.notes == ("partial: 40 of 60,000 training and 20 of 10,000 test samples",)


def test_older_names_of_unpacked_files_are_known(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, packed=False)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("-idx", ".idx"))
    assert open_data(conf("mnist", tmp_path, val_fraction=0.25), CPU).info.counts["train"] == 30


def test_missing_file_message(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        open_data(conf("mnist", tmp_path), CPU)
    text = str(caught.value)
    assert "t10k-labels-idx1-ubyte.gz  MD5 ec29112dd5afa0611ce80d1b7f02629c" in text
    assert str(folder) in text and "train-images" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:10], "ends inside its header"),
        (lambda raw: raw[:-1], "ends after 31,359 of 31,360 values"),
        (lambda raw: raw + b"x", "there is more after the 31,360 values"),
        (lambda raw: b"\0\0\x0d\x03" + raw[4:], "magic number 0x00000d03"),
        (lambda raw: raw[:4] + b"\x7f" + raw[5:], "its header claims"),
        (lambda raw: b"", "ends inside its header"),
    ],
)
def test_damaged_unpacked_files_are_named(change: Any, words: str, tmp_path: Path) -> None:
    path = write_mnist(tmp_path, packed=False) / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        open_data(conf("mnist", tmp_path), CPU)
    assert str(path) in str(caught.value) and "MD5 f68b3c2dcbeaaa9fbdd348bbdeb94873" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 5, 30, 60, -9, -1])
def test_truncated_packed_files_are_named(cut: int, tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="is damaged"):
        open_data(conf("mnist", tmp_path), CPU)


def test_labels_and_images_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(DataError, match="40 train images but 20 labels"):
        open_data(conf("mnist", tmp_path), CPU)


def test_labels_out_of_range(tmp_path: Path) -> None:
    path = write_mnist(tmp_path, packed=False) / "train-labels-idx1-ubyte"
    raw = bytearray(path.read_bytes())
    raw[-1] = 10
    path.write_bytes(raw)
    with pytest.raises(DataError, match="label 10 in train-labels"):
        open_data(conf("mnist", tmp_path), CPU)


def test_a_set_of_the_official_length_must_be_the_official_one(tmp_path: Path) -> None:
    """KMNIST in MNIST's folder, say, or one flipped bit in an unpacked file."""
    values = np.zeros(10_000, dtype=np.uint8)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(values))
    write = tmp_path / "mnist" / "t10k-images-idx3-ubyte"
    write.write_bytes(idx_bytes(np.zeros((10_000, 28, 28), dtype=np.uint8)))
    with pytest.raises(DataError, match=r"has the official length but other content \(MD5 .* 2646ac647ad5339dbf08284"):
        idx.load_part("mnist", tmp_path / "mnist", "t10k")


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), packed=st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_flipped_bit_in_a_packed_file_is_served(
    position: int, bit: int, packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    content = idx_bytes(values)
    raw = bytearray(gzip.compress(content, mtime=0) if packed else content)
    where = position % len(raw)
    raw[where] ^= 1 << bit
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if packed else "a")
    path.write_bytes(raw)
    try:
        read = read_idx(path, 3)
    except DataError as error:
        assert str(path) in str(error)
        return
    if packed or where < 16:  # a flip in gzip's own header (time, system) does no harm
        assert np.array_equal(read, values)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_an_error_or_an_array(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    for name in ("a", "a.gz"):
        path = tmp_path_factory.mktemp("idx") / name
        path.write_bytes(raw)
        try:
            assert read_idx(path, 1).ndim == 1
        except DataError as error:
            assert str(path) in str(error)


# --- CIFAR-10 ---


def test_cifar10_channels_labels_and_identities(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path, {"data_batch_1.bin": 20, "data_batch_3.bin": 10, "test_batch.bin": 10})
    images, labels, identities = cifar10.load_part(folder, cifar10.TRAIN_FILES)
    assert images.shape == (30, 3, 32, 32) and labels.tolist() == [i % 10 for i in range(30)]
    assert images[5, :, 0, 1].tolist() == [10, 20, 30] and images[5, 0, 0, 0] == 5
    assert identities[19:21] == ["data_batch_1.bin:19", "data_batch_3.bin:0"]
    info = open_data(conf("cifar10", tmp_path, val_fraction=0.2), CPU).info
    assert info.notes == ("partial: 30 of 50,000 training and 10 of 10,000 test samples",)
    assert info.shape == (3, 32, 32) and len(info.channel_mean or ()) == 3 and not info.complete


def test_a_partial_set_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_cifar10(tmp_path, {"data_batch_1.bin": 50, "test_batch.bin": 10})
    open_data(conf("cifar10", tmp_path), CPU)
    assert "dataset=cifar10 is incomplete: partial: 50 of 50,000" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:-1], "not a number of whole images"),
        (lambda raw: b"", "has 0 bytes"),
        (lambda raw: b"\x0a" + raw[1:], "image 0 of .* has label 10"),
    ],
)
def test_damaged_cifar10_files_are_named(change: Any, words: str, tmp_path: Path) -> None:
    path = write_cifar10(tmp_path, {"data_batch_1.bin": 20, "test_batch.bin": 10}) / "test_batch.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        open_data(conf("cifar10", tmp_path), CPU)
    assert "c32a1d4ab5d03f1284b67883e8d87530" in str(caught.value)


def test_cifar10_without_a_test_part(tmp_path: Path) -> None:
    write_cifar10(tmp_path, {"data_batch_1.bin": 20})
    with pytest.raises(DataError, match=r"none of test_batch\.bin is in"):
        open_data(conf("cifar10", tmp_path), CPU)


@given(st.binary(max_size=7000))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_an_error_or_whole_images(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("cifar")
    (folder / "test_batch.bin").write_bytes(raw)
    try:
        _, labels, _ = cifar10.load_part(folder, cifar10.TEST_FILES)
        assert len(labels) * 3073 == len(raw) and labels.max() <= 9
    except DataError as error:
        assert "test_batch.bin" in str(error)


# --- the real files ---


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)],  # the values that everybody quotes
)
def test_the_real_files(name: str, mean: float, std: float, real_data: Path) -> None:
    source = open_data(conf(name, real_data, val_fraction=0), CPU)
    assert source.info.counts == {"train": 60_000, "val": 0, "test": 10_000} and source.info.complete
    assert source.info.channel_mean == pytest.approx((mean,), abs=5e-5)
    assert source.info.channel_std == pytest.approx((std,), abs=5e-5)


@pytest.mark.data
def test_the_real_part_of_cifar10(real_data: Path) -> None:
    info = open_data(conf("cifar10", real_data), CPU).info
    assert info.counts == {"train": 1800, "val": 200, "test": 500} and not info.complete
