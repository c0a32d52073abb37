"""W7, the data path: events on disk -> binned batch on the device, against tonic and SpikingJelly, in one run.

    python -m benchmarks.data_path [--root DATA] [--repeats 5] [--json FILE]

Candidates, all with raw files in the page cache and everything set up before the clock starts:
    snnexp          one epoch of `EventSource.batches`: shuffled, binned batches of float32 [T, B, C, H, W] or event
                    lists, as `dataset.sparse=auto` chooses; and the other form
    tonic           its file reader and `ToFrame`, sample by sample: not even batched or made a tensor
    tonic cache     `DiskCachedDataset` (its defaults), second and later passes
    spikingjelly    the same read, then integrate_events_by_fixed_frames_number; left out if not installed
                    or where it stops: its split by time raises IndexError if a bin has no event
Times are milliseconds per sample, the median over interleaved repeats with min and max; CPU time beside wall time tells
a busy machine from a slow program. A set is real where the root
has its files; synthetic sets say so in their name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.lib import recfunctions
from numpy.typing import NDArray

from snnexp.config import EventDatasetConf
from snnexp.data.events.source import EventSource, open_events

CPU = torch.device("cpu")
Read = Callable[[int], NDArray[Any]]  # sample number -> structured events, as tonic reads them
TYPE = np.dtype([("x", np.int64), ("y", np.int64), ("t", np.int64), ("p", np.int64)])


@dataclass
class Case:
    """One data set in one setting: how tonic reads it, and our configuration of it."""

    name: str
    sensor: tuple[int, int, int]  # W, H, P as tonic has it
    samples: int
    read: Read
    conf: EventDatasetConf
    results: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)  # the same, CPU time of all threads


# --- the peers ----------------------------------------------------------------------------------------------------


def tonic_frames(case: Case) -> Callable[[int], NDArray[Any]]:
    """Read and ToFrame as a tonic dataset does it; equal durations if we bin by time, else equal counts."""
    from tonic.transforms import ToFrame

    steps = {"n_time_bins" if case.conf.bin_by == "time" else "n_event_bins": case.conf.num_steps}
    to_frame = ToFrame(sensor_size=case.sensor, **steps)
    return lambda number: to_frame(case.read(number))


def spikingjelly_frames(case: Case) -> Callable[[int], NDArray[Any]] | None:
    """Read and integrate as SpikingJelly does it; None if it is not installed or has no such sensor (SHD)."""
    try:
        from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number
    except ImportError:
        return None
    if case.sensor[1] == 1:
        return None
    split_by = "time" if case.conf.bin_by == "time" else "number"

    def frames(number: int) -> NDArray[Any]:
        events = case.read(number)
        columns = {name: events[name] for name in ("t", "x", "y", "p")}
        width, height, _ = case.sensor
        made: NDArray[Any] = integrate_events_by_fixed_frames_number(
            columns, split_by, case.conf.num_steps, height, width
        )
        return made

    return frames


class _AsDataset:
    """What DiskCachedDataset wraps."""

    def __init__(self, frames: Callable[[int], NDArray[Any]], samples: int) -> None:
        self.frames, self.samples = frames, samples

    def __getitem__(self, number: int) -> tuple[NDArray[Any], int]:
        return self.frames(number), 0

    def __len__(self) -> int:
        return self.samples


def epochs_of(source: EventSource, samples: int) -> Callable[[], int]:
    """Epochs of ours, several of a tiny set: starting one costs half a millisecond."""
    epochs, times = itertools.count(1), -(-400 // samples)

    def run() -> int:
        return sum(len(batch.labels) for _ in range(times) for batch in source.batches("train", next(epochs)))

    return run


def candidates(case: Case, folder: Path) -> dict[str, Callable[[], int]]:
    """Functions that make one pass over the training samples and return how many there were."""
    from tonic import DiskCachedDataset

    frames = tonic_frames(case)
    cached = DiskCachedDataset(_AsDataset(frames, case.samples), cache_path=str(folder / f"cache-{case.name}"))

    def every(get: Callable[[int], Any]) -> Callable[[], int]:
        def run() -> int:
            for number in range(case.samples):
                get(number)
            return case.samples

        return run

    source = open_events(case.conf, CPU)
    other = "snnexp, dense frames" if source.sparse else "snnexp, event lists"
    passes = {
        "snnexp": epochs_of(source, case.samples),
        other: epochs_of(
            open_events(replace(case.conf, sparse="never" if source.sparse else "always"), CPU), case.samples
        ),
        "tonic": every(frames),
        "tonic cache": every(lambda number: cached[number]),
    }
    if (jelly := spikingjelly_frames(case)) is not None:
        passes["spikingjelly"] = every(jelly)
    return passes


# --- the data sets ------------------------------------------------------------------------------------------------


def settings(name: str, root: Path, store: Path, **keys: Any) -> EventDatasetConf:
    """Our configuration of a case: all training samples, dense batches unless the density says otherwise."""
    return EventDatasetConf(name=name, root=str(root), store=str(store), val_fraction=0, download=False, **keys)


def nmnist_case(root: Path, store: Path, **keys: Any) -> Case:
    """N-MNIST files, read with tonic's reader."""
    from tonic.datasets import NMNIST
    from tonic.io import read_mnist_file

    files = sorted((root / "NMNIST" / "Train").glob("*/*.bin"))
    conf = settings("nmnist", root, store, batch_size=32, **keys)
    name = f"nmnist T={conf.num_steps}"
    return Case(name, (34, 34, 2), len(files), lambda n: read_mnist_file(str(files[n]), NMNIST.dtype), conf)


