"""The text files of the original DVS128 Gesture in all the ways in which people write them; AEDAT by its first line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_files import aedat2_bytes, aedat4_bytes, aedat31_bytes, random_events, write_cifar10dvs, write_dvs_trials

from snnexp.config import EventDatasetConf
from snnexp.data.base import DataInfo
from snnexp.data.events.source import open_events
from snnexp.data.readers import aedat, cifar10dvs
from snnexp.data.readers.trial_lists import read_labels, read_lists
from snnexp.errors import ConfigError, DataError

ROWS = [(label, 1000 * k, 1000 * k + 900) for k, label in enumerate([1, *range(1, 12)])]
LIST = "trials_to_train.txt"


def info(root: Path, name: str = "dvs128", **keys: object) -> DataInfo:
    conf = EventDatasetConf(name=name, root=str(root), **{"val_fraction": 0.0, **keys})  # type: ignore[arg-type]
    return open_events(conf, torch.device("cpu")).info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dvs_trials(tmp_path)
    return tmp_path / "DvsGesture"


def trials(path: Path, text: str, encoding: str = "utf-8") -> list[tuple[int, int, int]]:
    path.write_bytes(text.encode(encoding))
    return [trial[:3] for trial in read_labels(path)[0]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t", " ", ", "])
@pytest.mark.parametrize("header", ["class,startTime_usec,endTime_usec", ""])
def test_label_files(tmp_path: Path, encoding: str, separator: str, header: str) -> None:
    lines = [header] * bool(header) + [",".join(map(str, row)) for row in ROWS]
    text = "\r\n".join(line.replace(",", separator) for line in lines) + "\r\n\r\n"
    assert trials(tmp_path / "a.csv", text, encoding) == ROWS


def test_headers_that_say_another_order_or_unit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert trials(path, "start_ms,end_ms,label\n1,2.5,7\n") == [(7, 1000, 2500)]
    assert trials(path, "user;class;start (s);end (s)\nanna;7;0,5;2\n") == [(7, 500_000, 2_000_000)]
    assert trials(path, '# by hand\n"1","0","900"\n') == [(1, 0, 900)]
    with pytest.raises(DataError, match=r"a\.csv: line 1 is not a header with class, start and end"):
        trials(path, "a,b,c,d\n1,2,3,4\n")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("1,900,0", "start 900, end 0.*ends after its start"),
        ("0,0,900", "class 0.*Classes are 1 to 11"),
        ("1,abc,900", "is not class,start,end"),
        ("1,0", "is not class,start,end"),
        ("1.5,0,900", "class 1.5"),
        ("1,nan,900", "is not class,start,end"),
    ],
)
def test_rows_that_cannot_be_are_named_by_line(tmp_path: Path, row: str, says: str) -> None:
    with pytest.raises(DataError, match=rf"a\.csv: line 3 .*{says}"):
        trials(tmp_path / "a.csv", f"class,startTime_usec,endTime_usec\n1,0,900\n{row}\n")
    with pytest.raises(DataError, match="holds no row"):
        trials(tmp_path / "a.csv", "class,startTime_usec,endTime_usec\n")


def test_rows_that_overlap_or_lie_outside_are_noted(folder: Path) -> None:
    path = folder / "user01_led_labels.csv"
    rows = [(1, 0, 1200), (1, 1000, 2000), *ROWS[2:11], (11, 10**9, 10**9 + 5000)]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    notes = info(folder.parent).notes
    assert "user01_led_labels.csv: the trials of lines 1 and 2 overlap by 200 us" in notes
    assert any("line 12 (1,000,000,000 to" in note and "outside the recording" in note for note in notes)


def test_trials_that_all_lie_outside_are_refused_with_the_reason(folder: Path) -> None:
    for path in folder.glob("*.csv"):
        path.write_text("".join(f"{label},{start + 10**9},{end + 10**9}\n" for label, start, end in ROWS))
    with pytest.raises(
        DataError, match=r"24 of 24 train samples hold no event.*lies outside the recording.*other units or origin"
    ):
        info(folder.parent)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_lists_in_any_encoding(folder: Path, encoding: str) -> None:
    text = "# written by hand\r\nuser01_led.aedat\r\nelsewhere\\DvsGesture\\user02_led.aedat\r\n"
    (folder / LIST).write_bytes(text.encode(encoding))
    assert info(folder.parent).counts == {"train": 24, "val": 0, "test": 12}


def test_what_a_list_misses_repeats_or_leaves_out_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "user02_led_labels.csv").unlink()
    (folder / "user03_led.aedat").write_bytes(b"")
    lines = ["user01_led.aedat", "user02_led.aedat", "gone.aedat", "user01_led.aedat", "something else"]
    (folder / LIST).write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING):
        found = info(folder.parent)
    assert found.counts["train"] == 12
    for text in (
        "2 listed, but not there: user02_led_labels.csv, gone.aedat",
        "1 listed twice, taken once: user01_led.aedat",
        "1 name no .aedat file: line 5 (something else)",
        "2 recordings in neither list: user02_led.aedat, user03_led.aedat",
    ):
        assert text in "\n".join(found.notes) and text in caplog.text


def test_a_recording_in_both_lists_is_named(folder: Path) -> None:
    (folder / "trials_to_test.txt").write_text("user24_led.aedat user01_led.aedat\n")
    notes = "\n".join(info(folder.parent).notes)
    assert "1 recording in both lists, for training and for test: user01_led.aedat" in notes
    assert "train and test share 12 recordings" in notes


def test_lists_that_name_nothing_or_are_missing_are_errors(folder: Path) -> None:
    (folder / LIST).write_text("user99_led.aedat\n")
    with pytest.raises(DataError, match=r"trials_to_train\.txt: none of the recordings.*1 listed.*user99_led\.aedat"):
        read_lists(folder)
    (folder / LIST).unlink()
    with pytest.raises(DataError, match=r"trials_to_train\.txt: is missing beside the other list"):
        read_lists(folder)


# --- AEDAT --------------------------------------------------------------------------------------------------------


def test_a_late_event_at_the_overflow_is_late_and_no_overflow(tmp_path: Path) -> None:
    """Stamps of 32 bits, by hand; what comes late from before the overflow is one step back."""
    stamps = np.array([2**32 - 10, 2**32 - 2, 3, 2**32 - 1, 8, 20])
    (tmp_path / "a.aedat").write_bytes(aedat2_bytes(stamps, np.zeros(6, np.int64)))
    time, _ = aedat.read_aedat2(tmp_path / "a.aedat")
    assert (time - time.min()).tolist() == [0, 8, 13, 9, 18, 30]
    assert aedat.unwrap(np.array([3, 2**32 - 1, 5]), 32).tolist() == [3, -1, 5]  # the late one first, or second


def test_an_overflow_inside_a_packet_of_aedat31(tmp_path: Path) -> None:
    t = np.array([2**31 - 5, 2**31 - 1, 1, 2**31 - 2, 4])
    (tmp_path / "a.aedat").write_bytes(aedat31_bytes((t, t % 7, t % 5, t % 2)))
    assert aedat.read_aedat31(tmp_path / "a.aedat")[0].tolist() == [*t[:2], 2**31 + 1, 2**31 - 2, 2**31 + 4]


def test_events_that_begin_like_a_comment(tmp_path: Path) -> None:
    words = np.array([0x23000001, 0x23000002])
    (tmp_path / "a.aedat").write_bytes(aedat2_bytes(np.array([1, 2]), words))
    assert aedat.read_aedat2(tmp_path / "a.aedat")[1].tolist() == words.tolist()


@pytest.mark.parametrize("variant", ["aedat", "aedat4"])
def test_the_variant_is_read_from_the_files_not_their_names(tmp_path: Path, variant: str) -> None:
    other = {"aedat": "aedat4", "aedat4": "aedat"}[variant]
    write_cifar10dvs(tmp_path / "a", variant, per_class=3)
    write_cifar10dvs(tmp_path / "b", variant, per_class=3)
    for path in (tmp_path / "b").rglob(f"*.{variant}"):
        path.rename(path.with_suffix(f".{other}"))
    a, b = (info(tmp_path / name, "cifar10dvs") for name in ("a", "b"))
    assert (b.variant, b.data_fingerprint, b.counts) == (variant, a.data_fingerprint, a.counts)
    with pytest.raises(ConfigError, match=rf"those in .* are AEDAT .*Use dataset\.variant={variant}"):
        info(tmp_path / "b", "cifar10dvs", variant=other)
    assert info(tmp_path / "b", "cifar10dvs", variant=variant).counts == a.counts  # the way out


def test_another_version_is_named(tmp_path: Path) -> None:
    t, x, y, p = random_events(np.random.default_rng(0), 20, 128, 128, 1000)
    path = tmp_path / "cifar10_cat_0.aedat"
    path.write_bytes(aedat31_bytes((t, x, y, p)))
    with pytest.raises(DataError, match=r"cat_0\.aedat: is an AEDAT 3 file, but an AEDAT 4\.0 or AEDAT 2\.0 file"):
        cifar10dvs.variant_of(path)
    for content in (aedat2_bytes(t, x), aedat4_bytes([(t, x, y, p)])):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is an AEDAT [24]\.0 file, but an AEDAT 3\.1 file is wanted"):
            aedat.read_aedat31(path)
