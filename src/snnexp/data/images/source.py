"""Static images: uint8 in memory, moved to the device once, handed out in shuffled and augmented batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snnexp import ranks
from snnexp.config import DatasetConf, FolderImagesConf
from snnexp.data.base import Batch, DataInfo
from snnexp.data.facts import FACTS, unread_keys
from snnexp.data.fetching.sources import SOURCES
from snnexp.data.images import augment as image_augment
from snnexp.data.images import cifar10, digits, idx
from snnexp.data.splits import Indices, data_fingerprint, limit, split_hash, stratified_split
from snnexp.errors import ConfigError, DataError

FASHION_CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
DIGIT_CLASSES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class RawImages:
    """One part of a data set as its files have it: uint8 [N, C, H, W], labels [N], and what each sample is called."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    identities: list[str]


def open_images(conf: DatasetConf, device: torch.device) -> ImageSource:
    """Read an image data set whose files are there, split it and put it on `device`.

    Raises: DataError if a file is damaged, ConfigError if the split leaves a class empty.
    """
    if errors := unread_keys(conf):
        raise ConfigError("\n".join(errors))
    train, val, test, class_names, notes = _load(conf)
    facts = FACTS[conf.name]
    own = isinstance(conf, FolderImagesConf)
    for part, raw in (("training", train), ("test", test)):
        if len(raw.labels) == 0:
            raise DataError(f"dataset={conf.name}: the {part} part is empty.")
    if val is None:
        train_index, val_index = stratified_split(train.labels, conf.val_fraction, conf.split_seed)
    else:
        train_index, val_index = (np.arange(len(raw.labels), dtype=np.int64) for raw in (train, val))
        notes = ("validation: the data set's own part", *notes)
    mean, std = _channel_statistics(train.images[train_index])
    test_index = np.arange(len(test.labels), dtype=np.int64)
    parts = {
        "train": (train, limit(train.labels, train_index, conf.limit_train, conf.split_seed)),
        "val": (val or train, limit((val or train).labels, val_index, conf.limit_val, conf.split_seed)),
        "test": (test, limit(test.labels, test_index, conf.limit_test, conf.split_seed)),
    }
    chosen = {split: (raw.images[index], raw.labels[index]) for split, (raw, index) in parts.items()}
    shape = (int(train.images.shape[1]), int(train.images.shape[2]), int(train.images.shape[3]))
    source = SOURCES.get(conf.name)
    info = DataInfo(
        name=conf.name,
        kind="image",
        shape=shape,
        num_steps=conf.num_steps,
        class_names=class_names,
        counts={split: len(index) for split, (_, index) in parts.items()},
        class_counts={split: _count_classes(raw, index, len(class_names)) for split, (raw, index) in parts.items()},
        complete=own or (len(train.labels), len(test.labels)) == (facts.train, facts.test),
        split_hash=split_hash(**{split: [raw.identities[i] for i in index] for split, (raw, index) in parts.items()}),
        source=source.page
        if source
        else Path(conf.path or "").absolute().as_uri()
        if isinstance(conf, FolderImagesConf)
        else "scikit-learn",
        channel_mean=mean,
        channel_std=std,
        max_batch_bytes=max(conf.batch_size, conf.eval_batch_size or 0) * (int(np.prod(shape)) + 8),
        notes=notes if own else _notes(conf.name, len(train.labels), len(test.labels)),
        data_fingerprint=data_fingerprint(shape, **chosen),
        empty_samples={split: _count_black(images) for split, (images, _) in chosen.items()},
    )
    splits = {
        split: (torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))
        for split, (images, labels) in chosen.items()
    }
    return ImageSource(conf, info, splits)