def dvs_case(name: str, root: Path, store: Path, **keys: Any) -> Case:
    """DVS128 Gesture npy files, read as tonic.datasets.DVSGesture reads them."""
    files = sorted((root / "DVSGesture" / "ibmGestureTrain").glob("*/*.npy"))

    def read(number: int) -> NDArray[Any]:
        events = np.load(files[number])
        events[:, 3] *= 1000
        kind = np.dtype([("x", np.int16), ("y", np.int16), ("p", bool), ("t", np.int64)])
        made: NDArray[Any] = recfunctions.unstructured_to_structured(events, kind)
        return made

    conf = settings("dvs128", root, store, batch_size=8, **keys)
    return Case(name, (128, 128, 2), len(files), read, conf)


def shd_case(root: Path, store: Path, **keys: Any) -> Case:
    """SHD's HDF5 file, opened for each sample as tonic.datasets.SHD does."""
    path = root / "SHD" / "shd_train.h5"

    def read(number: int) -> NDArray[Any]:
        with h5py.File(path, "r") as file:
            times, units = file["spikes/times"][number], file["spikes/units"][number]
        events = np.zeros(len(times), TYPE)
        events["t"], events["x"] = times.astype(np.float64) * 1e6, units
        return events

    with h5py.File(path, "r") as file:
        samples = len(file["labels"])
    conf = settings("shd", root, store, batch_size=64, **keys)
    return Case("shd-like (synthetic) T=100", (700, 1, 1), samples, read, conf)


def write_synthetic_dvs(root: Path, users: int = 2, events: int = 300_000) -> None:
    """DVS128-like recordings of full length: clustered positions as a moving hand gives, 6 s, 300,000 events."""
    rng = np.random.default_rng(0)
    for part, count in (("Train", users), ("Test", 1)):
        for user in range(count):
            folder = root / "DVSGesture" / f"ibmGesture{part}" / f"user{user:02d}_synthetic"
            folder.mkdir(parents=True)
            for label in range(11):
                t = np.sort(rng.integers(0, 6000, events))
                centre = 64 + 30 * np.stack([np.cos(t / 300 + label), np.sin(t / 300)])
                x, y = np.clip(centre + rng.normal(0, 12, (2, events)), 0, 127).astype(np.int32)
                np.save(folder / f"{label}.npy", np.stack([x, y, rng.integers(0, 2, events), t], 1).astype(np.int32))


