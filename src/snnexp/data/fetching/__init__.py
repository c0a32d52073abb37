"""Getting files that are not there: addresses and checksums, download, unpacking. `downloads.py` is the way in."""
