"""Loss and hits of a pass, summed up on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Tally:
    """Sums of loss and hits kept on the device, so that a batch costs no synchronisation."""

    def __init__(self, device: torch.device) -> None:
        # float64 where there is one: sums over many batches must not depend on their order of magnitude
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = 0
        self.batches = 0

    def add(self, loss: Tensor, predicted: Tensor, labels: Tensor) -> None:
        """Add one batch, its mean loss and its predictions."""
        self.loss += loss.detach().to(torch.float64) * labels.numel()
        self.hits += (predicted == labels).sum()
        self.samples += labels.numel()
        self.batches += 1

    def means(self) -> tuple[float, float]:
        """Mean loss and accuracy; waits for the device."""
        count = max(self.samples, 1)
        return float(self.loss) / count, float(self.hits) / count

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"loss": self.loss, "hits": self.hits, "samples": self.samples, "batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.loss.copy_(state["loss"])
        self.hits.copy_(state["hits"])
        self.samples, self.batches = int(state["samples"]), int(state["batches"])
