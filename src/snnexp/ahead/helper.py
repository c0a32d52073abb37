"""The process that compiles ahead (`ahead/__init__.py`): it takes two steps of the run's network on random input."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from snnexp import ahead

if TYPE_CHECKING:
    from snnexp.experiment import Experiment

log = logging.getLogger(__name__)

MEMORY = 128 << 20  # bytes that a step of the helper may take
DENSITY = 0.03  # of the random events: as sparse as real ones, so that backward goes the same way


def main() -> None:
    """Compile for the configuration and the data that come through the pipe; its end is this process's end.

    Exit codes: `ahead.DONE`, `FAILED`, `LEFT`.
    """
    code = ahead.FAILED
    try:
        code = _work()
    except Exception:
        log.debug("kernels are not compiled ahead", exc_info=True)
    finally:
        os._exit(code)  # the other thread sits in a read, where Python's own way out would abort


def _work() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the run decides how it ends
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    turn = _Turn()
    threading.Thread(target=_listen, args=(messages, turn), daemon=True).start()
    from snnexp.ahead.kernel_locks import share_kernels

    conf = messages.get()
    from snnexp.experiment import Experiment  # while the run imports it, too

    if not share_kernels(before=turn.wait):
        return ahead.LEFT
    rehearse(_experiment(Experiment, conf, messages.get()))
    return ahead.DONE


class _Turn:
    """Whether this process may go on, or the run measures something."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self._answers = os.dup(1)
        os.dup2(2, 1)  # what else is printed is no answer

    def wait(self) -> None:
        """Between two kernels, where no lock is held: if the run measures, tell it that it may, and wait."""
        if not self.free.is_set():
            os.write(self._answers, b".")
            self.free.wait()


def _listen(messages: queue.SimpleQueue[Any], turn: _Turn) -> None:
    """Hand messages on until the run ends or closes the pipe."""
    try:
        while True:
            message = pickle.load(sys.stdin.buffer)
            if message == ahead.REST:
                turn.free.clear()
            elif message == ahead.GO_ON:
                turn.free.set()
            else:
                messages.put(message)
    except Exception:
        os._exit(ahead.LEFT)


def _experiment(kind: type[Experiment], conf: Any, described: dict[str, Any]) -> Experiment:
    """The run's network and decoder, with nothing behind its data."""
    import torch

    from snnexp.data.base import DataInfo
    from snnexp.decoders import build_decoder
    from snnexp.experiment import build

    torch.set_num_threads(1)  # the other core is the run's
    info, device = DataInfo.from_input(described), torch.device("cpu")
    decoder = build_decoder(conf.decoder, info.num_classes, info.num_steps)
    return kind(conf, device, SimpleNamespace(info=info), build(conf, info, device), decoder)  # type: ignore[arg-type]


def rehearse(experiment: Experiment) -> None:
    """Train on one batch of random input, then evaluate it, the other way round than the run: compiles what these call.

    A first convolution follows events, since what the engine does behind it hangs on that; later ones are dense: what
    they measure is the run's to compile.
    """
    import torch

    from snnexp.analysis.activity import ActivityMeter, counted_eps
    from snnexp.data.base import EventFrames
    from snnexp.models import sparsity

    network, trainer = experiment.network, experiment.conf.trainer
    batch, rules = _batch(experiment), sparsity.rules(network)
    for number, rule in enumerate(rules):
        follows = number == 0 and isinstance(batch.frames, EventFrames)
        rule.limits = sparsity.ALWAYS if follows else sparsity.Limits(0.0, 0.0)
    network.train()
    network.set_epoch(1, trainer.max_epochs)
    _, loss = experiment.trained_on(batch, ActivityMeter(network, counted_eps(trainer, "train")))
    loss.backward()  # type: ignore[no-untyped-call]
    network.eval()
    with torch.no_grad():
        meter = ActivityMeter(network, counted_eps(trainer, "val"))
        experiment.predict(experiment.forward(batch, meter))


def _batch(experiment: Experiment) -> Any:
    """As many samples as the run's batches have, or as memory allows: few may go another way than many."""
    import torch

    from snnexp.data.base import Batch, EventFrames

    info, size = experiment.source.info, experiment.conf.dataset.batch_size
    while size > 1 and experiment.network.step_memory_bytes(size) > MEMORY:
        size //= 2
    labels = torch.arange(size) % info.num_classes
    if info.kind == "image":
        return Batch(torch.randint(0, 256, (size, *info.shape), dtype=torch.uint8), labels)
    frames = (torch.rand(info.num_steps, size, *info.shape) < DENSITY).float()
    if not (experiment.network.wants_events and experiment.network.layers[0].kind == "conv"):
        return Batch(frames, labels)
    rows = frames.flatten(0, 1).flatten(1)
    indices, counts = rows.nonzero()[:, 1].int(), rows.count_nonzero(1).cumsum(0)
    offsets, values = torch.cat([counts.new_zeros(1), counts]), torch.ones(len(indices))
    return Batch(EventFrames(indices, offsets, values, info.num_steps, size, info.shape), labels)
