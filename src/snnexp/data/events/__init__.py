"""From the event store to batches: splits, bins, augmentation. `source.py` is the way in."""
