"""Gradient-dead neurons: counted by hand, against brute force in NumPy, and what is left out."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose_words
from torch import Tensor

from snnexp.analysis.activity import ActivityMeter, counted_eps
from snnexp.analysis.reach import EDGES, quantile
from snnexp.analysis.weight_gradients import WeightGradients, feeding
from snnexp.config import DecoderConf, ModelConf, NeuronConf, SurrogateConf, TrainerConf
from snnexp.data.base import DataInfo
from snnexp.errors import ConfigError
from snnexp.experiment import assemble
from snnexp.models.network import Network, build_network
from snnexp.models.observer import Firing
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.module_layer import build_layer
from snnexp.neurons.names import FUSED_SURROGATES
from snnexp.neurons.surrogates import Surrogate, build_surrogate
from snnexp.tracking.identity import run_identity
from snnexp.validation import validate

EPS = 0.01


def layer_of(shape: tuple[int, ...], **neuron: Any) -> SpikingLayer:
    surrogate = SurrogateConf(**neuron.pop("surrogate", {}))
    return build_layer(NeuronConf(name="n", engine="reference", surrogate=surrogate, **neuron), shape, "sn1")


def counted(layer: SpikingLayer, *batches: Tensor, eps: float = EPS, segments: int = 1) -> dict[str, float]:
    """Metrics after these membranes [T, B, *shape], in so many segments of time, with the spikes that they make."""
    meter = ActivityMeter(torch.nn.Identity(), eps)
    for mem in batches:
        spk = (mem > layer.threshold) if layer.dynamics.strict else (mem >= layer.threshold)
        if layer.dynamics.fire_once:
            spk = spk & (spk.cumsum(0) == 1)
        pieces = list(zip(mem.chunk(segments), spk.chunk(segments), strict=True))
        for number, (u, s) in enumerate(pieces, 1):
            meter.spiking("sn1", layer, Firing(s.sum(0).float(), u, None, number == len(pieces)))
    metrics = meter.metrics("val")
    return {**metrics, "reach": meter.last["sn1"].reach}  # type: ignore[dict-item]


def test_counts_on_paper() -> None:
    # threshold 1, rectangular of width 0.5: in reach between 0.5 and 1.5, both excluded; T = 2, B = 1, 4 neurons
    layer = layer_of((4,), surrogate={"name": "rectangular", "width": 0.5})
    mem = torch.tensor([[[0.5, 0.75, 9.0, -3.0]], [[1.5, 1.25, 1.0, 0.0]]])
    found = counted(layer, mem)
    assert found["reach"].tolist() == [0, 1, 0.5, 0]  # type: ignore[attr-defined]
    assert found["val/gradient_dead/sn1"] == 0.5  # 0 fires at the second step all the same
    assert found["val/gradient_reach/sn1"] == 3 / 8


def test_fire_once_is_out_of_reach_after_its_spike_across_segments() -> None:
    layer = layer_of((2,), fire_once=True, surrogate={"name": "rectangular", "width": 0.5})
    #            neuron 0 fires at step 1, and would be in reach later; neuron 1 never fires
    mem = torch.tensor([[[0.25, 0.75]], [[1.25, 0.0]], [[0.75, 0.75]], [[1.0, 0.75]]])
    for segments in (1, 2, 4):
        assert counted(layer, mem, segments=segments)["reach"].tolist() == [1 / 4, 3 / 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FUSED_SURROGATES)
def test_the_radius_is_where_the_derivative_falls_to_the_share(name: str) -> None:
    surrogate = Surrogate(name, alpha=3.0, slope=7.0, scale=1.5, width=0.4)
    for share in (0.01, 0.3):
        radius = surrogate.radius(share)
        assert radius is not None
        x = torch.tensor([radius * 0.999, radius * 1.001], dtype=torch.float64)
        inside, outside = (surrogate.derivative(x) / surrogate.peak).tolist()
        assert inside >= share > outside


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("channels_last", [False, True])
def test_against_brute_force(seed: int, channels_last: bool) -> None:
    """Random neurons, shapes, options and batches, compared with the definition written out."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    shape = (3, 4, 5) if channels_last else ((7,), (1500,), (2, 3, 3))[seed % 3]
    name = FUSED_SURROGATES[seed % len(FUSED_SURROGATES)]
    once, relative = bool(seed % 2), seed in (1, 2)
    layer = layer_of(
        shape, threshold=[0.5, 1.5], fire_once=once, strict=bool(rng.integers(2)), relative_surrogate=relative,
        surrogate={"name": name, "width": 0.2, "slope": 5.0},
    )  # fmt: skip
    batches = [torch.randn(5, 1 + number, *shape) * 3 for number in range(3)]
    if channels_last:
        batches = [b.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for b in batches]
    theta = layer.threshold.detach().numpy()
    surrogate = layer.dynamics.surrogate
    near, steps, distances = np.zeros(shape), 0, []
    for mem in batches:
        for sample in range(mem.shape[1]):
            spent = np.zeros(shape, bool)
            for step in range(mem.shape[0]):
                u = mem[step, sample].numpy()
                x = u / theta - 1 if relative else u - theta
                passes = surrogate.derivative(torch.from_numpy(x)).numpy() >= EPS * surrogate.peak
                near += passes & ~spent
                spent |= once & ((x > 0) if layer.dynamics.strict else (x >= 0))
                steps += 1
                distances.append(x.ravel())
    found = counted(layer, *batches)
    assert np.allclose(found["reach"].numpy(), (near / steps).ravel(), atol=1e-12)  # type: ignore[attr-defined]
    assert found["val/gradient_dead/sn1"] == (near == 0).mean()
    middle = np.quantile(np.concatenate(distances), 0.5)  # a sample of a few hundred has it to a tenth of the spread
    assert abs(found["val/distance/p50/sn1"] - middle) < 0.2 * np.std(np.concatenate(distances))


