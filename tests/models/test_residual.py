"""Residual blocks of the notation: +(body|shortcut), by hand, against a loop, in segments, counted."""

from __future__ import annotations

import pytest
import torch
from networks import make_info, make_network, make_spikes

from snnexp.analysis.activity import ActivityMeter
from snnexp.analysis.synops import SynopsMeter
from snnexp.config import NeuronConf
from snnexp.encoders import ConstantInput
from snnexp.errors import ConfigError
from snnexp.models.spec import plan

BLOCK = "c4k3-SN-+(c4k3-BN-SN-c4k3-BN-SN)-+(c6k3s2-BN-SN|c6k1s2-BN-SN)-AP2-FC-SN"


def test_by_hand() -> None:
    """Two neurons with unit weights, threshold 1, no memory: y = S(x) + S(S(x)), so a spike in makes two."""
    info = make_info(shape=(1, 1, 2), classes=2, steps=3)
    neuron = NeuronConf("hand", threshold=1.0, beta=0.0, engine="reference")
    network = make_network("FC2-SN-+(FC2-SN)-FC2-SN", info, neuron=neuron, bias=False)
    with torch.no_grad():
        network.fc1.weight.copy_(torch.eye(2))
        network.fc2.weight.copy_(torch.eye(2))
        network.fc3.weight.copy_(torch.eye(2) / 2)  # half of what comes: only a sum of two spikes reaches 1
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 1.0]]).view(3, 1, 1, 1, 2)
    spk, mem = network(x)
    assert spk[:, 0].tolist() == [[1, 0], [0, 1], [0, 1]]
    assert mem[:, 0].tolist() == [[1, 0], [0, 1], [0, 1]]
    with torch.no_grad():
        network.fc2.weight.zero_()  # the body is silent: the input alone goes on
    assert network(x).mem[:, 0].tolist() == [[0.5, 0], [0, 0.5], [0, 0.5]]


def test_layers_have_names_shapes_and_the_papers_number_of_parameters() -> None:
    layers = plan(BLOCK, (2, 12, 12), 10)
    assert [layer.name for layer in layers[2:13]] == [
        *("fork1", "conv2", "bn1", "sn2", "conv3", "bn2", "sn3", "add1"),
        *("fork2", "conv4", "bn3"),
    ]
    assert [layer.out_shape for layer in layers if layer.kind in ("fork", "shortcut", "join")] == [
        *((4, 12, 12), (4, 12, 12), (4, 12, 12)),
        *((4, 12, 12), (6, 6, 6)),
    ]
    assert [layer.kind for layer in plan("FC2-+(FC2-SN)x2-FC-SN", (1, 1, 2), 3)].count("join") == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("c4k3-SN-+(c6k3s2-BN-SN)-FC-SN", r"makes 6x6x6, and its input is 4x12x12.*fits: \|c6k1s2-BN-SN before"),
        ("c4k3-SN-+(c6k3s2|c4k1)-FC-SN", r"makes 6x6x6, and its shortcut is 4x12x12.*\|c6k1s2-BN in its place"),
        ("FC4-SN-+(FC5-SN)-FC-SN", r"makes 5, and its input is 4.*\|FC5-BN-SN"),
        ("c4k3-SN|FC-SN", "a shortcut belongs into a residual block"),
        ("c4k3-SN-+(c4k3", "expected [)] here"),
        ("c4k3-SN-+(c4k3|)-FC-SN", "a token is missing here"),
        ("c4k3-SN-+(c4k3-SN)x0-FC-SN", "a block is repeated once at least"),
        ("FC10-SN-+(FC10-SN)", r"the network must end in SN, not in \+"),
        ("c4k3-SN-+(NN-c4k3)-FC-SN", "NN normalises spikes, so it stands right after an SN"),
    ],
)
def test_wrong_blocks_are_pointed_at(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(spec, (2, 12, 12), 10)


@pytest.mark.parametrize("constant", [False, True])
def test_segments_of_time_and_engines_give_the_same_gradients(constant: bool) -> None:
    info = make_info(shape=(2, 8, 8), steps=5)
    found = []
    for engine, steps in (("reference", None), ("numba", None), ("numba", 2)):
        neuron = NeuronConf("block", engine=engine, threshold=0.3, beta=0.6, learn_threshold=True)
        torch.manual_seed(0)
        network = make_network(
            f"+(c2k3-BN)-{BLOCK}", info, neuron=neuron, build={"checkpoint_steps": steps}, bn_per_step=True
        ).double()
        frames = make_spikes(info).double()
        out = network(ConstantInput(frames[0] + 0.3, 5) if constant else frames)
        weights = torch.linspace(-1, 1, out.mem.numel(), dtype=torch.float64).view_as(out.mem)
        (out.mem * weights).sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
        found.append([out.spk, out.mem, *grads])
    assert found[0][0].mean() > 0
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_spikes_and_operations_of_a_block_are_counted() -> None:
    info = make_info(shape=(1, 1, 2), classes=2, steps=3)
    neuron = NeuronConf("hand", threshold=1.0, beta=0.0, engine="reference")
    network = make_network("FC2-SN-+(FC2-SN|FC2-SN)-FC2-SN", info, neuron=neuron, bias=False)
    with torch.no_grad():
        for layer in (network.fc1, network.fc2, network.fc3, network.fc4):
            layer.weight.copy_(torch.eye(2))
    activity, synops = ActivityMeter(network), SynopsMeter(network)
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]).view(3, 1, 1, 1, 2)
    for meter in (activity, synops):
        network(x, meter)
    result = synops.result()
    # spikes: 2 in each of four layers; accumulates of fc1, fc2, fc3: 2 each; fc4 sees twos: it multiplies
    assert (result.effective_acs, result.effective_macs) == (6, 2)
    metrics = activity.metrics("val")
    assert [metrics[f"val/dead_neurons/sn{n}"] for n in (1, 2, 3, 4)] == [1, 1, 1, 1]
