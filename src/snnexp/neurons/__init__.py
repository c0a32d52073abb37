"""Spiking neurons: one equation (`equation.py`), its surrogates, and the engines that run it over all time steps.

Nothing is imported here, so that `snnexp.neurons.names` can be read without torch.
"""