def test_the_compiled_and_the_plain_way_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of((300,), threshold=[0.5, 1.5], fire_once=True)
    mem = torch.randn(6, 4, 300) * 4
    compiled = counted(layer, mem)["reach"]
    monkeypatch.setattr("snnexp.neurons.reach.Reach.window", lambda self: None)
    assert torch.equal(compiled, counted(layer, mem)["reach"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sigmoid", "atan", "straight_through_estimator", "spike_rate_escape"])
def test_surrogates_of_snntorch_are_evaluated_and_draw_no_random_numbers_of_the_run(name: str) -> None:
    layer = layer_of((3,), surrogate={"name": f"snntorch:{name}"})
    mem = torch.tensor([[[-1e4, 1.0, 1e4]]])
    before = torch.get_rng_state()
    found = counted(layer, mem)["reach"].tolist()  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), before)
    assert found[1] == 1
    assert found == ([1, 1, 1] if name == "straight_through_estimator" else [0, 1, 0])


def hump(x: Any, *, width: float) -> Any:
    """A user's derivative with its peak of 2 beside the threshold, not at it."""
    return 2 * torch.exp(-(((x - width) / width) ** 2))


def test_a_surrogate_of_ones_own_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    import snnexp.neurons.surrogates as surrogates

    monkeypatch.setattr(surrogates, "load", lambda registry, name: hump)
    surrogate = build_surrogate(SurrogateConf(name="own:hump", width=1.0))
    assert surrogate.peak == pytest.approx(2, rel=1e-3)
    layer = layer_of((4,))
    object.__setattr__(layer.dynamics, "surrogate", surrogate)
    far = math.sqrt(-math.log(EPS))  # from the peak at U - theta = 1
    mem = 1 + 1 + torch.tensor([[[-far * 1.01, -far * 0.99, far * 0.99, far * 1.01]]])
    assert counted(layer, mem)["reach"].tolist() == [0, 1, 1, 0]  # type: ignore[attr-defined]


def test_equations_of_ones_own_and_what_cannot_be_counted() -> None:
    plain = layer_of((2,), equation="snnexp.neurons.zoo:adlif", surrogate={"name": "rectangular", "width": 0.5})
    assert counted(plain, torch.tensor([[[0.75, -9.0]]]))["reach"].tolist() == [1, 0]  # type: ignore[attr-defined]
    for layer in (
        layer_of((2,), equation="snnexp.neurons.zoo:alif"),  # its threshold adapts: the membrane alone does not tell
        layer_of((2,), module="snntorch.Leaky", kwargs={"beta": 0.9}),
    ):
        found = counted(layer, torch.zeros(1, 1, 2))
        assert found["reach"] is None
        assert not [key for key in found if "gradient" in key or "distance" in key]


def test_membranes_that_are_no_numbers_are_out_of_reach() -> None:
    mem = torch.tensor([[[math.nan, math.inf, 1.0]]])
    found = counted(layer_of((3,)), mem)
    assert found["reach"].tolist() == [0, 0, 1]  # type: ignore[attr-defined]
    assert math.isfinite(found["val/distance/p50/sn1"])


