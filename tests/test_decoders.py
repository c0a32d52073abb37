"""Decoders by hand, and against snntorch.functional where the two define the same thing, gradients included."""

from __future__ import annotations

import math
from typing import Any

import pytest
import snntorch.functional as SF
import torch
import torch.nn.functional as F

from snnexp.coding_rules import DECODER_LOSSES, check_decoder
from snnexp.config import DecoderConf, NeuronConf
from snnexp.decoders import Decoder, build_decoder, first_spike_time
from snnexp.errors import ConfigError

# 3 steps, 2 samples, 2 classes. Sample 0: class 0 at steps 0 and 1, class 1 at step 1. Sample 1: class 1 at step 2.
SPK = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
MEM = torch.tensor([[[1.0, 0.5], [0.25, 0.5]], [[1.5, 1.0], [0.5, 0.75]], [[0.5, 0.25], [0.75, 1.25]]])
LABELS = torch.tensor([0, 1])


def decoder(name: str, classes: int = 2, steps: int = 3, **keys: Any) -> Decoder:
    keys.setdefault("loss", DECODER_LOSSES[name][0])
    return build_decoder(DecoderConf(name=name, **keys), classes, steps)


def random_output(seed: int = 0, steps: int = 6, batch: int = 5, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    spk = (torch.rand(steps, batch, classes) < 0.3).float()
    spk[:, 0, 0] = 0  # a silent neuron
    return spk, torch.randint(0, classes, (batch,))


# --- scores by hand ---


@pytest.mark.parametrize("name", ["rate", "vote"])
def test_rate_scores(name: str) -> None:
    assert torch.allclose(decoder(name).scores(SPK, None), torch.tensor([[2 / 3, 1 / 3], [0, 1 / 3]]))


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("last", [[0.5, 0.25], [0.75, 1.25]]),
        ("mean", [[1.0, 1.75 / 3], [0.5, 2.5 / 3]]),
        ("max", [[1.5, 1.0], [0.75, 1.25]]),
    ],
)
def test_membrane_scores(reduce: str, expected: list[list[float]]) -> None:
    assert torch.allclose(decoder("membrane", reduce=reduce).scores(SPK, MEM), torch.tensor(expected))


def test_temporal_weights() -> None:
    linear = decoder("temporal_weight", gamma=2.0).scores(SPK, None)  # w = 2, 4/3, 2/3
    assert torch.allclose(linear, torch.tensor([[10 / 3, 4 / 3], [0, 2 / 3]]))
    exponential = decoder("temporal_weight", weights="exponential", gamma=2.0).scores(SPK, None)  # w = 1, 1/2, 1/4
    assert torch.allclose(exponential, torch.tensor([[1.5, 0.5], [0, 0.25]]))


def test_first_spike_scores_order_by_time_then_membrane() -> None:
    assert first_spike_time(SPK).tolist() == [[0, 1], [3, 2]]
    found = decoder("first_spike").scores(SPK, MEM)
    sigmoid = [0.99 * (1 / (1 + math.exp(-mem)) - 0.5) for mem in (1.0, 1.0, 0.75, 1.25)]
    assert torch.allclose(
        found.flatten(), torch.tensor([0 + sigmoid[0], -1 + sigmoid[1], -3 + sigmoid[2], -2 + sigmoid[3]])
    )
    tied = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])
    mem = torch.tensor([[[9.0, 9.0, 9.0]], [[1.0, 1.5, 0.9]], [[9.0, 9.0, 9.0]]])
    three = decoder("first_spike", classes=3)
    assert three.predict(three.scores(tied, mem)).tolist() == [1]


def test_a_silent_class_comes_after_one_that_fires_last() -> None:
    spk = torch.zeros(4, 1, 2)
    spk[3, 0, 1] = 1
    found = decoder("first_spike", steps=4).scores(spk, torch.tensor([100.0, -100.0]).expand(4, 1, 2))
    assert found.argmax(-1).tolist() == [1]


def test_all_silent_falls_back_on_the_membrane() -> None:
    found = decoder("first_spike").scores(torch.zeros(3, 2, 2), MEM)
    assert found.argmax(-1).tolist() == [0, 1]


def test_equal_scores_go_to_the_lowest_class() -> None:
    rate = decoder("rate", classes=3)
    assert rate.predict(rate.scores(torch.zeros(2, 1, 3), None)).tolist() == [0]


# --- losses ---


def test_cross_entropy_of_counts_by_hand() -> None:
    # Counts (2, 1) and (0, 1): -log softmax = log(1 + e^-1) for both.
    assert decoder("rate").loss(SPK, None, LABELS).item() == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-6)
    scaled = decoder("rate", scale=3.0).loss(SPK, None, LABELS)
    assert scaled.item() == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-6)


