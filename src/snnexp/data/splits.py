"""Train, validation and test: stratified splits, smaller stratified parts, and the hashes that name what is in them.

Everything here depends on its arguments alone: the same labels, share and seed give the same split on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snnexp.errors import ConfigError

Indices = NDArray[np.int64]

EXHAUSTIVE_SUBJECTS = 14  # up to here all 2^n choices of subjects are compared, 16,384 at most
SAMPLED_CHOICES = 4096  # beyond, so many random ones
NEAR_BEST = 0.02  # choices whose error is within this of the best count as equally good: the seed picks one of them


def stratified_split(
    labels: NDArray[np.integer],
    val_fraction: float,
    seed: int,
    subjects: NDArray[np.integer] | None = None,
    key: str = "dataset.val_fraction",
) -> tuple[Indices, Indices]:
    """Split samples into training and validation with the same share of every class; whole subjects if there are any.

    Without subjects, class c gives floor(val_fraction * n_c + 1/2) of its n_c samples, drawn at random. With subjects,
    whole subjects go to validation, chosen so that the share of all samples and of each class is as near as possible to
    `val_fraction`: error = |n_val/n - f| + mean_c |n_val_c/n_c - f|. Subjects that are all the same carry no
    information, and the split is then the one without subjects. Classes without samples are ignored.

    Args:
        labels: class of each sample, [N].
        val_fraction: share for validation, 0 <= f < 1; 0 gives an empty validation part.
        seed: of the draw (dataset.split_seed).
        subjects: who was recorded, per sample, [N]; None: the data set has none.
        key: which key the share is, for messages.
    Returns: indices of the training and of the validation samples, each in rising order.
    Raises: ConfigError if a class would be empty in one of the parts; the message has the smallest share that works.
    """
    labels = np.asarray(labels)
    if val_fraction == 0:
        return np.arange(len(labels), dtype=np.int64), np.empty(0, dtype=np.int64)
    if len(labels) == 0:
        raise ConfigError(f"{key}={val_fraction:g}: there are no training samples to split.")
    if subjects is not None and len(np.unique(subjects)) > 1:
        in_val = _split_by_subject(labels, val_fraction, seed, np.asarray(subjects), key)
    else:
        in_val = _split_by_class(labels, val_fraction, seed, key)
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def _split_by_class(labels: NDArray[np.integer], val_fraction: float, seed: int, key: str) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    in_val = np.zeros(len(labels), dtype=bool)
    classes, counts = np.unique(labels, return_counts=True)
    taken = np.floor(val_fraction * counts + 0.5).astype(np.int64)
    if (taken == 0).any() or (taken == counts).any():
        smallest = int(counts.min())
        low, high = 0.5 / smallest, 1 - 0.5 / smallest
        raise ConfigError(
            _empty_class(key, val_fraction, classes[np.argmin(counts)], smallest, "samples", (taken == 0).any())
            + (
                f" Use {key}={_round_up(low):g} or more{f' (below {high:.3g})' if high < 0.95 else ''},"
                f" or {_without(key)}."
                if smallest > 1
                else f" One sample cannot be in both parts: {_without(key, alone=True)}."
            )
        )
    for label, count in zip(classes, taken, strict=True):
        in_val[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return in_val


def _split_by_subject(
    labels: NDArray[np.integer], val_fraction: float, seed: int, subjects: NDArray[np.integer], key: str
) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    names, who = np.unique(subjects, return_inverse=True)
    classes, what = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), len(classes)), dtype=np.int64)  # samples per subject and class
    np.add.at(counts, (who, what), 1)

    choices = _subject_choices(counts.sum(axis=1), val_fraction, rng)
    held_out = choices.astype(np.float64) @ counts  # [choices, classes]; float64: the fast, exact matrix product
    totals = counts.sum(axis=0)
    usable = ((held_out > 0) & (held_out < totals)).all(axis=1)
    share = held_out.sum(axis=1) / len(labels)
    # A choice further from the wanted share than no choice at all (or than everybody) is not what the user asked for.
    near = usable & (np.abs(share - val_fraction) <= min(val_fraction, 1 - val_fraction))
    if not near.any():
        speakers = (counts > 0).sum(axis=0)
        rarest = int(np.argmin(speakers))
        message = _empty_class(key, val_fraction, classes[rarest], int(speakers[rarest]), "subjects", True)
        if usable.any():
            message += (
                f" Subjects stay together: use {key}={_round_up(float(share[usable].min())):g} or more,"
                f" or {_without(key)}."
            )
        else:
            message += f" No choice of whole subjects has every class in both parts: {_without(key, alone=True)}."
        raise ConfigError(message)
    error = np.abs(share - val_fraction) + np.abs(held_out / totals - val_fraction).mean(axis=1)
    error[~near] = np.inf
    chosen: NDArray[np.bool_] = choices[rng.choice(np.flatnonzero(error <= error.min() + NEAR_BEST))]
    in_val: NDArray[np.bool_] = chosen[who]
    return in_val


def _subject_choices(sizes: NDArray[np.int64], val_fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Candidate sets of validation subjects, one per row: all of them if few, else random ones of about the size."""
    count = len(sizes)
    if count <= EXHAUSTIVE_SUBJECTS:
        bits = (np.arange(1, 2**count - 1)[:, None] >> np.arange(count)) & 1
        return bits.astype(np.bool_)
    orders = rng.permuted(np.tile(np.arange(count), (SAMPLED_CHOICES, 1)), axis=1)
    filled = np.cumsum(sizes[orders], axis=1)
    nearest = np.argmin(np.abs(filled - val_fraction * sizes.sum()), axis=1)
    choices = np.zeros((SAMPLED_CHOICES, count), dtype=np.bool_)
    np.put_along_axis(choices, orders, np.arange(count) <= nearest[:, None], axis=1)
    return choices


