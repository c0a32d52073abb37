"""Input gradients only where they are needed: the kernels against autograd, and networks against themselves without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import make_info, make_network, make_spikes
from torch import Tensor

import snnexp.models.network
import snnexp.neurons.engines
from snnexp.config import NeuronConf, SurrogateConf
from snnexp.models import input_gradient, needed
from snnexp.models.needed import Needed, conv2d, linear
from snnexp.models.network import Network
from snnexp.neurons.compiler.plan import where_needed
from snnexp.neurons.engines.numba_engine import NumbaBackend
from snnexp.neurons.equation import Dynamics
from snnexp.neurons.surrogates import Surrogate

CONVOLUTIONS = [  # C, O, k, s, pad, H, W
    (3, 5, 3, 1, 1, 7, 6),
    (1, 4, 5, 1, 2, 9, 9),
    (4, 3, 3, 2, 1, 8, 7),
    (1, 1, 1, 1, 0, 4, 4),
    (3, 20, 1, 2, 0, 7, 7),
    (2, 7, 4, 3, 0, 11, 10),
    (2, 3, 2, 3, 1, 8, 8),
    (2, 2, 5, 1, 4, 6, 6),
    (2, 3, 3, 1, 1, 1, 1),
    (2, 3, 3, 2, 3, 6, 6),
]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it costs."""
    monkeypatch.setattr(input_gradient, "pays", lambda *_: True)
    monkeypatch.setattr(needed, "may_pay", lambda products: True)
    monkeypatch.setattr(input_gradient, "COPY_BYTES", 1 << 12)  # bands of few rows


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask(*shape: int, share: float) -> Tensor:
    """Some of each frame; none of the first, and all of the last."""
    found = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < share
    found[0], found[-1] = False, share > 0
    kind = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return found.to(torch.uint8).contiguous(memory_format=kind)


def same(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_convolutions_against_autograd(always: None, share: float) -> None:
    for channels, outputs, size, stride, pad, height, width in CONVOLUTIONS:
        x = draw(4, channels, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = draw(outputs, channels, size, size, seed=1).requires_grad_()
        bias = draw(outputs, seed=2).requires_grad_()
        where = mask(*x.shape, share=share)
        y = F.conv2d(x, weight, bias, stride, pad)
        expected = torch.autograd.grad(y, (x, weight, bias), grad := draw(*y.shape, seed=4))
        ours = conv2d(x, weight, bias, stride, pad, Needed(where))
        assert torch.equal(ours, y)
        same(torch.autograd.grad(ours, (x, weight, bias), grad), (expected[0] * where, *expected[1:]))


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_fully_connected_layers_against_autograd(always: None, share: float) -> None:
    for rows, inputs, outputs in ((5, 7, 3), (130, 20, 33), (64, 3, 16)):
        x, weight, bias = draw(rows, inputs), draw(outputs, inputs, seed=1), draw(outputs, seed=2)
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        where = mask(rows, inputs, share=share)
        expected = torch.autograd.grad(F.linear(*leaves), leaves, grad := draw(rows, outputs, seed=4))
        found = torch.autograd.grad(linear(x, weight, bias, Needed(where)), leaves, grad)
        same(found, (expected[0] * where, *expected[1:]))


def test_same_bits_for_any_number_of_threads(always: None, threads: None) -> None:
    grad, weight = draw(9, 20, 11, 11), draw(20, 3, 3, 3)
    where, found = mask(9, 3, 11, 11, share=0.3), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(Needed(where).input_gradient(grad, weight, where.shape, 1, 1))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_dense_where_that_is_faster() -> None:
    grad, weight, where = draw(3, 4, 6, 6), draw(4, 2, 3, 3), mask(3, 2, 6, 6, share=0.9)
    assert input_gradient.conv_input_gradient(grad, weight, 1, 1, where, 0.9) is None
    everywhere = Needed(where).input_gradient(grad, weight, where.shape, 1, 1)
    assert bool((everywhere != 0).all())
    assert input_gradient.linear_input_gradient(draw(3, 100), draw(5, 100), mask(3, 5, share=0.1), 0.1) is None
    assert input_gradient.pays(0.1, 1600, 1600, 10000, 12) and not input_gradient.pays(0.5, 1600, 1600, 10000, 12)
    assert not input_gradient.pays(0.1, 1600, 1600, 1000, 12)  # over before it has begun
    assert not input_gradient.may_pay(10)  # the ten outputs of a last layer


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, True),
        ({"fire_once": True, "force_last_spike": True}, True),
        ({"detach_reset": False, "relative_surrogate": True}, True),
        ({"spike_height": "threshold"}, False),  # theta gets some past the surrogate
        ({"spiking": False}, False),
    ],
)
def test_what_the_equation_says(options: dict[str, Any], known: bool) -> None:
    assert (where_needed(Dynamics(Surrogate("triangular"), **options), ("beta", "threshold")) is not None) == known


SPEC = "c4k3-SN-MP2-c5k3-SN-AP2-c6k3s2-BN-SN-DP0.2-FC7-SN-FC-SN"
COMPACT = SurrogateConf(name="triangular", width=0.4)


def plain_network(
    monkeypatch: pytest.MonkeyPatch, spec: str, surrogate: SurrogateConf = COMPACT, **neuron: Any
) -> Network:
    """On numba's kernels as plain Python, so that none is compiled, in float64 and ready to train."""
    monkeypatch.setattr(snnexp.neurons.engines, "_backend", lambda engine: NumbaBackend(compiled=False))
    conf = NeuronConf(name="fixed", engine="numba", beta=0.5, threshold=0.2, surrogate=surrogate, **neuron)
    network = make_network(spec, make_info((2, 10, 10), 3, 3), neuron=conf, build={"channels_last": True})
    return network.double().train()


