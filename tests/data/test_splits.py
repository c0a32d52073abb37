"""Splits by hand and by law: shares, whole subjects, limits, the hash, and the message when a class would be empty."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnexp.data.splits import limit, split_hash, stratified_split
from snnexp.errors import ConfigError


def test_every_class_gives_its_rounded_share() -> None:
    labels = np.repeat([0, 1, 2], [20, 25, 5])  # 10 %: 2, 2.5 and 0.5, halves up
    train, val = stratified_split(labels, 0.1, seed=0)
    assert np.bincount(labels[val]).tolist() == [2, 3, 1]
    assert sorted([*train, *val]) == list(range(50))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()


def test_split_depends_on_the_seed_alone() -> None:
    labels = np.tile(np.arange(10), 50)
    first, again, other = (stratified_split(labels, 0.2, seed)[1].tolist() for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_no_validation() -> None:
    train, val = stratified_split(np.array([0, 0, 1]), 0.0, seed=0)
    assert train.tolist() == [0, 1, 2] and val.size == 0


@pytest.mark.parametrize(("fraction", "part"), [(0.1, "validation"), (0.9, "training")])
def test_empty_class_is_an_error_with_the_smallest_share(fraction: float, part: str) -> None:
    labels = np.repeat([0, 1], [100, 4])
    with pytest.raises(ConfigError, match=rf"leaves class 1 \(4 samples\) without a {part} sample.*0\.125 or more"):
        stratified_split(labels, fraction, seed=0)
    _, val = stratified_split(labels, 0.125, seed=0)  # what the message says does work
    assert (labels[val] == 1).sum() == 1


def test_class_of_one_sample_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match="val_fraction=0 for no validation"):
        stratified_split(np.array([0, 0, 0, 1]), 0.5, seed=0)


@given(
    counts=st.lists(st.integers(4, 40), min_size=1, max_size=6),
    fraction=st.floats(0.15, 0.8),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_split_is_a_partition_with_every_class_near_its_share(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    try:
        train, val = stratified_split(labels, fraction, seed)
    except ConfigError:
        assert min(counts) * min(fraction, 1 - fraction) <= 0.5
        return
    assert sorted([*train, *val]) == list(range(len(labels)))
    held_out = np.bincount(labels[val], minlength=len(counts))
    assert (np.abs(held_out - fraction * np.array(counts)) <= 0.5 + 1e-9).all()


# --- whole subjects ---


def test_subjects_stay_together_and_the_share_is_near() -> None:
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(23), rng.integers(40, 60, 23))  # as in DVS128 Gesture
    labels = rng.integers(0, 11, len(subjects))
    train, val = stratified_split(labels, 0.1, seed=0, subjects=subjects)
    assert not set(subjects[train]) & set(subjects[val])
    assert len(val) / len(labels) == pytest.approx(0.1, abs=0.02)
    assert set(labels[val]) == set(labels[train]) == set(range(11))


def test_subjects_are_chosen_so_that_every_class_is_there() -> None:
    # Subject 3 alone has class 1 beside subject 0: only {3} or {0} can be a validation part of one subject.
    subjects = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    labels = np.array([0, 1, 0, 0, 0, 0, 0, 1])
    for seed in range(10):
        _, val = stratified_split(labels, 0.25, seed, subjects)
        assert set(subjects[val]) in ({0}, {3})


def test_the_seed_chooses_among_equally_good_subjects() -> None:
    subjects, labels = np.repeat(np.arange(10), 20), np.tile(np.arange(10), 20)
    chosen = {tuple(np.unique(subjects[stratified_split(labels, 0.1, seed, subjects)[1]])) for seed in range(30)}
    assert len(chosen) > 3 and all(len(choice) == 1 for choice in chosen)


def test_too_few_subjects_for_the_share() -> None:
    subjects, labels = np.repeat([0, 1, 2], 30), np.tile(np.arange(10), 9)
    with pytest.raises(ConfigError, match=r"Subjects stay together: use dataset\.val_fraction=0\.334 or more"):
        stratified_split(labels, 0.1, 0, subjects)
    _, val = stratified_split(labels, 0.334, 0, subjects)
    assert len(val) == 30


def test_no_choice_of_subjects_works() -> None:
    with pytest.raises(ConfigError, match=r"leaves class 1 \(1 subjects\).*No choice of whole subjects"):
        stratified_split(np.array([0, 0, 1, 0]), 0.5, 0, np.array([0, 0, 1, 2]))


def test_one_subject_carries_no_information() -> None:
    labels = np.tile(np.arange(10), 8)
    with_one = stratified_split(labels, 0.25, 3, np.zeros(80, dtype=int))
    without = stratified_split(labels, 0.25, 3)
    assert with_one[1].tolist() == without[1].tolist()


# --- limits and the hash ---


def test_limit_is_stratified_and_exact() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    kept = limit(labels, np.arange(100), 20, seed=0)
    assert np.bincount(labels[kept]).tolist() == [12, 6, 2]
    assert (np.diff(kept) > 0).all()


def test_smaller_limits_are_subsets_of_larger_ones() -> None:
    labels = np.tile(np.arange(10), 30)
    indices = np.arange(50, 300)
    parts = [set(limit(labels, indices, n, seed=1)) for n in (10, 33, 120)]
    assert parts[0] < parts[1] < parts[2] < set(indices)
    assert [len(part) for part in parts] == [10, 33, 120]


def test_no_limit_keeps_all() -> None:
    indices = np.array([4, 7])
    assert limit(np.zeros(10, dtype=int), indices, None, 0) is indices
    assert limit(np.zeros(10, dtype=int), indices, 5, 0) is indices


def test_split_hash_by_hand() -> None:
    expected = hashlib.sha256(b"[train]\n3\n1\n[val]\na/0.bin\n").hexdigest()[:16]
    assert split_hash(train=[3, 1], val=["a/0.bin"]) == expected
    assert split_hash(train=[1, 3], val=["a/0.bin"]) != expected
    assert split_hash(train=[3], val=[1, "a/0.bin"]) != expected
