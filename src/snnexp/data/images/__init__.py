"""Image data sets: files to uint8 in memory, and batches of them. `source.py` is the way in."""