def trained(network: Network, steps: int = 3) -> list[Tensor]:
    """Parameters after a few steps."""
    x, optimizer = make_spikes(make_info((2, 10, 10), 3, 3)).double(), torch.optim.SGD(network.parameters(), 0.5)
    torch.manual_seed(5)  # of dropout
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(x).spk.sum(0), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    return [p.detach() for p in network.parameters()]


def test_what_was_chosen_is_said_once(
    always: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(needed, "may_pay", lambda products: products > 36)  # conv3 with 5 outputs, not conv2 with 4
    with caplog.at_level("INFO", logger="snnexp"):
        trained(plain_network(monkeypatch, "c4k3-SN-c4k3-SN-c5k3-SN-FC-SN"))
    (line,) = [record.message for record in caplog.records if "gradient is needed" in record.message]
    assert line.startswith("conv3: ") and line.endswith(
        "% of its input's gradient is needed in the first batch: only there"
    )


@pytest.mark.parametrize(
    "neuron",
    [
        {"reset": "zero"},
        {"reset": "subtract", "learn_threshold": True, "threshold_per": "neuron"},
        {"surrogate": SurrogateConf(name="atan"), "alpha": 0.5},
    ],
)
def test_a_network_trains_as_without(always: None, monkeypatch: pytest.MonkeyPatch, neuron: dict[str, Any]) -> None:
    shares = spied(monkeypatch)

    def network() -> Network:
        made = plain_network(monkeypatch, SPEC, **neuron)
        for layer in made.neurons.values():
            if "surrogate" in neuron:
                layer.cut_gradient(0.8)
        return made

    start, found = [p.detach().clone() for p in network().parameters()], trained(network())
    assert len(shares) == 3 * 4 and max(shares) < 0.9 and sum(share > 0 for share in shares) > 6
    monkeypatch.setattr(snnexp.models.network, "asks", lambda *_: False)
    same(found, trained(network()))
    assert len(shares) == 3 * 4
    assert sum(not torch.equal(a, b) for a, b in zip(start, found, strict=True)) >= len(found) - 2


def spied(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Shares of gradients that are worked out only where they are needed, as they are."""
    shares: list[float] = []

    def watched(compute: Any) -> Any:
        def spy(*given: Any) -> Any:
            shares.append(given[5] if len(given) > 5 else given[-1])  # what a convolution is told more comes after it
            return compute(*given)

        return spy

    for name in ("conv_input_gradient", "linear_input_gradient"):
        monkeypatch.setattr(needed, name, watched(getattr(needed, name)))
    return shares


class _Reader:
    """An observer that is handed spikes, and may look at their gradient."""

    reads_spikes = True

    def spiking(self, *_: Any) -> None: ...

    def connection(self, *_: Any) -> None: ...


def test_residual_blocks_and_who_else_is_there(always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = spied(monkeypatch)

    def asked(spec: str, change: Any = None, observer: Any = None, **neuron: Any) -> int:
        shares.clear()
        network = plain_network(monkeypatch, spec, **neuron)
        if change:
            change(network)
        out = network(make_spikes(make_info((2, 10, 10), 3, 3)).double(), observer)
        if out.spk.requires_grad:
            (out.spk.sum() + 0.1 * sum((p**2).sum() for p in network.parameters())).backward()
        return len(shares)

    assert asked("c4k3-SN-c4k3-SN-FC-SN") == 2
    assert asked("c4k3-SN-+(c4k3-SN-c4k3)-SN-FC-SN") == 3  # the block's first layer, within it, and behind the sum's SN
    assert asked("c4k3-SN-+(c4k3-SN)-c4k3-SN-FC-SN") == 2  # what sees a sum of spikes is dense
    assert asked("c4k3-SN-MP3s2-c4k3-SN-FC-SN") == 1  # pooled by torch
    assert asked("c4k3-SN-c4k3-SN-FC-SN", observer=_Reader()) == 0
    assert asked("c4k3-SN-c4k3-SN-FC-SN", lambda n: n.conv2.register_forward_hook(lambda *_: None)) == 1
    assert asked("c4k3-SN-c4k3-SN-FC-SN", lambda n: n.conv2.register_full_backward_hook(lambda *_: None)) == 1
    assert asked("c4k3-SN-c4k3-SN-FC-SN", lambda n: n.conv2.register_forward_pre_hook(lambda *_: None)) == 1
    assert asked("c4k3-SN-DP0.2-c4k3-SN-FC-SN", lambda n: n.dp1.register_forward_hook(lambda *_: None)) == 1
    assert asked("c4k3-SN-c4k3-SN-FC-SN", lambda n: n.eval()) == 0
    assert asked("c4k3-SN-c4k3-SN-FC-SN", lambda n: setattr(n, "sparse", "never")) == 0
    assert asked("c4k3-SN-c4k3-SN-FC-SN", lambda n: setattr(n, "checkpoint_steps", 2)) == 0
    assert asked("c4k3-SN-c4k3-SN-FC-SN", lambda n: n.added_spikes.update(sn1=lambda layer, out: out.spk)) == 1
    assert asked("c4k3-SN-c4k3-SN-FC-SN", surrogate=SurrogateConf(name="atan")) == 0
    assert asked("c4k3-SN-c4k3-SN-FC-SN", spike_height="threshold", threshold_param="softplus") == 0
