"""The bench: whole training steps of snnexp against its peers, the data path, and the start of the command.

python -m benchmarks [--only W1,W3] [--device cpu|cuda] [--quick] [--out DIR]; docs/benchmarks.md tells what it found.
"""
