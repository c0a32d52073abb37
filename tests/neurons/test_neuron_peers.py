"""The same numbers as snnTorch (run here) and SpikingJelly 2.0.0 (worked out once and stored)."""

import pytest
import snntorch as snn
import torch
from torch import Tensor

from snnexp.config import NeuronConf, SurrogateConf
from snnexp.neurons.layer import SpikingLayer

F64 = torch.float64


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(autouse=True)
def forget_snntorch_neurons():
    yield
    snn.SpikingNeuron.init()


def loss(spk: Tensor, mem: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    # small integers: snnTorch's spikes are float32, and so is the gradient that reaches them
    a, b = torch.randint(1, 9, (2, *spk.shape), generator=generator).to(F64)
    return (a * spk).sum() + (b * mem**2).sum()


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize(
    ("peer", "reset"),
    [("Leaky", "none"), ("Leaky", "zero"), ("Leaky", "subtract"), ("Synaptic", "none"), ("Synaptic", "subtract")],
)
def test_equals_snntorch(engine, peer, reset):
    steps, batch, size = 25, 3, 7
    conf = NeuronConf(
        name="test", engine=engine, threshold=1, beta=0.9, alpha=0.5 if peer == "Synaptic" else None, reset=reset,
        strict=True, threshold_per="neuron", beta_per="neuron", learn_threshold=True, learn_beta=True,
        learn_alpha=peer == "Synaptic", decay_param="clamp",
    )  # fmt: skip
    layer = SpikingLayer(conf, (size,), "sn1").double()
    values = {
        "beta": torch.linspace(0.5, 0.95, size, dtype=F64),
        "threshold": torch.linspace(0.8, 1.2, size, dtype=F64),
    }
    if peer == "Synaptic":
        values["alpha"] = torch.tensor(0.5, dtype=F64)
    learn = {f"learn_{name}": True for name in values}
    theirs = getattr(snn, peer)(**{k: v.clone() for k, v in values.items()}, **learn, reset_mechanism=reset)
    for name, value in values.items():
        getattr(layer, f"raw_{name}").data.copy_(value)

    x = torch.rand(steps, batch, size, dtype=F64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    state = [torch.zeros(batch, size, dtype=F64) for _ in range(2 if peer == "Synaptic" else 1)]
    steps_out = []
    for x_t in x.unbind(0):
        spk_t, *state = theirs(x_t, *state)
        steps_out.append((spk_t, state[-1]))
    spk, mem = (torch.stack(series) for series in zip(*steps_out, strict=True))
    out = layer(x)
    assert 0.05 < spk.mean() < 0.95
    assert torch.equal(out.spk, spk.double())  # snnTorch makes float32 spikes
    assert torch.equal(out.mem, mem)
    names = list(values)
    ours_grad = torch.autograd.grad(loss(out.spk, out.mem), [x, *(getattr(layer, f"raw_{n}") for n in names)])
    their_grad = torch.autograd.grad(loss(spk, mem), [x, *(getattr(theirs, n) for n in names)])
    for name, a, b in zip(["x", *names], ours_grad, their_grad, strict=True):
        assert relative(a, b) < 1e-10, name


def test_a_tie_is_where_we_differ_from_snntorch_by_default():
    x = torch.ones(1, 1, 1)
    assert snn.Leaky(beta=0.5, threshold=1.0)(x[0], torch.zeros(1, 1))[0].item() == 0
    for strict, fires in ((False, 1), (True, 0)):
        layer = SpikingLayer(NeuronConf(name="test", threshold=1, beta=0.5, strict=strict), (1,), "sn1")
        assert layer(x).spk.item() == fires


# SpikingJelly 2.0.0 in float64, v_threshold 0.75, surrogate ATan(), input X: spikes, v after the reset, and dX of
# sum_t (t + 1) (S[t] + v[t] / 8). Keys: (decay_input, v_reset is None, detach_reset), LIFNode(tau=2.0).
X = [0.75, 1.0, 0.5, 1.5, 0.25, 2.0, 1.0, -0.5]
LIF = {
    (True, False, True): (
        [0, 0, 0, 1, 0, 1, 0, 0],
        [0.375, 0.6875, 0.59375, 0.0, 0.125, 0.0, 0.5, 0.0],
        [1.2985881547446823, 2.053400604425473, 1.931045155791192, 1.069601498756477,
         1.5912138644966127, 1.5276282609684686, 3.1574691004350894, 1.1105329937583246],
    ),
    (True, False, False): (
        [0, 0, 0, 1, 0, 1, 0, 0],
        [0.375, 0.6875, 0.59375, 0.0, 0.125, 0.0, 0.5, 0.0],
        [0.7903907403156873, 1.2534841529726848, 1.4694542334704153, 0.6247717938229703,
         1.0890477245793457, 0.5536400536397051, 2.8504627832183154, 1.1105329937583246],
    ),
    (True, True, True): (
        [0, 0, 0, 1, 0, 1, 0, 0],
        [0.375, 0.6875, 0.59375, 0.296875, 0.2734375, 0.38671875, 0.693359375, 0.0966796875],
        [1.5169006958937428, 2.490025686723594, 2.8042953203874346, 2.8161018279489616,
         2.993000658384969, 3.818507358681858, 4.463764183649557, 1.2673687358902974],
    ),
    (True, True, False): (
        [0, 0, 0, 1, 0, 1, 0, 0],
        [0.375, 0.6875, 0.59375, 0.296875, 0.2734375, 0.38671875, 0.693359375, 0.0966796875],
        [0.6728537048823107, 1.2263734962110628, 1.6467324071545464, 1.8391416972790577,
         2.0698477899251446, 2.7540191047673934, 3.6752124926460024, 1.1954279169005821],
    ),
    (False, False, True): (
        [1, 1, 0, 1, 0, 1, 1, 0],
        [0.0, 0.0, 0.5, 0.0, 0.25, 0.0, 0.0, -0.5],
        [1.0, 1.2369729163176726, 2.414458711177259, 0.36799867340150094,
         2.219598462327613, 0.30519253323521645, 4.329405207111854, 1.4871734277143003],
    ),
    (False, False, False): (
        [1, 1, 0, 1, 0, 1, 1, 0],
        [0.0, 0.0, 0.5, 0.0, 0.25, 0.0, 0.0, -0.5],
        [0.7505069225283687, 0.41531487325768346, 2.1569960658668954, 0.1230618477717537,
         2.042704454690237, 0.044756611818047604, 3.318915300491142, 1.5176217669464442],
    ),
    (False, True, True): (
        [1, 1, 0, 1, 1, 1, 1, 0],
        [0.0, 0.25, 0.625, 1.0625, 0.03125, 1.265625, 0.8828125, -0.05859375],
        [3.141335120139815, 4.03267024027963, 5.0913946479239165, 4.234440081535035,
         6.810002424716564, 2.4654676075902047, 2.71704035280794, 2.073395745587591],
    ),
    (False, True, False): (
        [1, 1, 0, 1, 1, 1, 1, 0],
        [0.0, 0.25, 0.625, 1.0625, 0.03125, 1.265625, 0.8828125, -0.05859375],
        [1.3136833250999462, 2.2594666007995703, 3.3143131347108064, 3.3340980251091206,
         5.404950762421935, 2.270630405320713, 2.5061123890586883, 1.9727648944387544],
    ),
}  # fmt: skip

# ParametricLIFNode(init_tau=4.0, decay_input=True, detach_reset=True); the last number is the gradient of w. Its w is
# a float32 parameter cast to float64. Keys: v_reset is None.
PLIF = {
    False: (
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0.1874999972108315, 0.39062499488652436, 0.4179687457581395, 0.6884765552946479,
         0.5788574181016326, 0.0, 0.24999999628110864, 0.0625],
        [1.6407685533589678, 2.065173617144839, 2.377147813913914, 2.5656197505055607,
         1.9688429233992073, 1.1238774109277425, 1.1757377701078042, 0.6030493539611324],
        5.551470503757192,
    ),
    True: (
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0.1874999972108315, 0.39062499488652436, 0.4179687457581395, 0.6884765552946479,
         0.5788574181016326, 0.18414305829114963, 0.38810729068427885, 0.16608047131598366],
        [1.9545820882483698, 2.4835916615893066, 2.9350385370735577, 3.3094740443633346,
         2.9606486436250163, 2.4462850313383004, 1.5132101567630163, 0.7081733215259939],
        7.627352236673268,
    ),
}  # fmt: skip


