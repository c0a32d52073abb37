"""How good the limits of event-driven convolutions are: python -m benchmarks.limits

Random layers (1 to 512 channels, kernels of 1 to 7, strides 1 to 3) are timed both ways over densities, on maps and on
event lists, forward and with the weights' gradient, with as many frames as a batch may have; the fastest of three or
more turns, CPU time of one thread. Then their limits are measured as `model.sparse=auto` does it. What that chooses is
compared with the dense way and with the faster of both, over densities from 0.3 to 45 %.
The same as on a processor without AVX-512: see benchmarks/convolutions.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

from snnexp.allocator import prepare_allocator

prepare_allocator()  # before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from snnexp.models import sparsity  # noqa: E402
from snnexp.models.sparsity import Place  # noqa: E402

CHANNELS = (1, 2, 2, 2, 3, 4, 8, 12, 16, 20, 24, 32, 32, 48, 64, 64, 96, 128, 128, 256, 512)
OUTPUTS = (4, 6, 8, 12, 16, 16, 20, 24, 32, 32, 48, 64, 64, 96, 128, 128, 256, 512)
SIZES, STRIDES = (1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7), (1, 1, 1, 1, 2, 2, 3)
SIDES = (4, 7, 8, 8, 12, 14, 15, 16, 16, 17, 20, 24, 28, 32, 32, 34, 48, 64, 64)
SHARES = (0.01, 0.03, 0.06, 0.11, 0.18, 0.28, 0.4)
JUDGED = np.geomspace(0.003, 0.45, 60)
MOST_WORK, MOST_NUMBERS = 6e8, 3.2e7  # products and numbers of a layer's batch


class Choice(NamedTuple):
    """Of one layer, input and product: worst time over the dense one's, and the mean of that over the faster one's."""

    place: Place
    kind: str
    limit: float
    worst: float
    over_best: float


def drawn(rng: np.random.Generator) -> Place:
    """A layer that is worth a choice."""
    while True:
        channels, outputs, size, stride, side = (
            int(rng.choice(values)) for values in (CHANNELS, OUTPUTS, SIZES, STRIDES, SIDES)
        )
        pad, frames = int(rng.integers(0, size // 2 + 1)), int(2 ** rng.uniform(4, 10.5))
        place = Place(channels, outputs, size, stride, pad, side, side, 0, "float32")
        if side + 2 * pad < size:
            continue
        numbers = max(channels * side**2, outputs * place.pixels)
        frames = min(frames, max(int(MOST_WORK / place.products), 4), int(MOST_NUMBERS / numbers))
        if frames >= 4 and frames * place.products >= sparsity.LEAST_WORK:
            return place._replace(frames=frames)


def timed(place: Place) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds [densities, product] of following, and [product] of dense; product: forward, or with the gradient."""
    trial = sparsity.Trial(place)
    ways = [(x, True) for x in trial.inputs(place.frames, SHARES)]
    ways.append((ways[1][0], False))
    rounds, start = list[list[tuple[float, float]]](), time.thread_time()
    while len(rounds) < 3 or (len(rounds) < 6 and time.thread_time() - start < 1):
        rounds.append([trial.times(*way) for way in ways])
    best = np.array(rounds).min(0)
    return best[:-1], best[-1]


def judged(place: Place) -> tuple[list[Choice], float]:
    """What the limits of a layer choose, and the seconds that measuring them took."""
    follow, dense = timed(place)
    start = time.thread_time()
    limits = sparsity.measure(place._replace(frames=1 << (place.frames.bit_length() - 1)))
    took, found = time.thread_time() - start, []
    lines = [_lines(SHARES, seconds) for seconds in follow.T]
    for product, limit in ((1, limits.training), (0, limits.evaluation)):
        chosen = np.where(limit > JUDGED, lines[product], dense[product])
        if product and not place.lists:  # forward may follow where the gradient is dense
            ahead = lines[0] + dense[1] - dense[0]
            chosen = np.where((limits.evaluation > JUDGED) & (limit <= JUDGED), ahead, chosen)
            best = np.minimum(lines[0], dense[0]) + np.minimum(lines[1] - lines[0], dense[1] - dense[0])
        else:
            best = np.minimum(lines[product], dense[product])
        kind = f"{'event lists' if place.lists else 'maps'}, {'training' if product else 'evaluation'}"
        found.append(Choice(place, kind, limit, (chosen / dense[product]).max(), (chosen / best).mean()))
    return found, took


def _lines(x: Sequence[float], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lines through (x, y) at JUDGED, and beyond the ends."""
    i = np.clip(np.searchsorted(x, JUDGED), 1, len(x) - 1)
    at, slope = np.array(x), np.diff(y) / np.diff(x)
    return np.asarray(y[i] + slope[i - 1] * (JUDGED - at[i]))


def main() -> None:
    """Print the table, and the worst."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=130)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rng, choices, took = np.random.default_rng(given.seed), list[Choice](), list[float]()
    sparsity.measure(Place(2, 4, 3, 1, 1, 8, 8, 4, "float32"))  # compiles
    for _ in range(given.layers):
        place = drawn(rng)
        for lists in (False, True):
            found, seconds = judged(place._replace(lists=lists))
            choices += found
            took.append(seconds)
    print(
        f"{torch.backends.cpu.get_cpu_capability()}, {given.layers} layers, seed {given.seed}; measuring took (median,"
    )
    print("tenth, nine tenths, most) {:.0f}, {:.0f}, {:.0f}, {:.0f} ms\n".format(
        *(1000 * np.percentile(took, share) for share in (50, 10, 90, 100))))  # fmt: skip
    print("| | choices | over 1.03 of dense | over 1.1 | most | over the faster way, mean |\n|---|---|---|---|---|---|")
    for kind in dict.fromkeys(choice.kind for choice in choices):
        part = [choice for choice in choices if choice.kind == kind]
        over = [sum(choice.worst > bound for choice in part) for bound in (1.03, 1.1)]
        most, mean = max(choice.worst for choice in part), np.mean([choice.over_best for choice in part])
        print(f"| {kind} | {len(part)} | {over[0]} | {over[1]} | {most:.2f} | {mean:.3f} |")
    for choice in sorted(choices, key=lambda choice: -choice.worst)[:5]:
        print(f"worst: {choice.worst:.2f} below {choice.limit:g}, {choice.kind}: {tuple(choice.place)}")


if __name__ == "__main__":
    main()
