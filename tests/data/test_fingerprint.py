"""What names the contents of a split: the same names with other events, or a part of the set, are other data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from fake_files import write_nmnist

from snnexp.config import DatasetConf, EventDatasetConf, RandmanDatasetConf
from snnexp.data import open_data
from snnexp.data.base import DataInfo
from snnexp.data.events.source import open_events
from snnexp.data.splits import data_fingerprint
from snnexp.data.store.store import digest_events

CPU = torch.device("cpu")


def events(root: Path, **keys: object) -> DataInfo:
    conf = EventDatasetConf(name="nmnist", root=str(root), val_fraction=0.25, **keys)  # type: ignore[arg-type]
    return open_events(conf, CPU).info


def test_fingerprint_by_hand() -> None:
    contents, labels = np.array([[1, 2], [3, 4]], np.uint8), np.array([7, 9])
    text = b"[1, 1, 2]\n[train] 2\n" + bytes([1, 2, 3, 4]) + b"\x07" + bytes(7) + b"\x09" + bytes(7)
    expected = hashlib.sha256(text).hexdigest()[:16]
    assert data_fingerprint((1, 1, 2), train=(contents, labels)) == expected
    assert data_fingerprint((1, 1, 2), test=(contents, labels)) != expected
    assert data_fingerprint((1, 2, 1), train=(contents, labels)) != expected
    assert data_fingerprint((1, 1, 2), train=(contents[::-1], labels)) != expected
    assert data_fingerprint((1, 1, 2), train=(contents, labels[::-1])) != expected


def test_same_names_other_events(tmp_path: Path) -> None:
    """`split_hash` names the samples, the fingerprint what is in them."""
    for root, seed in (("a", 0), ("again", 0), ("b", 1)):
        write_nmnist(tmp_path / root, per_class=4, seed=seed)
    a, again, b = (events(tmp_path / root) for root in ("a", "again", "b"))
    assert a.split_hash == again.split_hash == b.split_hash
    assert a.data_fingerprint == again.data_fingerprint != b.data_fingerprint


def test_one_event_in_one_file(tmp_path: Path) -> None:
    write_nmnist(tmp_path, per_class=4)
    before = events(tmp_path)
    path = sorted(tmp_path.rglob("*.bin"))[5]
    content = bytearray(path.read_bytes())
    content[0] ^= 1  # x of the first event
    path.write_bytes(content)
    after = events(tmp_path)
    assert after.split_hash == before.split_hash and after.data_fingerprint != before.data_fingerprint


def test_a_part_is_other_data_and_binning_is_not(tmp_path: Path) -> None:
    write_nmnist(tmp_path, per_class=4)
    whole = events(tmp_path).data_fingerprint
    assert events(tmp_path, num_steps=3, bin_by="count", downsample=2).data_fingerprint == whole
    assert events(tmp_path, limit_test=3).data_fingerprint != whole
    assert events(tmp_path, split_seed=1).data_fingerprint != whole


def test_bundled_digits_and_generated_sets_never_change() -> None:
    """May change only with 'Changes results'."""
    digits = open_data(DatasetConf(name="digits"), CPU).info
    randman = [open_data(RandmanDatasetConf(name="randman", split_seed=seed), CPU).info for seed in (0, 0, 1)]
    assert digits.data_fingerprint == "755a1de7faf1dc24"
    assert randman[0].data_fingerprint == randman[1].data_fingerprint != randman[2].data_fingerprint


def test_digest_of_a_sample_by_hand() -> None:
    expected = hashlib.blake2b(b"\x01\x00\x00\x00\x05\x00", digest_size=8).digest()
    assert digest_events(b"\x01\x00\x00\x00", b"\x05\x00") == int.from_bytes(expected, "little")