def test_rate_mse_by_hand() -> None:
    loss = decoder("rate", loss="mse", correct_rate=0.5, incorrect_rate=0.25).loss(SPK, None, LABELS)
    expected = ((2 / 3 - 0.5) ** 2 + (1 / 3 - 0.25) ** 2 + (0 - 0.25) ** 2 + (1 / 3 - 0.5) ** 2) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_step_mse_by_hand() -> None:
    # Against (1, 0) for sample 0 and (0, 1) for sample 1 at each step: 1 + 1 and 1 + 1 of 12 entries are wrong.
    assert decoder("rate", loss="mse_step").loss(SPK, None, LABELS).item() == pytest.approx(4 / 12)


def test_temporal_losses_by_hand() -> None:
    # First spikes 0, 1 and (silent counts as) 2, 2; targets 0, 2 and 2, 0 with T = 3.
    loss = decoder("first_spike", loss="mse_temporal").loss(SPK, MEM, LABELS)
    assert loss.item() == pytest.approx((0 + 1 + 0 + 4) / 9 / 4)
    cross_entropy = decoder("first_spike").loss(SPK, MEM, LABELS)
    assert cross_entropy.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (decoder("rate", 4, 6), SF.ce_count_loss()),
        (decoder("vote", 4, 6, votes=2), SF.ce_count_loss()),
        (decoder("rate", 4, 6, loss="ce_step"), SF.ce_rate_loss()),
        (decoder("first_spike", 4, 6), SF.ce_temporal_loss()),
        # snnTorch's own default off_target=-1 ends up as 0 there, so that all classes should fire at once: 5 is meant.
        (decoder("first_spike", 4, 6, loss="mse_temporal"), SF.mse_temporal_loss(off_target=5)),
        (
            decoder("first_spike", 4, 6, loss="mse_temporal", on_target=1, off_target=4),
            SF.mse_temporal_loss(on_target=1, off_target=4),
        ),
    ],
)
def test_spike_losses_equal_snntorch(ours: Decoder, theirs: Any) -> None:
    spk, labels = random_output()
    mine, other = spk.clone().requires_grad_(), spk.clone().requires_grad_()
    loss, reference = ours.loss(mine, None, labels), theirs(other, labels)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, mine)
    (expected,) = torch.autograd.grad(reference.sum(), other)
    assert gradient.abs().sum() > 0
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_rate_mse_is_snntorch_count_mse_over_the_steps() -> None:
    spk, labels = random_output()
    reference = SF.mse_count_loss(correct_rate=1, incorrect_rate=0)(spk, labels) / len(spk)
    assert decoder("rate", 4, 6, loss="mse").loss(spk, None, labels).item() == pytest.approx(reference.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (decoder("membrane", 4, 6, reduce="max"), SF.ce_max_membrane_loss()),
        (decoder("membrane", 4, 6, loss="mse_step"), SF.mse_membrane_loss()),
        (decoder("membrane", 4, 6, loss="ce_step"), SF.ce_rate_loss()),
    ],
)
def test_membrane_losses_equal_snntorch(ours: Decoder, theirs: Any) -> None:
    spk, labels = random_output()
    mine = torch.randn(6, 5, 4).requires_grad_()
    other = mine.detach().clone().requires_grad_()
    loss, reference = ours.loss(spk, mine, labels), theirs(other, labels)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, mine)
    (expected,) = torch.autograd.grad(reference.sum(), other)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)


# --- temporal efficient training ---


def test_tet_by_hand() -> None:
    """One sample, two steps, two classes: outputs (ln 3, 0) and (0, 0), label 0, lambda 1/4, level 1."""
    out = torch.tensor([[[math.log(3), 0.0]], [[0.0, 0.0]]])
    tet = decoder("membrane", loss="tet", reduce="mean", tet_lambda=0.25, tet_level=1.0)
    steps = (math.log(4 / 3) + math.log(2)) / 2  # softmax of the right class: 3/4, then 1/2
    to_level = ((math.log(3) - 1) ** 2 + 1 + 1 + 1) / 4
    loss = tet.loss(torch.zeros_like(out), out, torch.tensor([0]))
    assert loss.item() == pytest.approx(0.75 * steps + 0.25 * to_level, rel=1e-6)
    assert torch.allclose(tet.scores(torch.zeros_like(out), out), out.mean(0))


@pytest.mark.parametrize(("share", "level"), [(0.0, 1.0), (1e-3, 1.0), (0.05, 0.3), (1.0, -1.0)])
@pytest.mark.parametrize("name", ["rate", "vote", "membrane"])
def test_tet_equals_the_loss_as_published(name: str, share: float, level: float) -> None:
    """Deng et al. 2022: the mean over steps of a cross-entropy per step, torch's MSE to a constant; gradients, too."""
    spk, labels = random_output()
    tet = decoder(name, 4, 6, loss="tet", tet_lambda=share, tet_level=level, reduce="mean")
    out = (torch.randn(6, 5, 4) if name == "membrane" else spk).requires_grad_()
    loss = tet.loss(spk, out, labels) if name == "membrane" else tet.loss(out, None, labels)
    each = torch.stack([torch.nn.functional.cross_entropy(out[t], labels) for t in range(6)]).mean()
    published = (1 - share) * each + share * torch.nn.MSELoss()(out, torch.full_like(out, level))
    assert loss.item() == pytest.approx(published.item(), rel=1e-6)
    (mine,), (theirs,) = torch.autograd.grad(loss, out), torch.autograd.grad(published, out)
    assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "loss"), [(name, loss) for name, losses in DECODER_LOSSES.items() for loss in losses])
