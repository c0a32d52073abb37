"""Cures for dead neurons, one file each: the group `rescue` (docs/dead-neurons.md).

`cure.py` is what a cure is, `manager.py` calls it from the training loop, `rules.py` says what does not fit together.
"""