def write_synthetic_shd(root: Path, samples: int = 320, spikes: int = 8000) -> None:
    """SHD-like files: 8,000 spikes over about a second on 700 channels."""
    rng = np.random.default_rng(0)
    (root / "SHD").mkdir(parents=True)
    for part, count in (("train", samples), ("test", 20)):
        with h5py.File(root / "SHD" / f"shd_{part}.h5", "w") as file:
            times = file.create_dataset("spikes/times", (count,), dtype=h5py.vlen_dtype(np.float16))
            units = file.create_dataset("spikes/units", (count,), dtype=h5py.vlen_dtype(np.uint16))
            for number in range(count):
                times[number] = np.sort(rng.gamma(2.0, 0.25, spikes).clip(0, 1.37)).astype(np.float16)
                units[number] = rng.integers(0, 700, spikes).astype(np.uint16)
            file["labels"] = np.arange(count) % 20
            file["extra/keys"] = np.array([str(label).encode() for label in range(20)])
            file["extra/speaker"] = np.arange(count) // 20 % 12


def build_cases(root: Path, work: Path) -> list[Case]:
    """The real sets that are there, and the synthetic ones."""
    store, synthetic = work / "store", work / "synthetic"
    write_synthetic_dvs(synthetic)
    write_synthetic_shd(synthetic)
    cases = []
    if (root / "NMNIST" / "Train").is_dir():
        cases.append(nmnist_case(root, store, num_steps=10, bin_by="count"))
        cases.append(nmnist_case(root, store, num_steps=300, bin_by="time", value="binary"))
    if (root / "DVSGesture" / "ibmGestureTrain").is_dir():
        cases.append(dvs_case("dvs128 windows of 290 ms T=16", root, store, num_steps=16, bin_by="count"))
    long = work / "store-synthetic"
    cases.append(dvs_case("dvs128-like 6 s (synthetic) T=16", synthetic, long, num_steps=16, bin_by="count"))
    cases.append(dvs_case("dvs128-like 6 s (synthetic) T=300", synthetic, long, num_steps=300, bin_by="time"))
    cases.append(shd_case(synthetic, long, num_steps=100, bin_by="time"))
    return cases


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(case: Case, folder: Path, repeats: int) -> None:
    """Warm up once (compiles, fills caches), then interleave the candidates."""
    passes = candidates(case, folder)
    for name, run in list(passes.items()):
        try:
            run()
        except IndexError:
            if name != "spikingjelly":
                raise
            del passes[name]
    for _ in range(repeats):
        for name, run in passes.items():
            start, cpu = time.perf_counter(), time.process_time()
            samples = run()
            case.results.setdefault(name, []).append(1000 * (time.perf_counter() - start) / samples)
            case.cpu.setdefault(name, []).append(1000 * (time.process_time() - cpu) / samples)


def table(cases: list[Case]) -> str:
    """One line per case and candidate: median, min, max, and how much faster we are."""
    lines = [f"{'':<36}{'ms/sample':>10}{'min':>9}{'max':>9}{'ours is':>9}{'CPU ms':>10}{'ours is':>9}"]
    for case in cases:
        wall = {name: statistics.median(times) for name, times in case.results.items()}
        cpu = {name: statistics.median(times) for name, times in case.cpu.items()}
        lines.append(f"{case.name}, {case.samples} samples")
        for name, times in case.results.items():
            faster, less = (
                "" if name == "snnexp" else f"{values[name] / values['snnexp']:.1f}x" for values in (wall, cpu)
            )
            lines.append(
                f"    {name:<32}{wall[name]:>10.4f}{min(times):>9.4f}{max(times):>9.4f}{faster:>9}"
                f"{cpu[name]:>10.4f}{less:>9}"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run all cases; print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description="W7: the data path against tonic and SpikingJelly")
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("SNNEXP_DATA", "data")))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="snnexp-bench-") as folder:
        cases = build_cases(options.root, Path(folder))
        for case in cases:
            measure(case, Path(folder), options.repeats)
    print(table(cases))
    if options.json is not None:
        record = {
            "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
            "unit": "ms per sample",
            "cases": {case.name: {"wall": case.results, "cpu": case.cpu} for case in cases},
        }
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
