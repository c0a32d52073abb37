"""Readers of recorded data sets, on small files in the official layouts: every event, label and identity."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from fake_files import (
    aedat2_bytes,
    aedat4_bytes,
    aedat31_bytes,
    nmnist_bytes,
    random_events,
    write_cifar10dvs,
    write_dvs_npy,
    write_dvs_trials,
    write_h5,
    write_heidelberg,
    write_nmnist,
)

from snnexp.config import EventDatasetConf
from snnexp.data.readers import aedat, cifar10dvs, dvs128, heidelberg, nmnist
from snnexp.data.readers.recordings import Recording, order_events
from snnexp.errors import ConfigError, DataError


def conf(name: str, root: Path, **keys: object) -> EventDatasetConf:
    return EventDatasetConf(name=name, root=str(root), **keys)  # type: ignore[arg-type]


def columns(recording: Recording, height: int, width: int) -> tuple[list[int], ...]:
    """Time, x, y, polarity of a recording."""
    address = recording.address.astype(np.int64)
    return (
        recording.time.tolist(),
        (address % width).tolist(),
        (address // width % height).tolist(),
        (address // (width * height)).tolist(),
    )


# --- order_events -------------------------------------------------------------------------------------------------


def test_order_events_sorts_stably_and_counts_what_it_drops() -> None:
    time = np.array([5.0, 3.0, np.nan, np.inf, -1.0, 3.0, 2.0**31])
    x = np.array([0, 1, 0, 0, 0, 0, 0])
    stored, address, dropped, _ = order_events(time, x, np.zeros(7, int), np.zeros(7, int), (1, 1, 2))
    assert stored.tolist() == [3, 3, 5] and address.tolist() == [1, 0, 0]
    assert dropped == {"with a non-finite time": 2, "with a time out of range": 2}
    events = order_events(np.arange(3), np.array([0, 2, -1]), np.zeros(3, int), np.zeros(3, int), (1, 1, 2))
    assert events.dropped == {"outside the sensor": 2}


# --- N-MNIST ------------------------------------------------------------------------------------------------------


def test_nmnist_by_hand() -> None:
    """One event: x 3, y 33, on, 0x012345 us; then an overflow entry; then x 1, y 2, off, 1 us, 8192 us later."""
    raw = np.frombuffer(bytes([3, 33, 0x81, 0x23, 0x45, 0, 240, 0, 0, 0, 1, 2, 0x00, 0, 1]), dtype=np.uint8)
    t, x, y, p = nmnist.decode(raw)
    assert (t.tolist(), x.tolist(), y.tolist(), p.tolist()) == ([0x012345, 8193], [3, 1], [33, 2], [1, 0])


@pytest.mark.parametrize("overflows", [0, 3])
def test_nmnist_equals_tonic(tmp_path: Path, overflows: int) -> None:
    from tonic.datasets import NMNIST
    from tonic.io import read_mnist_file

    rng = np.random.default_rng(overflows)
    t, x, y, p = random_events(rng, 500, 34, 34, 2**23)
    y[rng.integers(0, 500, overflows)] = 240
    path = tmp_path / "a.bin"
    path.write_bytes(nmnist_bytes(t, x, y, p))
    theirs = read_mnist_file(str(path), NMNIST.dtype)
    ours = nmnist.decode(np.fromfile(path, dtype=np.uint8))
    for column, name in zip(ours, ("t", "x", "y", "p"), strict=True):
        np.testing.assert_array_equal(column, theirs[name])


def test_nmnist_folder(tmp_path: Path) -> None:
    write_nmnist(tmp_path, per_class=2, test_per_class=1)
    reader = nmnist.open_reader(conf("nmnist", tmp_path))
    recordings = list(reader.recordings())
    assert [(r.part, r.label) for r in recordings[:4]] == [("train", 0), ("train", 0), ("train", 1), ("train", 1)]
    assert Counter(r.part for r in recordings) == {"train": 20, "test": 10}
    assert recordings[0].name == "Train/0/00001.bin"
    raw = np.fromfile(tmp_path / "NMNIST/Train/0/00001.bin", dtype=np.uint8)
    t, x, y, p = (column.tolist() for column in nmnist.decode(raw))
    assert columns(recordings[0], 34, 34) == (t, x, y, p)


def test_nmnist_drops_events_outside_the_sensor(tmp_path: Path) -> None:
    write_nmnist(tmp_path, per_class=1, test_per_class=1)
    path = tmp_path / "NMNIST/Train/0/00001.bin"
    path.write_bytes(nmnist_bytes(*(np.array(c) for c in ([1, 2, 3], [5, 34, 5], [5, 5, 77], [0, 1, 1]))))
    first = next(iter(nmnist.open_reader(conf("nmnist", tmp_path)).recordings()))
    assert first.time.tolist() == [1] and first.dropped == {"outside the sensor": 2}


@pytest.mark.parametrize("content", [b"", b"\0" * 7])
def test_nmnist_cut_file(tmp_path: Path, content: bytes) -> None:
    write_nmnist(tmp_path, per_class=1, test_per_class=1)
    (tmp_path / "NMNIST/Train/3/00004.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"Train/3/00004\.bin: .* not a positive multiple of 5"):
        list(nmnist.open_reader(conf("nmnist", tmp_path)).recordings())


def test_missing_files_name_folder_and_command(tmp_path: Path) -> None:
    for name, module in (("nmnist", nmnist), ("dvs128", dvs128), ("shd", heidelberg), ("cifar10dvs", cifar10dvs)):
        with pytest.raises(DataError) as error:
            module.open_reader(conf(name, tmp_path))  # type: ignore[attr-defined]
        assert str(tmp_path) in str(error.value) and f"snnexp task=prepare dataset={name}" in str(error.value)


# --- DVS128 Gesture -----------------------------------------------------------------------------------------------


def test_dvs128_npy(tmp_path: Path) -> None:
    write_dvs_npy(tmp_path)
    reader = dvs128.open_reader(conf("dvs128", tmp_path))
    recordings = list(reader.recordings())
    assert reader.variant == "tonic" and len(recordings) == 44
    assert [(r.label, r.subject) for r in recordings[:4]] == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert {r.subject for r in recordings if r.part == "test"} == {24}
    raw = np.load(tmp_path / "DVSGesture/ibmGestureTrain/user01_led/0.npy")
    x, y, p, t = raw.T
    assert columns(recordings[0], 128, 128) == ((t * 1000).tolist(), x.tolist(), y.tolist(), p.tolist())


def test_dvs128_trials_cut_at_every_row(tmp_path: Path) -> None:
    write_dvs_trials(tmp_path)
    reader = dvs128.open_reader(conf("dvs128", tmp_path))
    recordings = list(reader.recordings())
    assert reader.variant == "trials" and reader.total == len(recordings) == 36
    assert [r.label for r in recordings[:4]] == [0, 0, 1, 2]  # both trials of class 1 are kept
    t, x, y, p, invalid = aedat.read_aedat31(tmp_path / "DvsGesture/user01_led.aedat")
    inside = (t >= 2000) & (t < 2900)
    expected = tuple(column[inside].tolist() for column in (t - 2000, x, y, p))
    assert columns(recordings[2], 128, 128) == expected and invalid == 0 and len(expected[0]) > 10


def test_dvs128_trials_begin_at_start_and_end_before_end(tmp_path: Path) -> None:
    write_dvs_trials(tmp_path, users=(1,))
    t = np.array([999, 1000, 1450, 1899, 1900])  # the second row is 1,000 to 1,900
    path = tmp_path / "DvsGesture/user01_led.aedat"
    path.write_bytes(aedat31_bytes((t, t % 7, t % 5, t % 2)))
    second = list(dvs128.open_reader(conf("dvs128", tmp_path)).recordings())[1]
    assert second.time.tolist() == [0, 450, 899] and second.name == "user01_led/1"


def test_dvs128_both_variants_need_a_choice(tmp_path: Path) -> None:
    write_dvs_npy(tmp_path)
    write_dvs_trials(tmp_path)
    with pytest.raises(ConfigError, match=r"dataset\.variant=tonic \(1077/264\)"):
        dvs128.open_reader(conf("dvs128", tmp_path))
    assert dvs128.open_reader(conf("dvs128", tmp_path, variant="trials")).variant == "trials"
    with pytest.raises(ConfigError, match="Did you mean trials"):
        dvs128.open_reader(conf("dvs128", tmp_path, variant="trial"))


def test_dvs128_label_file_with_a_wrong_line(tmp_path: Path) -> None:
    write_dvs_trials(tmp_path)
    path = tmp_path / "DvsGesture/user01_led_labels.csv"
    path.write_text("class,startTime_usec,endTime_usec\n1,0,900\n12,1000,1900\n")
    with pytest.raises(DataError, match=r"user01_led_labels\.csv: line 3 has class 12"):
        dvs128.open_reader(conf("dvs128", tmp_path))


def test_aedat31_columns_and_invalid_events(tmp_path: Path) -> None:
    events = random_events(np.random.default_rng(0), 120, 128, 128, 5000)
    path = tmp_path / "a.aedat"
    path.write_bytes(aedat31_bytes(events, per_packet=50, invalid=(3, 119)))
    t, x, y, p, invalid = aedat.read_aedat31(path)
    keep = np.delete(np.arange(120), [3, 119])
    for read, written in zip((t, x, y, p), events, strict=True):
        np.testing.assert_array_equal(read, written[keep])
    assert invalid == 2


# --- SHD and SSC --------------------------------------------------------------------------------------------------


def test_shd(tmp_path: Path) -> None:
    write_heidelberg(tmp_path, "shd")
    reader = heidelberg.open_reader(conf("shd", tmp_path))
    recordings = list(reader.recordings())
    assert reader.total == len(recordings) == 160 and reader.class_names[1] == "word 1"
    assert [(r.part, r.label, r.subject) for r in recordings[4:6]] == [("train", 1, 0), ("train", 1, 1)]
    with h5py.File(tmp_path / "SHD/shd_train.h5") as file:
        times, units = file["spikes/times"][5], file["spikes/units"][5]
    assert recordings[5].time.tolist() == [int(float(t) * 1e6) for t in times]  # beyond 65,504: float16 is left first
    assert recordings[5].address.tolist() == units.tolist()


def test_ssc_has_its_own_validation_part(tmp_path: Path) -> None:
    write_heidelberg(tmp_path, "ssc", per_class=2)
    reader = heidelberg.open_reader(conf("ssc", tmp_path))
    assert Counter(r.part for r in reader.recordings()) == {"train": 70, "val": 70, "test": 70}
    assert reader.official == {"train": 75_466, "val": 9981, "test": 20_382}


def test_shd_drops_and_counts_bad_spikes(tmp_path: Path) -> None:
    write_heidelberg(tmp_path, "shd", per_class=1)
    times = [np.array([0.5, np.nan, np.inf, 0.25, -0.5, 0.75], dtype=np.float16)]
    units = [np.array([1, 2, 3, 4, 5, 700], dtype=np.uint16)]
    write_h5(tmp_path / "SHD/shd_train.h5", times, units, [3], 20, [0])
    first = next(iter(heidelberg.open_reader(conf("shd", tmp_path)).recordings()))
    assert first.time.tolist() == [250_000, 500_000] and first.address.tolist() == [4, 1]
    assert first.dropped == {
        "with a non-finite time": 2,
        "with a time out of range": 1,
        "outside the sensor": 1,
    }


def test_shd_lengths_that_differ(tmp_path: Path) -> None:
    write_heidelberg(tmp_path, "shd", per_class=1)
    path = tmp_path / "SHD/shd_test.h5"
    write_h5(path, [np.zeros(3, np.float16)], [np.zeros(2, np.uint16)], [0], 20, [0])
    with pytest.raises(DataError, match=r"shd_test\.h5: sample 0 has 3 times and 2 units"):
        list(heidelberg.open_reader(conf("shd", tmp_path)).recordings())


@pytest.mark.parametrize("chunked", [False, True])
def test_shd_row_that_claims_to_be_longer_than_the_file(tmp_path: Path, chunked: bool) -> None:
    """HDF5 itself would take half a minute and gigabytes to find out."""
    write_heidelberg(tmp_path, "shd", per_class=1)
    path = tmp_path / "SHD/shd_train.h5"
    with h5py.File(path, "r+") as file:
        rows = [np.arange(4, dtype=np.float16)] * 20
        del file["spikes/times"]
        options = {"chunks": (7,)} if chunked else {}
        times = file.create_dataset("spikes/times", (20,), dtype=h5py.vlen_dtype(np.float16), **options)
        for i, row in enumerate(rows):
            times[i] = row
        offset = times.id.get_chunk_info(0).byte_offset if chunked else times.id.get_offset()
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff\xff\xff\x7f")
    with pytest.raises(DataError, match=r"shd_train\.h5: .*/spikes/times claims 2,147,483,723 values"):
        list(heidelberg.open_reader(conf("shd", tmp_path)).recordings())


# --- CIFAR10-DVS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["aedat4", "aedat"])
def test_cifar10dvs(tmp_path: Path, variant: str) -> None:
    write_cifar10dvs(tmp_path, variant, per_class=12)
    reader = cifar10dvs.open_reader(conf("cifar10dvs", tmp_path))
    recordings = list(reader.recordings())
    assert reader.variant == variant and len(recordings) == 120
    assert [r.name for r in recordings[:12]] == [f"airplane/cifar10_airplane_{n}.{variant}" for n in range(12)]
    assert [r.label for r in recordings[::12]] == list(range(10))
    assert all(r.time[0] == 0 and len(r.time) == 50 for r in recordings)


def test_cifar10dvs_both_variants_hold_the_same_columns(tmp_path: Path) -> None:
    """The same random events, written as AEDAT 4 and as AEDAT 2.0, whose axes are turned as SpikingJelly turns them."""
    t, x, y, p = random_events(np.random.default_rng(5), 300, 128, 128, 10_000)
    (tmp_path / "a.aedat4").write_bytes(
        aedat4_bytes([(t[:200], x[:200], y[:200], p[:200]), (t[200:], x[200:], y[200:], p[200:])])
    )
    with aedat.Aedat4Decoder() as decoder:
        columns_read = decoder.read(tmp_path / "a.aedat4")
    for read, written in zip(columns_read, (t, x, y, p), strict=True):
        np.testing.assert_array_equal(read, written)
    # by hand from the layout: bit 0 polarity, bits 1-7 and 8-14 the axes, bit 15 an external event
    words = (127 - y) << 1 | (127 - x) << 8 | (1 - p)
    words[7] |= 1 << 15
    (tmp_path / "a.aedat").write_bytes(aedat2_bytes(t, words))
    read_t, read_x, read_y, read_p = cifar10dvs.read_original(tmp_path / "a.aedat")
    keep = np.arange(300) != 7
    assert read_x[7] == -1
    for read, written in ((read_t, t), (read_x, x), (read_y, y), (read_p, p)):
        np.testing.assert_array_equal(read[keep], written[keep])


def test_aedat2_time_wraps(tmp_path: Path) -> None:
    (tmp_path / "a.aedat").write_bytes(aedat2_bytes(np.array([2**32 - 5, 3]), np.array([0, 0])))
    assert aedat.read_aedat2(tmp_path / "a.aedat")[0].tolist() == [2**32 - 5, 2**32 + 3]


def test_cifar10dvs_splits(tmp_path: Path) -> None:
    """Full classes of 1,000: the published numbers; 20 per class: the same shares, in order of the file numbers."""
    write_cifar10dvs(tmp_path, "aedat", per_class=1)
    labels = np.repeat(np.arange(10), 1000)
    plif = cifar10dvs.open_reader(conf("cifar10dvs", tmp_path, split="plif")).divide(labels)
    assert plif[0][:900].tolist() == list(range(900)) and plif[1][:101].tolist() == [*range(900, 1000), 1900]
    tebn = cifar10dvs.open_reader(conf("cifar10dvs", tmp_path, split="spikingjelly")).divide(labels)
    assert tebn[1][:101].tolist() == [*range(100), 1000] and len(tebn[0]) == 9000
    drawn = cifar10dvs.open_reader(conf("cifar10dvs", tmp_path, split="random")).divide(labels)
    assert np.bincount(labels[drawn[1]]).tolist() == [100] * 10 and drawn[1].tolist() != plif[1].tolist()
    few = cifar10dvs.open_reader(conf("cifar10dvs", tmp_path)).divide(np.repeat(np.arange(2), 20))
    assert few[1].tolist() == [18, 19, 38, 39]
    with pytest.raises(ConfigError, match="Did you mean plif"):
        cifar10dvs.open_reader(conf("cifar10dvs", tmp_path, split="plf"))


def test_files_are_sorted_by_number_not_by_name() -> None:
    names = ["cifar10_cat_10.aedat", "cifar10_cat_9.aedat", "100.aedat"]
    assert sorted(names, key=lambda name: cifar10dvs.number_of(Path(name))) == [names[1], names[0], names[2]]


# --- the real parts -----------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_nmnist(real_data: Path) -> None:
    from tonic.datasets import NMNIST
    from tonic.io import read_mnist_file

    reader = nmnist.open_reader(conf("nmnist", real_data))
    for path, recording in list(zip(reader.files, reader.recordings(), strict=True))[::90]:
        theirs = read_mnist_file(str(path), NMNIST.dtype)
        assert columns(recording, 34, 34) == tuple(theirs[name].tolist() for name in ("t", "x", "y", "p"))
        assert not recording.dropped


@pytest.mark.data
def test_real_dvs128(real_data: Path) -> None:
    reader = dvs128.open_reader(conf("dvs128", real_data))
    recordings = list(reader.recordings())
    assert all(0 < r.time[-1] < 300_000 and not r.dropped for r in recordings)  # windows of 290 ms, in us
