"""Event data sets as the training loop sees them: splits, seeded order, binned batches on the device.

`open_events` finds the raw files, opens (or packs) the event store and returns an `EventSource`. A batch is binned from
the store in one call, so num_steps, bin_by, crop, down-sampling and augmentation never need a new store.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from snnexp import ranks
from snnexp.config import EventDatasetConf
from snnexp.data.base import Batch, DataInfo, EventFrames
from snnexp.data.events.augment import Among, augment, gather, is_active
from snnexp.data.events.binning import Binning, DeviceBinning, bin_dense, bin_edges, bin_lists, build_binning
from snnexp.data.events.buffers import BufferPool
from snnexp.data.events.prefetch import Prefetch
from snnexp.data.events.reach import measure_reach
from snnexp.data.facts import unread_keys
from snnexp.data.readers.recordings import EventReader
from snnexp.data.readers.windows import WindowedReader, recording_of
from snnexp.data.repeats import find_repeats
from snnexp.data.splits import data_fingerprint, limit, split_hash, stratified_split
from snnexp.data.store.losses import loss_note
from snnexp.data.store.packing import open_store, pack_in_memory
from snnexp.data.store.store import PARTS, EventStore
from snnexp.errors import ConfigError, DataError, unknown_choice
from snnexp.registry import READERS, load

log = logging.getLogger(__name__)

IN_MEMORY = ("randman",)  # generated in a blink and small: no files
SPARSE_BELOW = 0.12  # dataset.sparse=auto: event lists if fewer of the inputs than this are non-zero
DENSITY_SAMPLES = 64  # training samples that the density is measured on
DEVICE_SHARE = 0.25  # of the free accelerator memory that the events may take to be kept there

SplitIndices = dict[str, NDArray[np.int64]]


def open_events(conf: EventDatasetConf, device: torch.device) -> EventSource:
    """Open an event data set: raw files found, packed once, split.

    Raises: DataError if raw files are missing or damaged; ConfigError if the split or the binning cannot be made.
    """
    if conf.name not in READERS.ours:
        raise ConfigError(unknown_choice("dataset", conf.name, READERS.ours))
    check_events(conf)
    reader: EventReader = load(READERS, conf.name)(conf)
    if conf.transforms:
        from snnexp.data.readers.transforms import TransformedReader

        reader = TransformedReader(reader, list(conf.transforms))
    if conf.window_ms is not None:
        stride = conf.window_ms if conf.stride_ms is None else conf.stride_ms
        reader = WindowedReader(reader, max(1, round(1000 * conf.window_ms)), max(1, round(1000 * stride)))
    if conf.name in IN_MEMORY:
        store = pack_in_memory(reader)
    else:
        store = open_store(reader, Path(conf.root), conf.store)
    return EventSource(conf, reader, store, device)


def check_events(conf: EventDatasetConf) -> None:
    """What the schema cannot say about one key at a time. Raises: ConfigError."""
    if conf.bin_by == "width" and conf.bin_ms is None:
        raise ConfigError("dataset.bin_by=width needs the width of a bin: set dataset.bin_ms=1, say.")
    if conf.stride_ms is not None and conf.window_ms is None:
        raise ConfigError(f"dataset.stride_ms={conf.stride_ms:g}: how long is a window? Set dataset.window_ms, too.")
    if errors := unread_keys(conf):
        raise ConfigError("\n".join(errors))


class EventSource:
    """A `DataSource` over an event store.

    `sparse` says how batches come: `EventFrames` or dense [T, B, C, H, W]. dataset.sparse=auto decides by the measured
    density; whoever knows that the first layer cannot use lists (a convolution) may set it to False.
    """

    def __init__(self, conf: EventDatasetConf, reader: EventReader, store: EventStore, device: torch.device) -> None:
        self.conf = conf
        self.store = store
        self.device = device
        self.binning: Binning = build_binning(
            reader.shape,
            conf.num_steps,
            conf.bin_by,
            conf.bin_ms,
            conf.value,
            conf.polarity,
            conf.crop,
            conf.downsample,
        )
        self._pool = BufferPool()
        notes: list[str] = []
        self.splits = make_splits(conf, reader, store, notes)
        self.density = self._measure_density()
        self.sparse = self._choose_sparse(notes)
        self._on_device = self._upload(notes)
        self.info = self._describe(reader, notes)

    # --- the interface --------------------------------------------------------------------------------------------

    def num_batches(self, split: str) -> int:
        """Number of batches that `batches(split)` yields."""
        return -(-len(self._indices(split)) // self._batch_size(split))

    def batches(self, split: str, epoch: int = 0, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `split`; see `DataSource.batches`. On the CPU the next one is made in the background."""
        batches = self._batches(split, epoch, seed, start, ranks.several())
        return iter(Prefetch(batches)) if self.device.type == "cpu" else batches

    # --- batches --------------------------------------------------------------------------------------------------

    def _indices(self, split: str) -> NDArray[np.int64]:
        if split not in self.splits:
            raise KeyError(f"no split {split}: {', '.join(self.splits)}")
        return self.splits[split]

    def _batch_size(self, split: str) -> int:
        if split == "train" or self.conf.eval_batch_size is None:
            return self.conf.batch_size
        return self.conf.eval_batch_size

    def _batches(self, split: str, epoch: int, seed: int, start: int, shared: bool) -> Iterator[Batch]:
        order = self._indices(split)
        if split == "train":
            order = order[np.random.default_rng([seed, epoch]).permutation(len(order))]
        augmented = split == "train" and is_active(self.conf.augment)
        size = self._batch_size(split)
        for number in range(start, -(-len(order) // size)):
            first = number * size
            chosen = order[first : first + size]
            rng = np.random.default_rng([seed, epoch, number]) if augmented else None
            labels = torch.from_numpy(self.store.labels[chosen]).to(self.device, non_blocking=True)
            rows = ranks.rows_of(len(chosen)) if shared else None
            yield Batch(self._frames(chosen, slice(None) if rows is None else rows.part, rng), labels, rows)

    def _frames(
        self, batch: NDArray[np.int64], part: slice, rng: np.random.Generator | None
    ) -> torch.Tensor | EventFrames:
        """Bin a part of a batch's samples, augmented if there is a generator: by the whole batch's numbers."""
        store, chosen = self.store, batch[part]
        time, address = store.time, store.address
        starts, stops = store.starts[chosen], store.starts[chosen + 1]
        if rng is not None:
            among = Among.of(store.starts[batch + 1] - store.starts[batch], part)
            events = gather(time, address, starts, stops)
            events = augment(events, self.binning.sensor, self.conf.augment, rng, among)
            time, address, offsets = events
            starts, stops = offsets[:-1], offsets[1:]
        edges = bin_edges(time, starts, stops, self.binning)
        store.touched(int((store.starts[chosen + 1] - store.starts[chosen]).sum()))
        if self._on_device is not None:
            replaced = None if rng is None else self._on_device.upload(address)
            if self.sparse:
                return self._on_device.lists(edges, replaced)
            return self._on_device.dense(edges, address=replaced)
        if self.sparse:
            return bin_lists(address, edges, self.binning, self._pool).to(self.device)
        return bin_dense(address, edges, self.binning, pool=self._pool).to(self.device)

    # --- what is decided once -------------------------------------------------------------------------------------

    def _measure_density(self) -> float:
        """Share of non-zero inputs in evenly spaced training samples; exact for sets of at most that many."""
        train = self.splits["train"]
        some = train[np.unique(np.linspace(0, len(train) - 1, min(len(train), DENSITY_SAMPLES)).astype(np.int64))]
        used = 0
        for index in some:  # one at a time: memory for one sample
            edges = bin_edges(
                self.store.time,
                self.store.starts[index : index + 1],
                self.store.starts[index + 1 : index + 2],
                self.binning,
            )
            used += bin_lists(self.store.address, edges, self.binning, self._pool).indices.numel()
            self.store.touched(int(self.store.starts[index + 1] - self.store.starts[index]))
        return used / (len(some) * self.binning.num_steps * self.binning.features)

    def _choose_sparse(self, notes: list[str]) -> bool:
        by_rule = self.density < SPARSE_BELOW
        sparse = by_rule if self.conf.sparse == "auto" else self.conf.sparse == "always"
        form = "event lists" if sparse else "dense frames"
        why = {
            "auto": f"auto: lists below {SPARSE_BELOW:.0%}",
            "always": "dataset.sparse=always",
            "never": "dataset.sparse=never, or a first layer that takes no lists",  # `experiment` asks for never then
        }[self.conf.sparse]
        notes.append(f"density {self.density:.3%}, batches as {form} ({why})")
        log.info("%s: %.3f %% of the inputs are non-zero: %s (%s)", self.conf.name, 100 * self.density, form, why)
        return sparse

    def _upload(self, notes: list[str]) -> DeviceBinning | None:
        """Keep all positions on an accelerator if they fit well; else batches are binned on the CPU and copied."""
        if self.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        if self.store.address.nbytes > DEVICE_SHARE * free:
            notes.append("events binned on the CPU: too many to keep on the device")
            return None
        notes.append(f"events kept on the device: {self.store.address.nbytes / 2**20:.0f} MiB")
        return DeviceBinning(self.store.address, self.binning, self.device)

    def _describe(self, reader: EventReader, notes: list[str]) -> DataInfo:
        store, conf = self.store, self.conf
        complete = is_complete(reader, store)
        if not complete:
            whole = official_parts(reader).items()
            counts = [f"{_count(store, part):,} of {n:,} {part}" for part, n in whole]
            notes += [f"incomplete: {', '.join(counts)}"] if counts else []
        events = len(store.time) + sum(store.dropped.values())
        filled = {split: indices[np.diff(store.starts)[indices] > 0] for split, indices in self.splits.items()}
        repeats = find_repeats(filled, store.digests, store.names, store.labels)
        found = [*loss_note(store.dropped, events), *store.notes, *reader.notes, *repeats]
        for note in found:
            log.warning("%s: %s", conf.name, note)
        notes += found
        reach = measure_reach(conf.name, store, self.splits, self.binning)
        notes += reach.notes
        classes = len(reader.class_names)
        return DataInfo(
            name=conf.name,
            kind="events",
            shape=self.binning.shape,
            num_steps=conf.num_steps,
            class_names=reader.class_names,
            counts={split: len(indices) for split, indices in self.splits.items()},
            class_counts={
                split: np.bincount(store.labels[indices], minlength=classes).tolist()
                for split, indices in self.splits.items()
            },
            complete=complete,
            split_hash=split_hash(
                **{split: [store.names[i] for i in indices] for split, indices in self.splits.items()}
            ),
            variant=reader.variant,
            source=reader.origin,
            max_batch_bytes=self._batch_bytes(),
            notes=tuple(notes),
            empty_samples=reach.empty,
            events=events,
            dropped_events=store.dropped,
            reach=reach.share,
            understood=getattr(reader, "understood", ()),
            data_fingerprint=data_fingerprint(
                reader.shape,
                **{split: (store.digests[i], store.labels[i]) for split, i in self.splits.items()},
            ),
        )

    def _batch_bytes(self) -> int:
        """Most host memory that batches need at a time: the one in use, the next, and the one being made."""
        size = max(self._batch_size(split) for split in self.splits)
        lengths = np.sort(np.diff(self.store.starts))[::-1][:size]
        events = int(lengths.sum())
        dense = 4 * size * self.binning.num_steps * self.binning.features
        lists = 8 * events + 8 * (size * self.binning.num_steps + 1)  # indices and values; offsets
        copies = 30 * events if is_active(self.conf.augment) else 0
        return 3 * (lists if self.sparse else dense) + copies


def official_parts(reader: EventReader) -> dict[str, int]:
    """Samples per part of the whole data set; nothing for generated sets."""
    return reader.official or {}


def is_complete(reader: EventReader, store: EventStore) -> bool:
    """Whether every official part has all of its samples."""
    return not getattr(reader, "partial", False) and all(
        _count(store, part) == count for part, count in official_parts(reader).items()
    )


def _count(store: EventStore, part: str) -> int:
    """Recordings of a part; windows of one recording count once."""
    return len({recording_of(store.names[i]) for i in store.indices(part)} if store.windowed else store.indices(part))


def workable_share(
    conf: EventDatasetConf, reader: EventReader, store: EventStore, labels: NDArray[np.int64], notes: list[str]
) -> float:
    """dataset.val_fraction, but on a partial set enough for one validation sample of the rarest class.

    A tenth of four samples would be none, and a partial set, which is for trials, should start with no further word.
    On a complete set a share that is too small stays an error (`stratified_split` says so).
    """
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    if conf.val_fraction == 0 or smallest < 2 or conf.val_fraction * smallest >= 0.5 or is_complete(reader, store):
        return conf.val_fraction
    share = 0.5 / smallest
    notes.append(
        f"validation share {share:g} instead of {conf.val_fraction:g}: partial set, {smallest} samples a class"
    )
    log.warning("%s: %s", conf.name, notes[-1])
    return share


def _recordings(store: EventStore) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first sample of each recording, and for each sample the number of its recording.

    Without windows every sample is a recording. Splits choose among recordings, so the windows of one stay together.
    """
    if not store.windowed:
        samples = np.arange(len(store.labels), dtype=np.int64)
        return samples, samples
    numbers: dict[tuple[int, str], int] = {}
    keys = [(int(part), recording_of(name)) for part, name in zip(store.parts, store.names, strict=True)]
    of = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    return np.unique(of, return_index=True)[1].astype(np.int64), of


def make_splits(conf: EventDatasetConf, reader: EventReader, store: EventStore, notes: list[str]) -> SplitIndices:
    """Train, validation and test as indices into the store, limited as the configuration says.

    Validation is the data set's own if it has one, else a stratified share of the training part (whole subjects where
    the data set has subjects).
    """
    recordings, of = _recordings(store)
    labels, parts = store.labels[recordings], store.parts[recordings]
    divide = getattr(reader, "divide", None)
    val = np.flatnonzero(parts == PARTS.index("val"))
    if divide is not None:
        pool = np.flatnonzero(parts != PARTS.index("val"))
        train, test = (pool[chosen] for chosen in divide(labels[pool]))
    else:
        train, test = (np.flatnonzero(parts == PARTS.index(part)) for part in ("train", "test"))
    for part, indices in (("training", train), ("test", test)):
        if len(indices) == 0:
            raise DataError(f"{conf.name}: there is no {part} recording in {reader.folder or 'the generated set'}.")
    if len(val):
        notes.append("validation: the data set's own part")
    else:
        subjects = None if store.subjects is None else store.subjects[recordings[train]]
        share = workable_share(conf, reader, store, labels[train], notes)
        kept, held_out = stratified_split(labels[train], share, conf.split_seed, subjects)
        train, val = train[kept], train[held_out]
    train, val, test = (np.flatnonzero(np.isin(of, chosen)) for chosen in (train, val, test))
    return {
        "train": limit(store.labels, train, conf.limit_train, conf.split_seed),
        "val": limit(store.labels, val, conf.limit_val, conf.split_seed),
        "test": limit(store.labels, test, conf.limit_test, conf.split_seed),
    }
