"""Event sources: splits, order, sparse and dense hand-over, what is cut, generated sets, bounded memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_files import write_cifar10dvs, write_dvs_npy, write_dvs_trials, write_heidelberg, write_nmnist

from snnexp.config import AugmentConf, EventDatasetConf, MotionDatasetConf, RandmanDatasetConf
from snnexp.data.base import Batch, EventFrames
from snnexp.data.events.buffers import BufferPool
from snnexp.data.events.prefetch import Prefetch
from snnexp.data.events.source import EventSource, open_events
from snnexp.errors import ConfigError, DataError

CPU = torch.device("cpu")
WRITERS = {
    "nmnist": lambda root: write_nmnist(root, per_class=6),
    "dvs128": write_dvs_npy,
    "shd": lambda root: write_heidelberg(root, "shd"),
    "ssc": lambda root: write_heidelberg(root, "ssc", per_class=2),
    "cifar10dvs": lambda root: write_cifar10dvs(root, "aedat4"),
}


def source(root: Path, name: str = "nmnist", **keys: object) -> EventSource:
    return open_events(EventDatasetConf(name=name, root=str(root), **keys), CPU)  # type: ignore[arg-type]


def dense(batch: Batch) -> torch.Tensor:
    return batch.frames.to_dense() if isinstance(batch.frames, EventFrames) else batch.frames


def all_frames(data: EventSource, split: str, epoch: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [T, N, C, H, W] and labels of one pass."""
    batches = list(data.batches(split, epoch, seed))
    return torch.cat([dense(batch) for batch in batches], dim=1), torch.cat([batch.labels for batch in batches])


