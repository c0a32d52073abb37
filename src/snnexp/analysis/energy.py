"""Energy per sample from counted operations, under named assumptions, and the firing rate up to which spikes pay.

    E = ACs (ac + word m) + MACs (mac + word m) + updates u + (biases + states) word m

ACs and MACs are those of `synops.py`; every one reads its weight. An update is one neuron at one time step: u per state
that decays, which is a multiply-accumulate; states are read and written once each per update. Biases are read at every
step. m is the price of a byte of memory, word the bytes of a number. What is not in a table's sum costs nothing there.

The same network without time and spikes (ANN) does every multiplication once per sample, reads each weight and bias for
it, and has no state. Break-even: ACs are proportional to the rate at which inputs of accumulating layers spike, the
rest is not, so E equals the ANN's at one rate (spikes per input and time step, weighted by fan-out); 0: at none.

These are estimates for comparing networks, no measurement: chips differ by orders of magnitude, above all in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from snnexp.analysis.synops import Synops
from snnexp.models.network import Network
from snnexp.models.spec import WEIGHT_KINDS
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.module_layer import ModuleLayer

PJ_PER_NJ = 1000.0


@dataclass(frozen=True)
class Table:
    """Prices in picojoules; `memory` per byte, `update` per state and time step."""

    ac: float
    mac: float
    update: float
    memory: float
    word: int  # bytes
    source: str


HOROWITZ = "Horowitz 2014, doi:10.1109/ISSCC.2014.6757323, 45 nm, 0.9 V"
TABLES = {
    # fp32: add 0.9, multiply 3.7; a 64-bit word from a 32 KB cache 20
    "horowitz_45nm": Table(0.9, 4.6, 4.6, 2.5, 4, f"{HOROWITZ}: fp32, numbers from a 32 KB cache"),
    # int8: add 0.03, multiply 0.2; the same cache
    "horowitz_45nm_int8": Table(0.03, 0.23, 0.23, 2.5, 1, f"{HOROWITZ}: int8, numbers from a 32 KB cache"),
    # what most papers multiply NeuroBench's (or syops-counter's) effective ACs and MACs with; NeuroBench has no prices
    "operations_45nm": Table(0.9, 4.6, 0.0, 0.0, 4, f"{HOROWITZ}: fp32 operations alone, no memory, no updates"),
    # SpikingJelly's SimpleEnergyCostConfig: 3.12 pJ per bit for parameters read and states read and written
    "spikingjelly": Table(0.9, 4.6, 0.0, 24.96, 4, "SpikingJelly, op_counter, SimpleEnergyCostConfig.fp32"),
}


@dataclass(frozen=True)
class Size:
    """What a network has to do at each time step whatever spikes: states to update, biases to read."""

    updates: int
    states: int
    biases: int


def size_of(network: Network) -> Size:
    """Count the neurons' states and the outputs with a bias."""
    states = sum(prod(layer.shape) * _states(layer) for layer in network.neurons.values())
    biases = 0
    for layer in network.layers:
        if layer.kind in WEIGHT_KINDS and getattr(network.get_submodule(layer.name), "bias", None) is not None:
            biases += prod(layer.out_shape)
    return Size(states, states, biases)


def _states(layer: SpikingLayer) -> int:
    """Numbers that a neuron keeps from step to step, without its last spike and whether it has fired."""
    if isinstance(layer, ModuleLayer):  # its state names the membrane twice
        return max(layer.states - 2, 1)
    return layer.states - 1 - layer.dynamics.remembers_firing


@dataclass(frozen=True)
class Energy:
    """Of one table, in nanojoules per sample."""

    spikes: float  # what accumulates cost
    rest: float  # multiply-accumulates, updates, states, biases
    ann: float
    rate: float  # spikes per input and step of accumulating layers, weighted by fan-out
    break_even: float

    @property
    def total(self) -> float:
        return self.spikes + self.rest


def estimate(synops: Synops, size: Size, steps: int, table: Table) -> Energy:
    """The equations above."""
    read = table.word * table.memory
    spikes = synops.effective_acs * (table.ac + read)
    rest = synops.effective_macs * (table.mac + read)
    rest += steps * (size.updates * table.update + (2 * size.states + size.biases) * read)
    ann = synops.dense / steps * (table.mac + read) + size.biases * read
    rate = synops.effective_acs / synops.dense_acs if synops.dense_acs else 0.0
    full = synops.dense_acs * (table.ac + read)  # every input spikes at every step
    break_even = max((ann - rest) / full, 0.0) if full else 0.0
    return Energy(spikes / PJ_PER_NJ, rest / PJ_PER_NJ, ann / PJ_PER_NJ, rate, break_even)


def estimates(network: Network, synops: Synops) -> dict[str, Energy]:
    """The energy under each table."""
    size = size_of(network)
    return {name: estimate(synops, size, network.num_steps, table) for name, table in TABLES.items()}


def energy_metrics(network: Network, synops: Synops, split: str = "test") -> dict[str, float]:
    """`<split>/energy/<table>` and the same network's as an ANN in nJ per sample, and the break-even rates."""
    metrics = {}
    for name, energy in estimates(network, synops).items():
        metrics[f"{split}/energy/{name}"] = energy.total
        metrics[f"{split}/energy_ann/{name}"] = energy.ann
        metrics[f"{split}/break_even_rate/{name}"] = energy.break_even
        metrics[f"{split}/synaptic_rate"] = energy.rate
    return metrics


def energy_results(network: Network, synops: Synops) -> dict[str, Any]:
    """For results.json: each table's numbers, prices and source."""
    return {
        name: {
            "nanojoules": energy.total,
            "spikes": energy.spikes,
            "rest": energy.rest,
            "ann": energy.ann,
            "rate": energy.rate,
            "break_even_rate": energy.break_even,
            "prices_pj": {key: getattr(TABLES[name], key) for key in ("ac", "mac", "update", "memory", "word")},
            "source": TABLES[name].source,
        }
        for name, energy in estimates(network, synops).items()
    }
