"""The layer: values in effect, what learns, explicit state, checkpoints, and no trace outside itself."""

import copy
import gc
import math
import pickle
import weakref

import pytest
import snntorch as snn
import torch
from safetensors.torch import load_file, save_file

from snnexp.config import NeuronConf, SurrogateConf
from snnexp.errors import ConfigError
from snnexp.neurons.layer import SpikingLayer


def build(shape: tuple[int, ...] = (4,), spiking: bool = True, **options: object) -> SpikingLayer:
    return SpikingLayer(NeuronConf(name="test", **options), shape, "sn1", spiking=spiking)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("per", "shape", "expected"),
    [
        ("layer", (3, 4, 5), ()),
        ("channel", (3, 4, 5), (3, 1, 1)),
        ("neuron", (3, 4, 5), (3, 4, 5)),
        ("channel", (7,), (7,)),
    ],
)
def test_granularity(per, shape, expected):
    layer = build(shape, threshold_per=per, learn_threshold=True, beta_per=per, alpha=0.5, alpha_per=per)
    assert layer.threshold.shape == layer.beta.shape == layer.alpha.shape == expected


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"threshold": 1.25, "learn_threshold": True}, "threshold", 1.25),
        ({"threshold": 0.001, "learn_threshold": True, "threshold_param": "softplus"}, "threshold", 0.001),
        ({"threshold": 50, "learn_threshold": True, "threshold_param": "softplus"}, "threshold", 50),
        ({"threshold": -0.3, "learn_threshold": True, "threshold_param": "tanh"}, "threshold", -0.3),
        ({"beta": 0.9375, "learn_beta": True}, "beta", 0.9375),
        ({"beta": 1, "learn_beta": True, "decay_param": "clamp"}, "beta", 1.0),
        ({"alpha": 0.75, "learn_alpha": True}, "alpha", 0.75),
    ],
)
def test_learned_values_start_where_the_configuration_says(options, name, value):
    layer = build(**options)
    assert set(layer.learned()) == {name}
    assert layer.learned()[name].item() == pytest.approx(value, rel=1e-5)
    group = layer.threshold_parameters() if name == "threshold" else layer.decay_parameters()
    assert [id(p) for p in group] == [id(p) for p in layer.parameters()]


def test_nothing_learns_unless_asked():
    layer = build(alpha=0.5)
    assert layer.learned() == {} and list(layer.parameters()) == []
    assert layer.threshold_parameters() == [] and layer.decay_parameters() == []
    readout = build(spiking=False, learn_threshold=True, threshold=5, threshold_param="tanh", learn_beta=True)
    assert set(readout.learned()) == {"beta"}  # a readout has no use for a threshold


def test_a_clamped_decay_comes_back_from_outside():
    layer = build(beta=0.9, learn_beta=True, decay_param="clamp", engine="reference")
    layer.raw_beta.data.fill_(1.5)
    assert layer.beta.item() == 1.0
    layer(torch.full((3, 1, 4), 0.25)).mem.sum().backward()
    assert layer.raw_beta.grad.item() > 0


def test_threshold_at_learning_rate_zero_equals_fixed():
    x = rand(6, 2, 4)
    fixed, learned = build(), build(learn_threshold=True, threshold_per="neuron")
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.0)
    for _ in range(3):
        out = learned(x)
        out.spk.sum().backward()
        optimizer.step()
    assert learned.raw_threshold.grad.abs().max() > 0
    assert torch.equal(learned(x).spk, fixed(x).spk) and torch.equal(learned(x).mem, fixed(x).mem)


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_state_never_leaks_from_batch_to_batch(engine):
    layer = build(engine=engine, alpha=0.5, fire_once=True, reset="subtract")
    first = layer(rand(5, 3, 4))
    layer(rand(7, 2, 4, seed=1))  # another batch size too: nothing has to be reset
    again = layer(rand(5, 3, 4))
    assert torch.equal(first.spk, again.spk) and torch.equal(first.mem, again.mem)
    assert first.spk.sum() > 0
    assert all(not name.startswith(("mem", "spk", "cur")) for name in layer.state_dict())


