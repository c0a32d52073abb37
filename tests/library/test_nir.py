"""NIR: what is written gives equal spikes in snnTorch's importer and in our reader; what NIR cannot say is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import snnexp
from snnexp.config import DecoderConf, DelayConf, ModelConf, NeuronConf
from snnexp.data.base import DataInfo
from snnexp.exchange import DT
from snnexp.exchange.nir_writing import graph_of, snntorch_notes, write
from snnexp.models.network import Network, build_network

with warnings.catch_warnings():  # h5py and nirtorch of the pinned versions
    warnings.simplefilter("ignore")
    nir = pytest.importorskip("nir")
    importer = pytest.importorskip("snntorch.import_nir")

STEPS, BATCH = 6, 3
MAPS, FLAT = (2, 8, 8), (1, 1, 20)

# spec, shape of a time step, neurons
NETWORKS: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "convolutional": ("c4k3-SN-AP2-DP-c6k3s2p0-SN-FC8-SN-FC-SN", MAPS, {}),
    "batch norm": ("c4k3-BN-SN-AP2-FC8-BN-SN-FC-SN", MAPS, {"strict": True}),
    "recurrent": ("RFC12-SN-RFC7-SN-FC-SN", FLAT, {}),
    "current": ("c4k3-SN-FC12-SN-FC-SN", MAPS, {"alpha": 0.7, "beta": 0.83}),
    "recurrent current": ("RFC12-SN-FC-SN", FLAT, {"alpha": 0.75, "beta": 0.97}),
    "plif": ("RFC12-SN-FC-SN", FLAT, {"tau_form": True, "beta": 0.5, "learn_beta": True, "threshold": 0.25}),
    "votes": ("FC12-SN-FC9-SN-VOTE3", FLAT, {}),
}
TAUS = {"beta_per": "neuron", "learn_beta": True, "tau_form": True, "beta": 0.4, "threshold": 0.125}
# NIR says these, snnTorch's importer does not run them
OURS_ONLY: dict[str, tuple[str, tuple[int, int, int], dict[str, Any]]] = {
    "threshold per neuron": ("FC12-SN-FC-SN", FLAT, {"threshold_per": "neuron", "learn_threshold": True}),
    "no leak": ("FC12-SN-FC-SN", FLAT, {"beta": 1.0}),
    "tau per neuron": (
        "FC12-SN-FC-SN",
        FLAT,
        TAUS,
    ),
}


def built(spec: str, shape: tuple[int, int, int], decoder: str = "rate", **neuron: Any) -> Network:
    """A network with random values in everything that training would change."""
    torch.manual_seed(3)
    info = DataInfo("made", "events", shape, STEPS, ("a", "b", "c"), {}, {}, True, "")
    conf = NeuronConf(name="n", engine="reference", **{"threshold": 0.5, **neuron})
    network = build_network(
        ModelConf(name="m", spec=spec, delay=DelayConf()), conf, DecoderConf(name=decoder, integrate=True), info
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".raw_" in name:
                parameter.add_(0.2 * torch.rand_like(parameter))
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.add_(0.3 * torch.rand_like(buffer))
    return network.eval()


def some_input(shape: tuple[int, int, int]) -> Tensor:
    return (torch.rand(STEPS, BATCH, *shape, generator=torch.Generator().manual_seed(4)) < 0.4).float()


def on_reference(net: snnexp.NirNet) -> snnexp.NirNet:
    """Without compiling kernels; that all engines agree is tested elsewhere."""
    for module in net.modules():
        if isinstance(module, snnexp.SpikingLayer):
            module.requested_engine = "reference"
    return net


def by_snntorch(path: Path, x: Tensor) -> Tensor:
    """Output spikes [T, B, K], sample by sample: its Flatten takes the batch along."""
    samples = []
    for sample in range(x.shape[1]):
        network, state, out = importer.import_from_nir(nir.read(path)), None, []
        for step in x[:, sample : sample + 1]:
            spk, state = network(step, state)
            out.append(spk.flatten())
        samples.append(torch.stack(out))
    return torch.stack(samples, 1)


@pytest.mark.parametrize("name", [*NETWORKS, *OURS_ONLY])
@pytest.mark.filterwarnings("ignore")  # of nirtorch's
@torch.no_grad()
def test_spikes_are_equal_in_both_readers(name: str, tmp_path: Path) -> None:
    spec, shape, neuron = {**NETWORKS, **OURS_ONLY}[name]
    network, x, path = built(spec, shape, **neuron), some_input(shape), tmp_path / "net.nir"
    write(graph_of(network), path)
    wanted = network(x)
    assert 0 < wanted.spk.mean() < 1  # else equality says nothing
    read = on_reference(snnexp.read_nir(path))
    got = read(x)
    assert torch.equal(got.spk, wanted.spk)
    assert torch.allclose(got.mem, wanted.mem, atol=1e-6)
    assert read.input_shape == shape
    assert [tuple(layer.shape) for layer in read.spiking_layers.values()] == [
        tuple(layer.shape) for layer in network.spiking_layers.values()
    ]
    assert bool(snntorch_notes(network)) == (name in OURS_ONLY)
    if name in NETWORKS:
        assert torch.equal(by_snntorch(path, x), wanted.spk)


@torch.no_grad()
def test_a_tie_fires_where_it_did(tmp_path: Path) -> None:
    """U lands on theta exactly: a spike for >=, none for >, and NIR knows > only."""
    for strict in (False, True):
        network = built("FC-SN", FLAT, strict=strict, beta=0.5, threshold=0.75)
        linear = network.get_submodule("fc1")
        linear.weight.zero_()
        linear.bias.fill_(0.5)  # U = 0.5, 0.75 (a tie), ...
        write(graph_of(network), tmp_path / "tie.nir")
        x = torch.zeros(2, 1, *FLAT)
        assert float(network(x).spk[1].mean()) == (0 if strict else 1)
        assert torch.equal(on_reference(snnexp.read_nir(tmp_path / "tie.nir"))(x).spk, network(x).spk)


@torch.no_grad()
def test_an_integrator_at_the_end_sends_its_membrane(tmp_path: Path) -> None:
    for neuron in ({}, {"alpha": 0.5}):
        network = built("FC12-SN-FC-SN", FLAT, "membrane", **neuron)
        write(graph_of(network), tmp_path / "readout.nir")
        x = some_input(FLAT)
        got = on_reference(snnexp.read_nir(tmp_path / "readout.nir"))(x)
        assert torch.equal(got.spk, network(x).mem) and got.spk.abs().sum() > 0
        assert "sn2" in snntorch_notes(network)[0]


@pytest.mark.parametrize(
    ("spec", "neuron", "reason"),
    [
        ("c4k3-SN-MP2-FC-SN", {}, r"mp1 \(MP2\): NIR has no max pooling.*model\.pooling=average"),
        ("c4k3-LN-SN-FC-SN", {}, r"ln1 \(LN\)"),
        ("c4k3-SN-NN-FC-SN", {}, r"nn1 \(NN\)"),
        ("FC8-SN-DL3-FC-SN", {}, r"dl1 \(DL3\).*Delay"),
        ("RFC8DL3-SN-FC-SN", {}, r"rfc1 \(RFC8DL3\).*Delay"),
        ("c4k3-SN-BN-FC-SN", {}, r"bn1 \(BN\).*folded"),
        ("FC8-SN-FC-SN", {"reset": "subtract"}, r"sn1 .*neuron\.reset=subtract"),
        ("FC8-SN-FC-SN", {"reset": "subtract_first"}, r"neuron\.reset=subtract_first"),
        ("FC8-SN-FC-SN", {"reset": "none"}, r"neuron\.reset=none"),
        ("FC8-SN-FC-SN", {"fire_once": True}, "fire once"),
        ("FC8-SN-FC-SN", {"spike_height": "threshold"}, "spike_height"),
        ("FC8-SN-FC-SN", {"initial_mem": "running_mean"}, "start at rest"),
        ("FC8-SN-FC-SN", {"noise": 0.1, "noise_in": "always"}, "no noise"),
        ("FC8-SN-FC-SN", {"alpha": 1.0}, "infinite time constant"),
        ("FC8-SN-FC-SN", {"alpha": 0.5, "beta": 1.0}, "infinite time constant"),
        ("FC8-SN-FC-SN", {"equation": "snnexp.neurons.zoo:adlif"}, "adlif"),
        (
            "FC8-SN-FC-SN",
            {"module": "snntorch.Leaky", "kwargs": {"beta": 0.9}},
            r"module of .*snntorch\.Leaky",
        ),
    ],
)
def test_what_nir_cannot_say_is_refused_by_name(spec: str, neuron: dict[str, Any], reason: str) -> None:
    with pytest.raises(snnexp.ConfigError, match=reason):
        graph_of(built(spec, MAPS, **neuron))


def test_a_network_of_the_users_own_is_refused() -> None:
    class Own(Network):
        pass

    network = built("FC8-SN-FC-SN", FLAT)
    network.__class__ = Own
    with pytest.raises(snnexp.ConfigError, match="Own is a module of your own"):
        graph_of(network)


def lif(shape: tuple[int, ...], **values: Any) -> Any:
    one = np.ones(shape, "f4")
    return nir.LIF(**{"tau": one * 4 * DT, "r": one * 4, "v_leak": one * 0, "v_threshold": one, **values})


def graph(nodes: dict[str, Any], *edges: str, shape: int = 3) -> Any:
    ends = {"input": nir.Input(np.array([shape])), "output": nir.Output(np.array([shape]))}
    return nir.NIRGraph({**ends, **nodes}, [tuple(edge.split(" ")) for edge in edges])  # type: ignore[misc]


@torch.no_grad()
def test_graphs_of_others(tmp_path: Path) -> None:
    """A loop instead of a graph within, r = 1, branches that add up, sums over windows: step by step on paper."""
    from snnexp.exchange.nir_reading import NirNetwork

    loop = graph({"n": lif((3,)), "w": nir.Linear(np.eye(3, dtype="f4") * 0.5)}, "input n", "n w", "w n", "n output")
    x = torch.full((4, 1, 3), 0.75)
    # beta = 0.75: 0.75, 1.3125 spike, 0.75 + 0.5 spike, 0.75 + 0.5 spike
    assert NirNetwork(loop)(x).spk[:, 0, 0].tolist() == [0, 1, 1, 1]
    divided = graph({"n": lif((3,), r=np.ones(3, "f4"))}, "input n", "n output")  # r = 1: the input counts dt/tau
    assert NirNetwork(divided)(4 * x).mem[:, 0, 0].tolist() == [0.75, 1.3125, 0.75, 1.3125]
    twice = graph({"n": lif((3,), r=np.full(3, 8, "f4"))}, "input n", "n output")  # r = 2 tau/dt: counts twice
    assert NirNetwork(twice)(x).mem[:, 0, 0].tolist() == [1.5, 1.5, 1.5, 1.5]
    branches = graph({"a": nir.Scale(np.full(3, 2, "f4")), "n": lif((3,))}, "input a", "input n", "a n", "n output")
    assert NirNetwork(branches)(x).mem[0, 0].tolist() == [2.25] * 3


def test_what_our_reader_does_not_run_is_named(tmp_path: Path) -> None:
    one = np.ones(3, "f4")
    cases = {
        "v_reset": graph({"n": lif((3,), v_reset=one * 0.5)}, "input n", "n output"),
        "v_leak": graph({"n": lif((3,), v_leak=one * 0.5)}, "input n", "n output"),
        "node n is a Delay": graph({"n": nir.Delay(one)}, "input n", "n output"),
        "loop through several layers": graph({"a": lif((3,)), "b": lif((3,))}, "input a", "a b", "b a", "b output"),
    }
    for reason, bad in cases.items():
        nir.write(tmp_path / "bad.nir", bad)
        with pytest.raises(snnexp.DataError, match=rf"bad\.nir.*{reason}"):
            snnexp.read_nir(tmp_path / "bad.nir")
    nir.write(tmp_path / "good.nir", graph({"n": lif((3,))}, "input n", "n output"))
    whole = (tmp_path / "good.nir").read_bytes()
    for damaged in (b"", b"no HDF5", whole[: len(whole) // 2]):
        (tmp_path / "damaged.nir").write_bytes(damaged)
        with pytest.raises(snnexp.DataError, match=r"damaged\.nir: this is no NIR graph"):
            snnexp.read_nir(tmp_path / "damaged.nir")
    with pytest.raises(snnexp.DataError, match=r"nowhere\.nir: no such file"):
        snnexp.read_nir(tmp_path / "nowhere.nir")
    with pytest.raises(snnexp.DataError, match=r"good\.nir.*snnexp\.read_nir"):
        snnexp.load(tmp_path / "good.nir")
    with pytest.raises(snnexp.ConfigError, match=r"float \[T, B, 3\]"):
        snnexp.read_nir(tmp_path / "good.nir")(torch.zeros(4, 3))


def test_the_command_writes_the_graph_of_a_run(
    run: snnexp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra import compose, initialize_config_dir

    from snnexp.any_run import for_any_run
    from snnexp.cli import conf_dir
    from snnexp.config import register_schemas
    from snnexp.tasks.export import export
    from snnexp.validation import validate

    register_schemas()
    words = ["task=export", "format=nir", f"run_id={run.run_id}", f"state_dir={run.folder.parents[1]}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=for_any_run(words))
    monkeypatch.chdir(tmp_path)
    export(validate(cfg), cfg)
    shown, (path,) = capsys.readouterr().out, tmp_path.iterdir()
    assert path.name == f"{run.run_id}-best.nir" and str(path) in shown and "!" not in shown
    net, graph_net = run.load(), snnexp.read_nir(path)
    assert graph_net.facts["identity"] == net.facts["identity"]
    images, _ = next(iter(net.open_data("test")))
    x = (images.float() / 255).expand(4, *images.shape)
    assert torch.equal(graph_net(x).spk, net(images).spk)
    dead = {name.partition("_")[2]: mask for name, mask in graph_net.dead_neurons([x]).items()}
    assert all(torch.equal(mask, dead[name]) for name, mask in net.dead_neurons(net.open_data("test")).items())


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(snnexp.ConfigError, match=r"pip install 'snnexp\[nir\]'"):
        snnexp.read_nir(tmp_path / "any.nir")
