"""Curves that some papers publish and no run needs: the test split at every epoch, how far the weights have moved."""

from __future__ import annotations

import torch

from snnexp.experiment import Experiment
from snnexp.models.observer import Observers
from snnexp.training.passes import evaluation_pass


class Curves:
    """What `trainer.test_curve` and `trainer.weight_change` ask for, after an epoch (0: before training).

    test_curve/accuracy, test_curve/loss: of the test split, for comparison with curves published on it. They have a
        name of their own because nothing may look at them while a run goes on: weights are selected on validation.
    weights/change: |W - W_0| / |W_0|, Euclidean over all weights and biases (Rouser, Fig. 3).
    """

    def __init__(self, experiment: Experiment) -> None:
        trainer = experiment.conf.trainer
        self.experiment = experiment
        self.on_test = trainer.test_curve and experiment.source.num_batches("test") > 0
        self.moves = trainer.weight_change
        # copies of what training starts from: made before a state is restored, so the network is as its seed made it
        self._start = [weight.detach().clone() for weight in self._weights()] if self.moves else []

    def __call__(self, epoch: int) -> dict[str, float]:
        """The metrics that were asked for, as they stand after `epoch`."""
        metrics: dict[str, float] = {}
        if self.on_test:
            result = evaluation_pass(self.experiment, "test", Observers([]), epoch)
            metrics |= {"test_curve/accuracy": result.accuracy, "test_curve/loss": result.loss}
        if self.moves:
            metrics["weights/change"] = self._change()
        return metrics

    def _weights(self) -> list[torch.nn.Parameter]:
        return self.experiment.network.parameter_groups()["weights"]

    @torch.no_grad()
    def _change(self) -> float:
        moved = sum(((now - then) ** 2).sum() for now, then in zip(self._weights(), self._start, strict=True))
        size = sum((then**2).sum() for then in self._start)
        return float(torch.sqrt(torch.as_tensor(moved) / torch.as_tensor(size)))