def test_a_second_network_is_untouched():
    a, b = build(learn_threshold=True), build(learn_threshold=True)
    x = rand(5, 3, 4)
    before = b(x)
    a.raw_threshold.data.add_(5)
    a(x).spk.sum().backward()
    after = b(x)
    assert b.raw_threshold.grad is None
    assert torch.equal(before.spk, after.spk) and torch.equal(before.mem, after.mem)


def test_layers_are_freed():
    """snntorch#328: SpikingNeuron keeps a list of all neurons ever made; ours are not in it."""
    count = len(snn.SpikingNeuron.instances)
    layer = build()
    assert isinstance(layer, snn.SpikingNeuron)
    assert len(snn.SpikingNeuron.instances) == count
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_single_steps_equal_the_whole(engine):
    layer = build((3,), engine=engine, alpha=0.5, reset="subtract", fire_once=True, force_last_spike=True).train()
    x = rand(6, 2, 3) / 8
    state = layer.init_state(2)
    steps = []
    for t in range(6):
        spk, mem, state = layer.single_step(x[t], state, last=t == 5)
        steps.append((spk, mem))
    out = layer(x)
    assert torch.equal(torch.stack([s for s, _ in steps]), out.spk) and out.spk[-1].sum() > 0
    assert torch.equal(torch.stack([m for _, m in steps]), out.mem)
    for ours, theirs in zip(state, out.state, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("engine", ["reference", "numba"])
def test_recurrent_weights_feed_spikes_back_one_step_later(engine):
    layer = build((2,), engine=engine, threshold=1, beta=0.5, learn_threshold=True)
    weight = torch.tensor([[0.0, 0.0], [0.75, 0.25]], requires_grad=True)  # [to, from]: neuron 0 drives neuron 1
    x = torch.tensor([[1.0, 0.5], [0.0, 0.0], [0.0, 0.0]]).view(3, 1, 2)
    out = layer(x, recurrent=weight)
    assert out.spk.squeeze(1).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert out.mem.squeeze(1).tolist() == [[1.0, 0.5], [0.0, 1.0], [0.0, 0.25]]  # 0.25 + 0.75; 0 + 0.25
    out.mem[2, 0, 1].backward()
    # U1[2] = V11 S1[1] + V10 S0[1] + 0 (the reset is detached), and S1[1] = 1, so V11 gets 1. Through S1[1], with
    # surrogate 1 at U = theta, times V11 to U1[1], where V10 gets S0[0] = 1 of it. Through S0[1], with the surrogate
    # at U - theta = -1, times V10 to U0[1], where V00 gets S0[0] = 1 of it.
    assert weight.grad.tolist() == [[pytest.approx(0.75 / (1 + math.pi**2)), 0.0], [0.25, 1.0]]


def test_recurrent_weights_of_the_wrong_shape_are_refused():
    with pytest.raises(ConfigError, match=r"recurrent weights \[3, 3\] need neurons of shape \[N\], not \[2\]"):
        build((2,))(torch.ones(2, 1, 2), recurrent=torch.ones(3, 3))


@pytest.mark.parametrize(
    ("options", "tensors"),
    [
        ({}, 1),  # the membranes
        ({"learn_threshold": True, "learn_beta": True, "alpha": 0.5}, 1),
        ({"learn_alpha": True, "alpha": 0.5}, 2),  # and the current
        ({"learn_beta": True, "tau_form": True}, 2),  # and the input
    ],
)
def test_numba_saves_only_what_backward_needs(options, tensors):
    layer = build((50,), engine="numba", **options)
    big = []

    def pack(tensor):
        if tensor.numel() >= 9 * 3 * 50:
            big.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(rand(9, 3, 50).requires_grad_())
    assert len(set(big)) == tensors


def test_checkpoints_hold_thresholds_and_decays(tmp_path):
    options = {"learn_threshold": True, "threshold_per": "neuron", "learn_beta": True, "alpha": 0.5}
    trained, fresh = build(**options), build(**options)
    for parameter in trained.parameters():
        parameter.data += 0.25 * torch.rand_like(parameter)
    save_file(trained.state_dict(), tmp_path / "layer.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert set(fresh.state_dict()) == {"raw_threshold", "raw_beta", "raw_alpha"}
    torch.save(trained.state_dict(), tmp_path / "layer.pt")
    torch.load(tmp_path / "layer.pt", weights_only=True)
    x = rand(5, 3, 4)
    assert torch.equal(trained(x).mem, fresh(x).mem)
    assert not torch.equal(trained(x).mem, build(**options)(x).mem)
    for twin in (copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))):
        assert torch.equal(trained(x).mem, twin(x).mem)