def test_every_legal_pair_gives_a_gradient_in_float32_also_for_bf16(name: str, loss: str) -> None:
    spk, labels = random_output()
    spk, mem = spk.bfloat16().requires_grad_(), torch.randn(6, 5, 4).bfloat16().requires_grad_()
    chosen = decoder(name, 4, 6, loss=loss)
    value = chosen.loss(spk, mem, labels)
    assert value.dtype == torch.float32 and value.shape == () and value.isfinite()
    (gradient,) = torch.autograd.grad(value, mem if name == "membrane" else spk)
    assert gradient.dtype == torch.bfloat16 and gradient.abs().sum() > 0
    assert chosen.scores(spk, mem).shape == (5, 4) and chosen.scores(spk, mem).dtype == torch.float32


@pytest.mark.parametrize(("name", "loss"), [(name, loss) for name, losses in DECODER_LOSSES.items() for loss in losses])
def test_nothing_waits_for_the_device(name: str, loss: str) -> None:
    """Meta tensors have no values: whatever would copy one to the host raises."""
    spk, mem = (torch.empty(6, 5, 4, device="meta", requires_grad=True) for _ in range(2))
    chosen = decoder(name, 4, 6, loss=loss)
    chosen.loss(spk, mem, torch.empty(5, dtype=torch.int64, device="meta")).backward()
    assert (mem if name == "membrane" else spk).grad is not None
    assert chosen.predict(chosen.scores(spk, mem)).shape == (5,)


# --- what fits what ---


def test_output_of_the_wrong_width_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"\[3, 2, 2\], not \[T, B, 10\].*decoder=vote"):
        decoder("rate", classes=10).scores(SPK, None)


@pytest.mark.parametrize(
    ("keys", "neuron", "words"),
    [
        ({"name": "rate", "loss": "ce_temporal"}, {}, "Use decoder.loss=cross_entropy"),
        ({"name": "first_spike"}, {}, "Use decoder.loss=ce_temporal or mse_temporal"),
        ({"name": "rate"}, {"fire_once": True}, "Use decoder=temporal_weight"),
        ({"name": "vote"}, {"fire_once": True}, "several neurons per class"),
        ({"name": "temporal_weight", "weights": "exponential"}, {}, "only if gamma > 1"),
        ({"name": "rate", "votes": 10}, {}, "Use decoder=vote"),
        ({"name": "rate", "loss": "mse", "correct_rate": 0.1, "incorrect_rate": 0.2}, {}, "must be larger"),
        ({"name": "first_spike", "loss": "mse_temporal", "on_target": 12}, {}, "there is no such step"),
        ({"name": "first_spike", "loss": "mse_temporal", "on_target": 3, "off_target": 2}, {}, "must be earlier"),
        ({"name": "ratte"}, {}, "Did you mean rate"),
    ],
)
def test_what_does_not_fit_is_named(keys: dict[str, Any], neuron: dict[str, Any], words: str) -> None:
    errors = check_decoder(DecoderConf(**keys), NeuronConf(name="any", **neuron), num_steps=10)
    assert errors and words in " ".join(errors)


@pytest.mark.parametrize(
    ("keys", "neuron"),
    [
        ({"name": "temporal_weight"}, {"fire_once": True}),
        ({"name": "first_spike", "loss": "ce_temporal"}, {"fire_once": True}),
        ({"name": "vote", "votes": 10}, {"fire_once": True}),
        ({"name": "membrane"}, {"fire_once": True}),
        ({"name": "temporal_weight", "weights": "exponential", "gamma": 1.5}, {}),
    ],
)
def test_what_fits_passes(keys: dict[str, Any], neuron: dict[str, Any]) -> None:
    assert check_decoder(DecoderConf(**keys), NeuronConf(name="any", **neuron), num_steps=10) == []


def test_decoder_without_its_membrane_is_a_programming_error() -> None:
    assert decoder("membrane").needs_membrane and not decoder("rate").needs_membrane
    with pytest.raises(TypeError, match="membranes"):
        decoder("membrane").scores(SPK, None)


def test_two_passes_should_agree() -> None:
    # spike counts (2, 0) and (0, 0) of T = 2: p = softmax(2, 0), q = (1/2, 1/2)
    first, second = torch.ones(2, 1, 2), torch.zeros(2, 1, 2)
    first[:, :, 1] = 0
    decoder = build_decoder(DecoderConf(name="rate"), 2, 2)
    p = torch.tensor([0.880797, 0.119203])
    by_hand = sum(F.kl_div(b.log(), a, reduction="none").mean() for a, b in ((p, p * 0 + 0.5), (p * 0 + 0.5, p))) / 2
    torch.testing.assert_close(decoder.distance((first, None), (second, None)), by_hand, atol=1e-6, rtol=0)
    assert decoder.distance((first, None), (first, None)) == 0
