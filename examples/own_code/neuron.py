"""A neuron of your own: a resonator, whose current turns with its membrane. It runs compiled on every engine.

snnexp neuron.equation=neuron.py:step neuron.params.turn=0.3
"""

from snnexp.neurons.custom import Param


def step(x, mem, spk, cur, *, spike, beta, threshold, turn=Param(0.2, learn=True, per="neuron", low=0, high=1)):  # noqa: B008
    """One time step: states before the star (mem, spk and others), values behind it."""
    cur = beta * cur - turn * mem + x
    mem = beta * mem * (1 - spk.detach()) + cur
    spk = spike(mem - threshold)
    return mem, spk, cur