def _without(key: str, alone: bool = False) -> str:
    """How to do without the split that `key` is the share of."""
    if key != "dataset.val_fraction":
        return "put a test/ folder beside train/, or add samples"
    return f"use {key}=0 for no validation" if alone else "0 for no validation"


def _empty_class(key: str, val_fraction: float, label: object, count: int, unit: str, in_val: bool) -> str:
    part = ("validation" if key == "dataset.val_fraction" else "test") if in_val else "training"
    return f"{key}={val_fraction:g} leaves class {label} ({count} {unit}) without a {part} sample."


def _round_up(share: float) -> float:
    """The share with three decimals, never below it."""
    return float(np.ceil(share * 1000) / 1000)


def limit(labels: NDArray[np.integer], indices: Indices, n: int | None, seed: int) -> Indices:
    """Keep at most `n` of `indices`, with the classes in proportion; null or more than there are keeps all.

    Each class's samples are put in random order, sample k of n_c gets the key (k + 1/2)/n_c, and the n smallest keys
    win: so a smaller part is a subset of a larger one of the same seed.

    Args:
        labels: class of each sample of the whole set, [N]; `indices` points into it.
    Returns: the kept indices in rising order.
    """
    if n is None or n >= len(indices):
        return indices
    shuffled: Indices = np.random.default_rng(seed).permutation(indices)
    key = np.empty(len(shuffled))
    for label in np.unique(labels[shuffled]):
        members = np.flatnonzero(labels[shuffled] == label)
        key[members] = (np.arange(len(members)) + 0.5) / len(members)
    kept: Indices = np.sort(shuffled[np.argsort(key, kind="stable")[:n]])
    return kept


def split_hash(**splits: Iterable[str | int]) -> str:
    """Name a split: the first 16 hex digits of SHA-256 over each part's name and its samples' identities, in order.

    Identities are what does not depend on where the files lie: relative paths, or positions in the official order.
    """
    digest = hashlib.sha256()
    for name, identities in splits.items():
        digest.update(f"[{name}]\n".encode())
        digest.update("".join(f"{identity}\n" for identity in identities).encode())
    return digest.hexdigest()[:16]


def data_fingerprint(shape: tuple[int, ...], **splits: tuple[NDArray[Any], NDArray[np.integer]]) -> str:
    """Name what is in a split, as `split_hash` names who: 16 hex digits of SHA-256 over contents and labels, in order.

    Two roots with the same file names and other events differ, and so do a whole set and a part of it.

    Args:
        shape: of the sensor or the images; the same bytes mean something else on another one.
        splits: per split, contents (images, or `EventStore.digests`; first axis: samples) and labels [N].
    """
    digest = hashlib.sha256(f"{list(shape)}\n".encode())
    for name, (contents, labels) in splits.items():
        digest.update(f"[{name}] {len(labels)}\n".encode())
        digest.update(np.ascontiguousarray(contents).data)
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()[:16]
