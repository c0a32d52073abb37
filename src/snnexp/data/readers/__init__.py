"""Readers: the files of one data set in, recordings out. `recordings.py` says what a reader must offer."""
