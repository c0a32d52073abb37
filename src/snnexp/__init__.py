"""snnexp: train spiking neural networks from the command line and keep a complete record."""

__version__ = "0.1.0"
