"""One training loop, one checkpoint format, optimizer and scheduler building."""