class ImageSource:
    """A `DataSource` over images that lie on the device."""

    def __init__(self, conf: DatasetConf, info: DataInfo, splits: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.conf = conf
        self.info = info
        self.splits = splits

    def batches(self, split: str, epoch: int = 0, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield uint8 batches [B, C, H, W]; see `DataSource.batches`."""
        return self._batches(split, epoch, seed, start, ranks.several())

    def _batches(self, split: str, epoch: int, seed: int, start: int, shared: bool) -> Iterator[Batch]:
        images, labels = self.splits[split]
        size = self._batch_size(split)
        if split != "train":
            for begin in range(start * size, len(labels), size):
                batch, answers = images[begin : begin + size], labels[begin : begin + size]
                rows = ranks.rows_of(len(answers)) if shared else None
                yield Batch(batch if rows is None else batch[rows.part], answers, rows)
            return
        generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
        order = torch.randperm(len(labels), generator=generator).to(images.device)
        draws = image_augment.draw(self.conf.augment, len(labels), generator, images.device)
        for begin in range(start * size, len(labels), size):
            chosen = order[begin : begin + size]
            rows = ranks.rows_of(len(chosen)) if shared else None
            part = slice(None) if rows is None else rows.part
            batch = images[chosen[part]]
            yield Batch(batch if draws is None else draws.apply(batch, begin + (part.start or 0)), labels[chosen], rows)

    def num_batches(self, split: str) -> int:
        """Number of batches of `split`, the last and smaller one included."""
        return -(-len(self.splits[split][1]) // self._batch_size(split))

    def _batch_size(self, split: str) -> int:
        return self.conf.batch_size if split == "train" else self.conf.eval_batch_size or self.conf.batch_size


def epoch_seed(seed: int, epoch: int) -> int:
    """A 63-bit seed from (seed, epoch): neighbouring pairs give unrelated random numbers, unlike seed + epoch."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1


Loaded = tuple[RawImages, RawImages | None, RawImages, tuple[str, ...], tuple[str, ...]]


def _load(conf: DatasetConf) -> Loaded:
    """Training, validation (if the set has its own) and test part, class names, and notes for the record."""
    if isinstance(conf, FolderImagesConf):
        from snnexp.data.images import folder

        found, class_names, notes = folder.load(conf)
        raw = {part: RawImages(*values) for part, values in found.items()}
        return raw["train"], raw.get("val"), raw["test"], class_names, notes
    train, test, class_names = _load_ours(conf.name, Path(conf.root))
    return train, None, test, class_names, ()


def _load_ours(name: str, root: Path) -> tuple[RawImages, RawImages, tuple[str, ...]]:
    if name == "digits":
        images, labels, train, test = digits.load_digits()
        parts = [RawImages(images[index], labels[index], [str(i) for i in index]) for index in (train, test)]
        return parts[0], parts[1], DIGIT_CLASSES
    directory = SOURCES[name].directory(root)
    if name == "cifar10":
        folder = directory / cifar10.FOLDER
        parts = [RawImages(*cifar10.load_part(folder, files)) for files in (cifar10.TRAIN_FILES, cifar10.TEST_FILES)]
        return parts[0], parts[1], cifar10.CLASS_NAMES
    parts = []
    for part in ("train", "t10k"):
        images, labels = idx.load_part(name, directory, part)
        parts.append(RawImages(images, labels, [f"{part}:{i}" for i in range(len(labels))]))
    return parts[0], parts[1], FASHION_CLASSES if name == "fashion_mnist" else DIGIT_CLASSES


def _channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel on the 0..1 scale, exact: from the 256 counts of each channel."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        # torch counts uint8 as it is; NumPy would make int64 of it first and takes 50 times as long.
        values = torch.from_numpy(images[:, channel].ravel())
        counts = torch.bincount(values, minlength=256).numpy()
        mean = float(counts @ levels / counts.sum())
        means.append(mean)
        deviations.append(float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())))
    return tuple(means), tuple(deviations)


def _count_black(images: NDArray[np.uint8]) -> int:
    """Images without a single pixel above 0."""
    return int(len(images) - np.count_nonzero(images.any(axis=(1, 2, 3))))


def _count_classes(raw: RawImages, index: Indices, num_classes: int) -> list[int]:
    return [int(count) for count in np.bincount(raw.labels[index], minlength=num_classes)]


def _notes(name: str, train: int, test: int) -> tuple[str, ...]:
    facts = FACTS[name]
    if (train, test) == (facts.train, facts.test):
        return ()
    return (f"partial: {train:,} of {facts.train:,} training and {test:,} of {facts.test:,} test samples",)
