"""Whether a claim is one: checked with the configuration, before any work."""

from __future__ import annotations

from collections.abc import Iterator

from snnexp.claims.conf import GRADES, READINGS, SPLITS, ClaimConf
from snnexp.errors import unknown_choice


def check_claim(claim: ClaimConf) -> Iterator[str]:
    """One message for each thing that is wrong."""
    for key in ("paper", "where", "says"):
        if not getattr(claim, key):
            yield f"claim.{key}: a claim needs it."
    if not claim.arms:
        yield "claim.arms: a claim needs at least one arm, as in {fixed: {optimizer.lr_threshold: 0.0}}."
    parts = [("claim", claim), *((f"claim.values.{i}", v) for i, v in enumerate(claim.values))]
    for name, part in parts:
        for key, valid in (("grade", GRADES), ("reading", READINGS), ("split", SPLITS)):
            value = getattr(part, key)
            if value is not None and value not in valid:
                yield unknown_choice(f"{name}.{key}", value, valid)
    for index, value in enumerate(claim.values):
        yield from _arm(claim, f"claim.values.{index}.arm", value.arm)
        if value.value is None and not value.said:
            yield f"claim.values.{index}: needs a value, or said=... with the words that stand there instead."
        if (value.reading or claim.reading).endswith("_to") and value.level is None and claim.level is None:
            yield f"claim.values.{index}.level: needed for reading {value.reading or claim.reading}."
    for key in ("notes", "differs", "incomparable"):
        for index, text in enumerate(getattr(claim, key)):
            if not isinstance(text, str):  # "after one pass: ..." is a mapping to YAML
                yield f"claim.{key}.{index}: must be text. Quote it, or use no colon: {text}"
    for index, curve in enumerate(claim.curves):
        yield from _arm(claim, f"claim.curves.{index}.arm", curve.arm)
        if len(curve.epochs) != len(curve.values):
            yield f"claim.curves.{index}: {len(curve.epochs)} epochs, but {len(curve.values)} values."
    for index, compare in enumerate(claim.compare):
        yield from _arm(claim, f"claim.compare.{index}.better", compare.better)
        yield from _arm(claim, f"claim.compare.{index}.than", compare.than)


def _arm(claim: ClaimConf, name: str, arm: str) -> Iterator[str]:
    if arm not in claim.arms:
        yield unknown_choice(name, arm, list(claim.arms))
