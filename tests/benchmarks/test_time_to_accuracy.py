"""Time to accuracy: the others' scripts compute what our network does, and the clock reads the epochs."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import time_to_accuracy as tta
from benchmarks.peers import find_peers
from snnexp.config import AugmentConf, DecoderConf, ModelConf, NeuronConf, SurrogateConf
from snnexp.data.base import DataInfo
from snnexp.data.events.augment import augment
from snnexp.models.network import Network, build_network

INSTALLED = find_peers()
CHANNELS, BETA = (3, 4), 0.9


def ours(bias: bool) -> Network:
    info = DataInfo("nmnist", "events", (2, 34, 34), 6, tuple("0123456789"), {}, {}, True, "")
    spec = f"c{CHANNELS[0]}k5p0-SN-MP2-c{CHANNELS[1]}k5p0-SN-MP2-FC10-SN"
    neuron = NeuronConf(name="fixed", beta=BETA, surrogate=SurrogateConf(name="triangular", scale=1.0, width=1.0))
    torch.manual_seed(0)
    return build_network(ModelConf(name="", spec=spec, gain=3.0, bias=bias), neuron, DecoderConf(name="membrane"), info)


@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.skipif(importlib.util.find_spec("tonic") is None, reason="tonic is not installed")
@pytest.mark.parametrize(
    ("name", "bias"), [("snntorch", True), ("snntorch, layers folded", False), ("spikingjelly", True)]
)
def test_the_others_have_our_network(name: str, bias: bool, tmp_path: Path) -> None:
    from benchmarks.plain_training import NETWORKS

    if not INSTALLED[name.partition(",")[0]]:
        pytest.skip(f"{name} is not installed")
    network = ours(bias)
    layers = [network.get_submodule(layer) for layer in ("conv1", "conv2", "fc1")]
    torch.save([layer.state_dict() for layer in layers], tmp_path / "w.pt")
    theirs = NETWORKS[name]({"channels": CHANNELS, "weights": tmp_path / "w.pt", "beta": BETA, "bias": bias})
    x = (torch.rand(6, 2, 2, 34, 34) < 0.1).float()
    labels = torch.tensor([1, 2])
    for forward in (lambda x: network(x).mem, theirs):
        F.cross_entropy(forward(x).amax(0), labels).backward()
    assert torch.allclose(network(x).mem, theirs(x), rtol=1e-4, atol=1e-5)
    gradients = layers[0].weight.grad.flatten(), theirs.conv1.weight.grad.flatten()
    assert float(F.cosine_similarity(*gradients, dim=0)) > 0.999
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_the_clock_stops_at_the_epoch_that_reaches_the_level(tmp_path: Path) -> None:
    code = """import json, time
for epoch, accuracy in enumerate([0.5, 0.9, 0.96, 0.97], 1):
    print(json.dumps({"epoch": epoch, "accuracy": accuracy}), flush=True); time.sleep(0.2 if accuracy < 0.96 else 60)"""
    options = SimpleNamespace(level=0.95)
    found = tta.watch([sys.executable, "-c", code], {}, tmp_path, lambda line: json.loads(line)["accuracy"], options)
    row = found.record(0.95)
    assert row["epochs"] == 3 and row["accuracies"] == [0.5, 0.9, 0.96] and row["seconds"] == row["wall_s"][2]
    assert row["whole_wall_s"] is None and 0.3 < row["seconds"] < 50
    with pytest.raises(RuntimeError, match="ended with 3"):
        tta.watch([sys.executable, "-c", "raise SystemExit(3)"], {}, tmp_path, lambda line: 0.0, options)


def test_ours_is_read_from_the_metrics_of_its_run(tmp_path: Path) -> None:
    path = tmp_path / "nmnist" / "001" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    lines = [{"step": n, "metrics": {"test_curve/accuracy": 0.1 * n}} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, [*lines, {"step": 3, "metrics": {"val/loss": 1.0}}])) + '\n{"st')
    assert tta._accuracies_in(tmp_path) == pytest.approx([0.1, 0.2])


def test_table_has_ratios_to_both_of_ours() -> None:
    rows = {
        tta.COLD: tta.Progress([0.96], [8.0], [9.0]), tta.WARM: tta.Progress([0.9, 0.96], [3.0, 4.0], [5.0, 6.0]),
        "snntorch": tta.Progress([0.9, 0.95], [20.0, 40.0], [30.0, 60.0]),
        "spikingjelly": tta.Progress([0.5], [9.0], [9.0]),
    }  # fmt: skip
    candidates = {name: progress.record(0.95) for name, progress in rows.items()}
    slower = candidates | {"snntorch": tta.Progress([0.9, 0.96], [20.0, 80.0], [30.0, 60.0]).record(0.95)}
    slower.pop(tta.COLD)
    about = {"level": 0.95, "bins": "count", "samples": {"train": 719, "test": 100}}
    text = tta.table(about | {"seeds": {"0": candidates}})
    assert "| snntorch | 20.0 (1) | 40.0 (2) | 40.0 (2) | 20.00 | 20.00 |" in text
    assert "| spikingjelly | not reached | not reached | not reached | 9.00 |  |" in text
    assert "| **snntorch / snnexp, kernels in the cache** | 6.67x | 10.00x | 10.00x | | 20.00x |" in text
    assert "| **snntorch / snnexp, kernels to be compiled** | 2.50x | 5.00x | 5.00x | | nanx |" in text
    text = tta.table(about | {"seeds": {"0": candidates, "3": slower}})
    assert "; seeds 0, 3 |" in text and tta.COLD not in text  # it has not run with all seeds
    assert "| snntorch | 20.0 (1), 20.0 (1) | 40.0 (2), 80.0 (2) | 40.0 (2), 80.0 (2) | 20.00 | 40.00 |" in text
    assert "| **snntorch / snnexp, kernels in the cache** | 6.67x | 15.00x | 15.00x | | 40.00x |" in text


@pytest.mark.skipif(importlib.util.find_spec("tonic") is None, reason="tonic is not installed")
def test_the_others_shift_as_we_do() -> None:
    from benchmarks.plain_training import shifted

    height, width, samples = 5, 6, 7
    x = (np.random.default_rng(0).random((1, samples, 2, height, width)) < 0.4).astype(np.float32)
    where = [np.flatnonzero(sample) for sample in x[0]]
    address = np.concatenate(where).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum([len(w) for w in where])])
    conf, rng = AugmentConf(shift=2), (lambda: np.random.default_rng([1, 2, 3]))
    _, left, offsets = augment((np.zeros(len(address), np.int32), address, offsets), (2, height, width), conf, rng())
    expected = np.zeros((samples, 2 * height * width), np.float32)
    for b in range(samples):
        expected[b, left[offsets[b] : offsets[b + 1]]] = 1
    found = shifted(torch.from_numpy(x), 2, rng())
    assert np.array_equal(found[0].numpy(), expected.reshape(x.shape[1:])) and not torch.equal(
        found, torch.from_numpy(x)
    )