def test_shape_mismatch_names_both_shapes():
    with pytest.raises(ConfigError, match=r"sn1: the input is \[5, 2, 3\].*\[4\]"):
        build((4,))(torch.ones(5, 2, 3))
    with pytest.raises(ConfigError, match=r"state has shape \[3, 4\].*\[2, 4\]"):
        build((4,))(torch.ones(5, 2, 4), build((4,)).init_state(3))


def test_the_layer_reports_its_engine():
    layer = build()
    assert layer.engine is None
    layer(torch.ones(2, 1, 4))
    assert (layer.engine, layer.engine_reason) == ("numba", "fastest on cpu")
    layer = build(surrogate=SurrogateConf(name="snntorch:SFS"))
    layer(torch.ones(2, 1, 4))
    assert layer.engine == "reference" and "SFS" in layer.engine_reason
    with pytest.raises(ConfigError, match=r"neuron\.engine=numba: no kernel for surrogate snntorch:SFS"):
        build(engine="numba", surrogate=SurrogateConf(name="snntorch:SFS"))(torch.ones(2, 1, 4))


def test_autocast_gives_bfloat16_spikes_and_float32_membranes():
    linear, layer = torch.nn.Linear(4, 4), build()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(linear(rand(5, 3, 4)))
    assert (out.spk.dtype, out.mem.dtype, out.state.mem.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_ranges_are_drawn_per_neuron_and_seeded():
    options = {"beta": [0.82, 0.96], "threshold": [0.5, 2.0], "alpha": [0.2, 0.3], "alpha_per": "channel"}

    def drawn(seed, name="sn1", **more):
        torch.manual_seed(seed)
        layer = SpikingLayer(NeuronConf(name="test", **{**options, **more}), (40, 3, 2), name)
        return layer, torch.rand(3)

    layer, after = drawn(0)
    for value, (low, high) in ((layer.beta, (0.82, 0.96)), (layer.threshold, (0.5, 2.0)), (layer.alpha, (0.2, 0.3))):
        assert low <= value.min() and value.max() <= high and value.std() > (high - low) / 5
        assert value.unique().numel() == value.numel()
    assert layer.beta.shape == (40, 3, 2) and layer.alpha.shape == (40, 1, 1)
    again, _ = drawn(0, engine="reference")
    assert all(torch.equal(a, b) for a, b in zip(again.buffers(), layer.buffers(), strict=True))
    assert not torch.equal(drawn(1)[0].beta, layer.beta) and not torch.equal(drawn(0, "sn2")[0].beta, layer.beta)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(3))  # the weights' random numbers are what they are without a range


def test_a_learned_value_starts_within_its_range():
    layer = build(
        (50,), beta=[0.2, 0.4], learn_beta=True, threshold=[0.5, 0.7], learn_threshold=True, threshold_per="layer"
    )
    assert 0.2 <= layer.beta.min() < 0.25 and 0.35 < layer.beta.max() <= 0.4 and layer.raw_beta.requires_grad
    assert layer.threshold.shape == () and 0.5 <= layer.threshold <= 0.7