@pytest.fixture(scope="module")
def nmnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nmnist")
    write_nmnist(root, per_class=6)
    return root


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_recorded_set_opens_with_its_defaults(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    share = {} if name == "ssc" else {"val_fraction": 0.25}
    data = source(tmp_path, name, batch_size=7, num_steps=4, **share)
    info = data.info
    assert info.kind == "events" and not info.complete and any("incomplete" in note for note in info.notes)
    indices = np.concatenate(list(data.splits.values()))
    assert len(set(indices.tolist())) == len(indices) == len(data.store.labels)  # every sample in exactly one split
    for split in ("train", "val", "test"):
        batches = list(data.batches(split))
        assert len(batches) == data.num_batches(split) and all(batch.labels.dtype == torch.int64 for batch in batches)
        frames, labels = all_frames(data, split)
        assert frames.shape == (4, info.counts[split], *info.shape) and frames.sum() > 0
        assert torch.bincount(labels, minlength=info.num_classes).tolist() == info.class_counts[split]
    assert len(list(data.batches("train"))[-1].labels) == (info.counts["train"] - 1) % 7 + 1


def test_subjects_stay_together(tmp_path: Path) -> None:
    write_dvs_npy(tmp_path, users=(1, 2, 3, 4))
    data = source(tmp_path, "dvs128", val_fraction=0.25)
    assert data.store.subjects is not None
    people = {split: set(data.store.subjects[indices].tolist()) for split, indices in data.splits.items()}
    assert len(people["val"]) == 1 and not people["val"] & people["train"] and people["test"] == {24}


def test_ssc_validates_on_its_own_part(tmp_path: Path) -> None:
    write_heidelberg(tmp_path, "ssc", per_class=2)
    data = source(tmp_path, "ssc")
    assert data.info.counts == {"train": 70, "val": 70, "test": 70}
    assert np.array_equal(data.splits["val"], data.store.indices("val"))
    assert "validation: the data set's own part" in data.info.notes


def test_variants_of_dvs128_are_named_and_never_share_a_split(tmp_path: Path) -> None:
    write_dvs_npy(tmp_path / "a")
    write_dvs_trials(tmp_path / "b")
    a, b = source(tmp_path / "a", "dvs128"), source(tmp_path / "b", "dvs128", val_fraction=0)
    assert (a.info.variant, b.info.variant) == ("tonic", "trials") and a.info.split_hash != b.info.split_hash
    assert "dvs128-trials" in str(b.store.folder)


def test_order_depends_on_seed_and_epoch_alone(nmnist_root: Path) -> None:
    data = source(nmnist_root, batch_size=8)
    again = source(nmnist_root, batch_size=8)
    list(again.batches("train", epoch=3))  # what was read before does not matter
    frames, labels = all_frames(data, "train", epoch=1, seed=5)
    for other, same in (((1, 5), True), ((2, 5), False), ((1, 6), False)):
        other_frames, other_labels = all_frames(again, "train", *other)
        assert torch.equal(frames, other_frames) == same
        assert sorted(other_labels.tolist()) == sorted(labels.tolist())
    test = all_frames(data, "test", epoch=1, seed=5)
    assert torch.equal(test[0], all_frames(data, "test", epoch=9, seed=1)[0])
    assert test[1].tolist() == sorted(test[1].tolist())  # fixed order: by class


def test_augmentation_is_seeded_and_for_training_only(nmnist_root: Path) -> None:
    plain = source(nmnist_root)
    augmented = source(nmnist_root, augment=AugmentConf(shift=4, drop_events=0.3, jitter_ms=5.0))
    train = all_frames(augmented, "train", epoch=2, seed=1)
    assert torch.equal(train[0], all_frames(augmented, "train", epoch=2, seed=1)[0])
    assert torch.equal(train[1], all_frames(plain, "train", epoch=2, seed=1)[1])  # the order is not touched
    assert 0.5 < train[0].sum() / all_frames(plain, "train", epoch=2, seed=1)[0].sum() < 0.75
    for split in ("val", "test"):
        assert torch.equal(all_frames(augmented, split)[0], all_frames(plain, split)[0])
    before = plain.store.address.copy()
    assert np.array_equal(before, augmented.store.address)  # the store is never written to


def test_sparse_by_density_or_by_choice(nmnist_root: Path) -> None:
    few, many = source(nmnist_root, num_steps=10), source(nmnist_root, num_steps=1, downsample=8)
    assert few.density < 0.05 < many.density and few.sparse and not many.sparse
    assert any(note.startswith(f"density {few.density:.3%}, batches as event lists") for note in few.info.notes)
    for wanted in ("always", "never"):
        data = source(nmnist_root, num_steps=3, sparse=wanted)
        assert isinstance(next(iter(data.batches("val"))).frames, EventFrames) == data.sparse == (wanted == "always")


def test_sparse_and_dense_batches_are_the_same(nmnist_root: Path) -> None:
    augmentation = AugmentConf(shift=2, flip=True)
    lists = source(nmnist_root, sparse="always", augment=augmentation)
    frames = source(nmnist_root, sparse="never", augment=augmentation)
    for split in ("train", "test"):
        for a, b in zip(lists.batches(split), frames.batches(split), strict=True):
            assert isinstance(a.frames, EventFrames) and isinstance(b.frames, torch.Tensor)
            assert torch.equal(a.frames.to_dense(), b.frames) and torch.equal(a.labels, b.labels)


def test_density_is_that_of_the_training_frames(nmnist_root: Path) -> None:
    data = source(nmnist_root, num_steps=5)  # 54 samples: all of them are measured
    frames, _ = all_frames(data, "train")
    assert data.density == pytest.approx(frames.count_nonzero().item() / frames.numel(), rel=1e-6)


def test_what_fixed_width_cuts_is_counted(nmnist_root: Path) -> None:
    data = source(nmnist_root, bin_by="width", bin_ms=20.0, num_steps=10, val_fraction=0)
    store = data.store
    for split in ("train", "test"):
        late = [
            int(np.count_nonzero(store.time[store.starts[i] : store.starts[i + 1]] >= 200_000))
            for i in data.splits[split]
        ]
        (note,) = (note for note in data.info.notes if note.startswith(split))
        assert note.startswith(f"{split}: {np.count_nonzero(late)} of {len(late)} samples are longer than 200 ms")
        assert f"{sum(late):,} of" in note
    kept = sum(frames.sum() for frames in (all_frames(data, s)[0] for s in ("train", "test")))
    assert kept == np.count_nonzero(store.time < 200_000)


def test_limits_are_stratified_subsets(nmnist_root: Path) -> None:
    data = source(nmnist_root, limit_train=20, limit_val=10, limit_test=10)
    assert data.info.class_counts == {"train": [2] * 10, "val": [1] * 10, "test": [1] * 10}
    smaller = source(nmnist_root, limit_train=10)
    assert set(smaller.splits["train"]) <= set(data.splits["train"]) and smaller.info.split_hash != data.info.split_hash


def test_split_hash_does_not_depend_on_the_binning(nmnist_root: Path) -> None:
    a = source(nmnist_root, num_steps=3, crop=20).info
    b = source(nmnist_root, num_steps=9, downsample=2, batch_size=3).info
    assert a.split_hash == b.split_hash and (a.shape, b.shape) == ((2, 20, 20), (2, 17, 17))
    assert source(nmnist_root, split_seed=1).info.split_hash != a.split_hash


def test_tonic_transforms_are_applied_when_packing(nmnist_root: Path) -> None:
    plain = source(nmnist_root, val_fraction=0)
    cut = source(nmnist_root, val_fraction=0, transforms=["CropTime(min=0, max=100000)"])
    assert cut.store.folder != plain.store.folder and cut.store.time.max() <= 100_000
    kept = int((plain.store.time <= 100_000).sum())
    assert len(cut.store.time) == kept and cut.store.dropped == {"by CropTime": len(plain.store.time) - kept}
    assert any("by CropTime" in note for note in cut.info.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Denoize(filter_time=1)", "Did you mean Denoise"),
        ("ToFrame(n_time_bins=3)", "no such option"),
        ("__import__('os').system('true')", "cannot read"),
        ("Denoise(10)", "cannot read"),
        ("Denoise(", "cannot read"),
        ("Denoise(filter=3)", "unexpected keyword"),
    ],
)
def test_wrong_transforms(nmnist_root: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(nmnist_root, transforms=[text])


def test_transforms_without_tonic_say_what_to_install(nmnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tonic", None)  # as on Python 3.12, where it does not come by itself
    with pytest.raises(ConfigError, match=r"needs the package tonic .*--no-deps tonic==1\.7\.0"):
        source(nmnist_root, transforms=["CropTime(min=0, max=100000)"])
    assert source(nmnist_root).info.counts["train"] > 0


def test_wrong_configurations(nmnist_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.bin_ms"):
        source(nmnist_root, bin_by="width")
    with pytest.raises(ConfigError, match="Did you mean nmnist"):
        source(nmnist_root, "nmnst")
    with pytest.raises(ConfigError, match=r"augment\.crop_padding=2.*is for images"):
        source(nmnist_root, augment=AugmentConf(crop_padding=2))
    with pytest.raises(KeyError, match="no split validation"):
        source(nmnist_root).num_batches("validation")


def test_shape_agrees_with_the_torch_free_facts(nmnist_root: Path) -> None:
    from snnexp.data.shapes import frame_shape

    for keys in ({}, {"crop": 33}, {"downsample": 4}, {"crop": 31, "downsample": 3, "polarity": "merge"}):
        data = source(nmnist_root, **keys)
        assert data.info.shape == frame_shape(data.conf), keys


# --- generated sets -----------------------------------------------------------------------------------------------


def randman(**keys: object) -> EventSource:
    options = {"num_classes": 4, "num_units": 30, "samples_per_class": 40, "test_per_class": 20, **keys}
    conf = RandmanDatasetConf(name="randman", bin_by="width", bin_ms=2.0, num_steps=50, **options)  # type: ignore[arg-type]
    return open_events(conf, CPU)


def test_randman_is_in_the_times_only() -> None:
    data = randman()
    frames, labels = all_frames(data, "test")
    assert torch.equal(frames.sum(0), torch.ones(80, 1, 1, 30))  # each unit fires once in each sample
    from sklearn.neighbors import KNeighborsClassifier

    train, train_labels = all_frames(data, "train")
    times = [part.argmax(0).flatten(1).numpy() for part in (train, frames)]
    assert KNeighborsClassifier(1).fit(times[0], train_labels).score(times[1], labels) > 0.9  # chance: 0.25
    assert torch.equal(frames, all_frames(randman(), "test")[0])
    assert not torch.equal(frames, all_frames(randman(generator_seed=1), "test")[0])
    assert data.info.complete and data.info.source == "generated"


def test_randman_spikes_per_unit_and_smoothness() -> None:
    frames, _ = all_frames(randman(spikes_per_unit=3, manifold_dim=2), "val")
    assert torch.equal(frames.sum(0), torch.full_like(frames.sum(0), 3))
    from snnexp.data.readers.randman import manifold

    points = np.linspace(0, 1, 400)[:, None]
    roughness = []
    for alpha in (1.0, 3.0):
        times = manifold(points, 50, alpha, np.random.default_rng(0))
        assert times.min() == 0 and times.max() == 1
        roughness.append(np.abs(np.diff(times, axis=0)).mean())
    assert roughness[0] > 2 * roughness[1]


def test_randman_by_hand() -> None:
    """One unit, two points, alpha so large that one frequency is left: a sin(2 pi (b x + c)), scaled to 0 and 1."""
    from snnexp.data.readers.randman import manifold

    points = np.array([[0.0], [0.3], [0.9]])
    amplitude, stretch, phase = np.random.default_rng(4).random((3, 1, 2))[:, 0]  # alpha 10: 2 frequencies
    raw = sum(
        amplitude[i] * (i + 1) ** -10.0 * np.sin(2 * np.pi * ((i + 1) * stretch[i] * points[:, 0] + phase[i]))
        for i in range(2)
    )
    expected = (raw - raw.min()) / (raw.max() - raw.min())
    np.testing.assert_allclose(manifold(points, 1, 10.0, np.random.default_rng(4))[:, 0], expected, atol=1e-12)


def motion(root: Path, **keys: object) -> EventSource:
    options = {"size": 32, "event_rate": 20.0, "duration_ms": 200.0, "train_per_class": 10, "test_per_class": 4, **keys}
    return open_events(MotionDatasetConf(name="motion", root=str(root), num_steps=8, **options), CPU)  # type: ignore[arg-type]


def test_motion_has_the_wanted_length_rate_and_classes(tmp_path: Path) -> None:
    data = motion(tmp_path)
    assert np.diff(data.store.starts).tolist() == [4000] * 154  # 20 thousand per second for 0.2 s, exactly
    assert data.store.time.max() < 200_000 and data.info.num_classes == 11 and data.info.complete
    assert torch.equal(all_frames(data, "test")[0], all_frames(motion(tmp_path), "test")[0])
    other = motion(tmp_path, generator_seed=1)
    assert other.store.folder != data.store.folder and not torch.equal(
        all_frames(data, "test")[0], all_frames(other, "test")[0]
    )


def test_motion_classes_differ_in_time_order_only(tmp_path: Path) -> None:
    """A bar going right and one going left: the same picture when summed over time; opposite drift of the on events."""
    data = motion(tmp_path, noise=0.0, train_per_class=30, val_fraction=0.1)
    frames, labels = all_frames(data, "train")
    summed = {label: frames[:, labels == label].sum((0, 1)) for label in (0, 4)}
    left, right = (summed[label] / summed[label].sum() for label in (0, 4))
    assert (left - right).abs().sum() < 0.2
    # the bar's place along x per step; its steps forward are those of the wrapped phase
    x = torch.arange(32.0)
    for label, sign in ((0, 1), (4, -1)):
        profile = frames[:, labels == label, 1].sum(2)  # [T, N, W]
        angle = torch.atan2(
            (profile * (2 * torch.pi * x / 45.25).sin()).sum(-1), (profile * (2 * torch.pi * x / 45.25).cos()).sum(-1)
        )
        step = torch.remainder(angle.diff(dim=0) + torch.pi, 2 * torch.pi) - torch.pi
        assert (step.median(dim=0).values * sign > 0).float().mean() > 0.8


# --- resources ----------------------------------------------------------------------------------------------------


def test_prefetch_keeps_order_passes_errors_on_and_ends_its_thread() -> None:
    before = threading.active_count()
    assert list(Prefetch(iter(range(20)))) == list(range(20))

    def failing() -> Iterator[int]:
        yield 1
        raise DataError("gone")

    taken = []
    with pytest.raises(DataError, match="gone"):
        for item in Prefetch(failing()):
            taken.append(item)
    assert taken == [1]
    for item in Prefetch(iter(range(10**9))):
        if item == 3:
            break
    del item
    assert threading.active_count() == before


def test_pool_lends_again_only_what_nobody_holds() -> None:
    pool = BufferPool()
    first = torch.from_numpy(pool.take(10, np.float32))
    address = first.data_ptr()
    view = first.view(2, 5)[1:]
    del first
    view.fill_(7.0)
    second = pool.take(10, np.float32)  # the view still needs the first array
    second[:] = 0
    assert view.tolist() == [[7.0] * 5] and pool.nbytes == 80
    del view
    assert torch.from_numpy(pool.take(5, np.int64)).data_ptr() == address  # the same 40 bytes
    del second
    assert pool.take(100, np.uint8).nbytes == pool.nbytes == 100  # both were too small and are let go


def test_batches_that_are_kept_do_not_change(nmnist_root: Path) -> None:
    """A loop may hold on to batches (autograd does), while the next ones reuse memory."""
    for wanted in ("always", "never"):
        data = source(nmnist_root, batch_size=4, sparse=wanted)
        kept = list(data.batches("train"))
        for batch, again in zip(kept, data.batches("train"), strict=True):
            assert torch.equal(dense(batch), dense(again))
        held = data._pool.nbytes
        del kept, batch, again
        for _ in range(3):
            list(map(dense, data.batches("train")))
        assert data._pool.nbytes <= held  # and memory does not grow from epoch to epoch


def test_leaving_an_epoch_early_ends_the_thread(nmnist_root: Path) -> None:
    data = source(nmnist_root, batch_size=2)
    before = threading.active_count()
    for _ in range(5):
        batches = iter(data.batches("train"))
        next(batches)
        del batches
    assert threading.active_count() == before


MEMORY = """
import resource, sys
import numpy as np, torch
from pathlib import Path
from snnexp.config import EventDatasetConf
from snnexp.data.readers import nmnist
from snnexp.data.events.buffers import BufferPool
from snnexp.data.events.source import EventSource
from snnexp.data.store.packing import open_store
from snnexp.data.readers.recordings import Recording
class Big(nmnist.NMNISTReader):
    def recordings(self):
        rng = np.random.default_rng(0)
        time = np.sort(rng.integers(0, 300_000, EVENTS)).astype(np.int32)
        address = rng.integers(0, 2 * 34 * 34, EVENTS).astype(np.uint32)
        for i in range(SAMPLES):
            yield Recording(str(i), "train" if i < SAMPLES - 10 else "test", i % 10, time, address)
EVENTS, SAMPLES = 2_000_000, int(sys.argv[2])
root = Path(sys.argv[1])
conf = EventDatasetConf(name="nmnist", root=str(root), num_steps=10, batch_size=8, limit_test=10)
reader = Big(root, ())
data = EventSource(conf, reader, open_store(reader, root), torch.device("cpu"))
samples = sum(len(batch.labels) for batch in data.batches("train"))
stored = data.store.time.nbytes + data.store.address.nbytes
print(samples, stored, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """An epoch, and the packing before it, over a synthetic store of 5 GB: peak memory under 1.5 GB."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path), "420"], capture_output=True, text=True, check=True
        )
    finally:
        shutil.rmtree(tmp_path / "event-store", ignore_errors=True)  # pytest would keep it
    samples, stored, peak = map(int, done.stdout.split())
    assert samples == 370 and stored > 5e9  # 410 less a tenth for validation, rounded per class
    assert peak < 1.5e9, f"{peak / 1e9:.2f} GB"


# --- the real parts -----------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_parts_open_with_the_shipped_defaults(real_data: Path, tmp_path: Path) -> None:
    data = source(real_data, store=str(tmp_path), bin_by="count")
    assert (data.info.counts["train"] + data.info.counts["val"], data.info.counts["test"]) == (800, 100)
    frames, _ = all_frames(data, "test")
    assert frames.sum() == len(data.store.time[data.store.starts[800] :])
    gestures = source(real_data, "dvs128", store=str(tmp_path), num_steps=16, downsample=2)
    assert gestures.info.counts == {"train": 30, "val": 10, "test": 10} and gestures.info.variant == "tonic"
    assert any("0.125 instead of 0.1" in note for note in gestures.info.notes)