def test_quantiles_of_a_histogram() -> None:
    histogram = np.zeros(len(EDGES) + 1, np.int64)
    assert math.isnan(quantile(histogram, 0.5))
    histogram[121] = 10  # between EDGES[120] = 0 and EDGES[121]
    assert quantile(histogram, 0.5) == pytest.approx(EDGES[121] / 2)
    histogram[-1] = 30
    assert quantile(histogram, 0.95) == EDGES[-1]


# --- the norm of weight gradients ---


def network_of(spec: str, shape: tuple[int, ...] = (1, 4, 4)) -> Network:
    info = DataInfo("made", "events", shape, 4, ("a", "b"), {}, {}, complete=True, split_hash="")
    neuron = NeuronConf(name="fixed", engine="reference", threshold=0.1)
    return build_network(ModelConf(name="m", spec=spec), neuron, DecoderConf(name="rate"), info)


@pytest.mark.parametrize(
    ("spec", "fed_by"),
    [
        ("c3k3-BN-SN-AP2-FC6-FC5-SN-FC-SN", {"sn1": ["conv1"], "sn2": ["fc2"], "sn3": ["fc3"]}),
        ("SN-RFC5-SN-FC-SN", {"sn2": ["rfc1"], "sn3": ["fc1"]}),
        ("c4k3-SN-+(c4k3-SN-c4k3-BN|c4k1-BN)-SN-FC-SN",
         {"sn1": ["conv1"], "sn2": ["conv2"], "sn3": ["conv3", "conv4"], "sn4": ["fc1"]}),
        ("c4k3-+(c4k3-BN)-SN-FC-SN", {"sn1": ["conv1", "conv2"], "sn2": ["fc1"]}),
    ],
)  # fmt: skip
def test_which_weights_drive_which_neurons(spec: str, fed_by: dict[str, list[str]]) -> None:
    network = network_of(spec)
    names = {id(module): name for name, module in network.named_modules()}
    found = {name: [names[id(m)] for m in modules] for name, modules in feeding(network).items()}
    assert {name: sorted(fed) for name, fed in found.items()} == fed_by


def test_norms_on_paper_and_in_which_batches() -> None:
    network = network_of("RFC2-SN-FC-SN", (1, 1, 2))
    weights = WeightGradients(network)
    fed = network.get_submodule("rfc1")
    for _ in range(17):
        fed.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 0.0]])  # type: ignore[union-attr]
        fed.recurrent.weight.grad = torch.tensor([[0.0, 4.0], [0.0, 1.0]])  # type: ignore[union-attr]
        weights.after_backward()
    norms = weights.norms()
    assert list(norms) == ["sn1"]  # nothing came back to fc1
    assert norms["sn1"].neurons.tolist() == [5, 1]
    assert norms["sn1"].batches.tolist() == [math.sqrt(26)] * 5  # batches 1, 2, 4, 8, 16


def test_where_it_is_counted() -> None:
    on = TrainerConf(name="t", gradient_eps=0.5)
    assert [counted_eps(on, split) for split in ("train", "val", "test")] == [0.5] * 3
    for where, expected in (("evaluation", [None, 0.01, 0.01]), ("off", [None] * 3)):
        conf = TrainerConf(name="t", gradient_activity=where)
        assert [counted_eps(conf, split) for split in ("train", "val", "test")] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trainer.gradient_cutoff=2",), "backpropagation through time is trainer.truncate_steps=2."),
        (("trainer.gradient_cutoff=0",), "lies between 0 and 1, both excluded."),
        (("trainer.gradient_cutoff=0.1", "neuron.surrogate.name=snntorch:SFS"), "Use one of atan, fast_sigmoid"),
        (("trainer.gradient_cutoff=0.1", "neuron.module=snntorch.Leaky"), "keeps its surrogate to itself"),
    ],
)
def test_a_cutoff_that_cannot_be_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(compose_words("dataset=digits", *words))
    assert message in str(error.value)


def test_a_cutoff_is_in_every_surrogate_of_the_network() -> None:
    words = ("dataset=digits", "model.spec=FC4-SN-FC-SN", "trainer.gradient_cutoff=0.5", "device=cpu")
    layers = assemble(validate(compose_words(*words))).network.spiking_layers
    assert [layer.dynamics.surrogate.cutoff for layer in layers.values()] == [0.5, 0.5]


def test_the_defaults_leave_identities_alone() -> None:
    trainer = asdict(TrainerConf(name="t"))
    later = ("gradient_activity", "gradient_eps", "truncate_steps")
    older = {k: v for k, v in trainer.items() if k not in later}
    assert run_identity({"trainer": trainer}) == run_identity({"trainer": older})
    assert run_identity({"trainer": trainer | {"gradient_activity": "off"}}) != run_identity({"trainer": older})