def spikingjelly_terms(layer: SpikingLayer, soft: bool, detach: bool):
    """Our spikes, SpikingJelly's v (after the reset) and its loss, from our output."""
    x = torch.tensor(X, dtype=F64).view(8, 1, 1).requires_grad_()
    out = layer(x)
    reset_by = out.spk.detach() if detach else out.spk
    v = out.mem - layer.threshold * reset_by if soft else out.mem * (1 - reset_by)
    weight = torch.arange(1, 9, dtype=F64).view(8, 1, 1)
    return x, out.spk, v, (weight * (out.spk + v / 8)).sum()


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("case", LIF)
def test_equals_spikingjelly_lif(engine, case):
    decay_input, soft, detach = case
    conf = NeuronConf(
        name="test", engine=engine, threshold=0.75, beta=0.5, tau_form=decay_input, detach_reset=detach,
        reset="subtract_first" if soft else "zero", surrogate=SurrogateConf(name="atan"),
    )  # fmt: skip
    x, spk, v, total = spikingjelly_terms(SpikingLayer(conf, (1,), "sn1").double(), soft, detach)
    total.backward()
    assert spk.flatten().tolist() == LIF[case][0]
    assert v.flatten().tolist() == LIF[case][1]
    assert x.grad.flatten().tolist() == pytest.approx(LIF[case][2], rel=1e-12)


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("soft", PLIF)
def test_equals_spikingjelly_parametric_lif(engine, soft):
    conf = NeuronConf(
        name="test", engine=engine, threshold=0.75, beta=0.75, learn_beta=True, tau_form=True,
        reset="subtract_first" if soft else "zero",
    )  # fmt: skip
    layer = SpikingLayer(conf, (1,), "sn1").double()
    x, spk, v, total = spikingjelly_terms(layer, soft, detach=True)
    total.backward()
    spikes, membranes, gradient, gradient_w = PLIF[soft]
    assert spk.flatten().tolist() == spikes
    assert v.flatten().tolist() == pytest.approx(membranes, rel=1e-12)
    assert x.grad.flatten().tolist() == pytest.approx(gradient, rel=1e-12)
    assert layer.raw_beta.grad.item() == pytest.approx(gradient_w, rel=1e-12)
