"""rescue=resample: dormant neurons get fresh weights between epochs, and the optimizer forgets their old ones.

    s_i = r_i / (mean over the layer of r)        dormant: s_i <= rescue.dormant, or the whole layer is silent

r_i is the neuron's firing rate in the training pass that has ended; of a map, the channel's. Its incoming weights and
bias are drawn anew from what they were drawn from at first, times rescue.gain; a norm in between gets its first scale
and offset back; outgoing weights become zero (rescue.outgoing), so that what follows sees no jump. The optimizer's
moments of all of them become zero.

Source: ReDo, Sokar et al. 2023, arXiv:2302.12902 (Definition 3.1, Algorithm 1). Ours: every `every` epochs instead of
so many steps; neurons of the output layer, which ReDo leaves alone, are redrawn, too; where a whole layer is redrawn,
outgoing weights stay, since with zeros nothing would ever pass it again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snnexp.analysis.activity import LayerActivity
from snnexp.rescue.cure import Cure
from snnexp.rescue.wiring import Wiring, forget, fresh, wiring
from snnexp.training.seeding import derive_seed


def dormant(rates: Tensor, share: float) -> Tensor:
    """Which channels or neurons are dormant, from their rates [C]."""
    mean = rates.mean()
    return torch.ones_like(rates, dtype=torch.bool) if mean == 0 else rates / mean <= share


class Resample(Cure):
    """Fresh weights for dormant neurons."""

    def between_epochs(self, epoch: int, activity: Mapping[str, LayerActivity]) -> dict[str, float]:
        """Redraw what was dormant; returns how many neurons (of maps: channels) of each layer."""
        if epoch == 0 or epoch % self.conf.every:  # before training there is no training pass to look at
            return {}
        redrawn = {}
        for name in self.since:
            shape = self.network.spiking_layers[name].shape
            rates = activity[name].rates.view(shape[0], -1).mean(1)
            chosen, around = dormant(rates, self.conf.dormant), wiring(self.network, name)
            count = int(chosen.sum()) if around.weights is not None else 0
            redrawn[f"rescue/resampled/{name}"] = float(count)
            if count:
                self._redraw(around, chosen.nonzero().flatten(), name, epoch)
        return redrawn

    @torch.no_grad()
    def _redraw(self, around: Wiring, chosen: Tensor, name: str, epoch: int) -> None:
        assert around.weights is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.experiment.conf.seed, "rescue", name, epoch))
            new = fresh(around.weights)
        self._copy(around.weights, new, chosen)
        if around.recurrent is not None:
            self._copy(around.recurrent, new.get_submodule("recurrent"), chosen)
        if around.norm is not None:
            for key, value in (("weight", float(self.network.gain)), ("bias", 0.0)):
                parameter = around.norm.get_parameter(key)
                parameter[chosen.to(parameter.device)] = value
                forget(self.optimizer, parameter, chosen.to(parameter.device))
        whole = len(chosen) == len(around.weights.get_parameter("weight"))
        if self.conf.outgoing == "zero" and not whole:
            for module in (around.following, around.recurrent):
                if module is not None:
                    self._silence(module, chosen, len(around.weights.get_parameter("weight")))

    def _copy(self, module: nn.Module, new: nn.Module, rows: Tensor) -> None:
        """Take the rows of a fresh layer over; biases do not grow with the gain, as with model.gain."""
        for key, gain in (("weight", self.conf.gain), ("bias", 1.0)):
            parameter = getattr(module, key, None)
            if parameter is None:
                continue
            at = rows.to(parameter.device)
            parameter[at] = gain * new.get_parameter(key).to(parameter)[at]
            forget(self.optimizer, parameter, at)

    def _silence(self, module: nn.Module, chosen: Tensor, channels: int) -> None:
        """Set the columns that read the chosen of `channels` channels to zero; maps may come flattened."""
        weight = module.get_parameter("weight")
        each = weight.shape[1] // channels
        columns = (chosen.unsqueeze(1) * each + torch.arange(each)).flatten().to(weight.device)
        weight[:, columns] = 0
        forget(self.optimizer, weight, columns, dim=1)
