"""The bench at tiny sizes: candidates that differ are refused, those that agree are timed, tables come out right."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.__main__ as bench
from benchmarks import candidates, page, records, report
from benchmarks.harness import Timing, interleave, peak_growth_mb
from benchmarks.peers import BUILDERS, Refused, find_peers
from benchmarks.scaling import SWEPT, measure_density
from benchmarks.startup import FIRST_STEP
from benchmarks.workloads import WORKLOADS, Inputs, Workload, make_inputs, matrix_flops, neuron_bytes, our_network
from snnexp.errors import DataError

CPU = torch.device("cpu")
TINY = Workload("tiny", "two layers", "FC24-SN-FC5-SN", (1, 1, 30), 25, 3, 5, density=0.2, gain=3.0)
RECURRENT = Workload("tiny", "recurrent", "RFC24-SN-FC5-SN", (1, 1, 30), 25, 3, 5, density=0.2, gain=3.0)
MAPS = Workload("tiny", "maps", "c4k3-BN-SN-MP2-FC10-SN-VOTE2", (2, 8, 8), 6, 2, 5, density=0.3, gain=2.0)
ROUSER = Workload(
    "tiny", "Rouser", "FC24-SN-FC5-SN", (1, 1, 30), 25, 3, 5, density=0.04, current_based=True, reset="subtract",
    bias=False, gain=3.0,
)  # fmt: skip
COMPACT = Workload(
    "tiny", "compact", "c4k3p0-SN-MP2-FC5-SN", (2, 10, 10), 12, 3, 5, density=0.1, gain=4.0, compact=True
)
RESIDUAL = Workload(
    "tiny", "residual", "c4k3-BN-SN-+(c4k3-BN-SN)-+(c8k3s2-BN-SN|c8k1s2-BN-SN)-AP4-FC5-SN", (3, 8, 8), 4, 3, 5,
    gain=3.0, constant=True, precise=True,
)  # fmt: skip
INSTALLED = find_peers()


@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize("w", [TINY, RECURRENT, MAPS, ROUSER, COMPACT, RESIDUAL], ids=lambda w: w.title)
@pytest.mark.parametrize("name", [candidates.OURS, candidates.LISTS, candidates.ROUSER, *BUILDERS])
def test_candidates_compute_the_same(name: str, w: Workload) -> None:
    if name in BUILDERS and not INSTALLED[BUILDERS[name][0]]:
        pytest.skip(f"{BUILDERS[name][0]} is not installed")
    inputs = make_inputs(w)
    try:
        training = candidates.build(name, w, inputs, CPU)
    except Refused:
        assert (w.current_based and name not in (candidates.OURS, "snntorch")) or (w.compact and name == "norse")
        return
    agreement = candidates.compare(name, training, w, inputs, CPU)
    assert agreement.problem is None, agreement
    assert agreement.expected != pytest.approx(np.log(w.classes), abs=1e-3)  # the output does spike
    weight = next(p for p in training.network.parameters() if p.dim() > 1)
    before = weight.detach().clone()
    if not w.precise:  # which looks at two samples
        assert float(training.step()) == pytest.approx(agreement.loss, rel=1e-4)
    else:
        training.step()
    assert not torch.equal(weight, before)


def test_a_candidate_with_other_dynamics_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(TINY)
    training = candidates.build(candidates.OURS, TINY, inputs, CPU)
    for neuron in training.network.neurons.values():
        neuron.raw_beta.fill_(0.8)
    assert "loss" in (candidates.compare(candidates.OURS, training, TINY, inputs, CPU).problem or "")
    training = candidates.build(candidates.OURS, TINY, inputs, CPU)
    loss, gradient = training.first_gradient()
    monkeypatch.setattr(training, "first_gradient", lambda: (loss, gradient.flip(0)))
    assert "gradient" in (candidates.compare(candidates.OURS, training, TINY, inputs, CPU).problem or "")


def test_inputs_have_the_density_and_are_the_same_in_both_forms() -> None:
    inputs = make_inputs(WORKLOADS["W2"].shrunk())
    assert inputs.events is not None
    assert float(inputs.dense.mean()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(inputs.dense, inputs.events.to_dense())
    lists_only = candidates.measured_inputs(candidates.OURS, WORKLOADS["W5"].shrunk(), CPU)
    assert lists_only.events is not None and lists_only.dense.numel() == 0


def test_operations_and_bytes_by_hand() -> None:
    # W1: 512*512 multiply-adds per row, 500*16 rows; forward and the weights' gradient, no input gradient
    assert matrix_flops(WORKLOADS["W1"]) == 2 * 2 * 512 * 512 * 8000
    assert neuron_bytes(WORKLOADS["W1"]) == 6 * 4 * 512 * 8000
    # 700*256 twice, then 256*20 three times; recurrent: 256*256 three times more
    assert matrix_flops(WORKLOADS["W2"]) == 2 * 12800 * (2 * 700 * 256 + 3 * 256 * 20)
    assert matrix_flops(WORKLOADS["W2r"]) - matrix_flops(WORKLOADS["W2"]) == 2 * 12800 * 3 * 256 * 256


def test_rounds_are_interleaved() -> None:
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, rounds=3, warmup=1)
    assert "".join(calls) == "ab" + "aabb" + "bbaa" + "aabb"  # a step that is not timed first; another begins each time
    assert len(timings["a"].seconds) == 3
    calls.clear()
    interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, rounds=2, warmup=0, warm=False)
    assert "".join(calls) == "abba"


def test_median_and_spread() -> None:
    row = Timing([0.003, 0.001, 0.002]).record()
    assert (row["median_ms"], row["min_ms"], row["max_ms"]) == pytest.approx((2, 1, 3))


def test_peak_memory_counts_what_is_made_and_freed() -> None:
    def prepare():  # type: ignore[no-untyped-def]
        return lambda: torch.ones(64 * 1024 * 1024 // 4).sum()

    try:
        assert 60 < peak_growth_mb(prepare, 2, CPU) < 100  # 67.1 MB
    except OSError:
        pytest.skip("needs Linux's /proc/self/clear_refs")


def record_of(**rows: float) -> dict:
    timed = {
        name.replace("_", " "): Timing([ms / 1000] * 3).record() | {"memory_mb": 10.0} for name, ms in rows.items()
    }
    result = {
        "title": "t", "num_steps": 1, "batch": 1, "density": 0.03, "firing_rates": {"sn1": 0.1},
        "gradient_share": {"sn1": 0.2}, "matrix_flops": 1e9,
        "neuron_bytes": 1e6, "candidates": timed, "missing": {"norse": "norse is not installed"},
    }  # fmt: skip
    roof = {"sgemm_flops": 1e11, "copy_bytes": 1e10}
    return {
        "machine": {},
        "versions": {},
        "command": "c",
        "clock": "wall",
        "load": 0.0,
        "workloads": {"W1": result},
        "left_out": {},
        "roofline": roof,
    }


def test_table_says_what_is_missed_and_missing() -> None:
    record = record_of(snnexp=10, snntorch=50, spikingjelly=31, no_neurons=9)
    record["workloads"]["W1"]["candidates"]["peer"] = {"refused": "its loss is 2, ours 1"}
    assert report.figures(record)["W1"] == pytest.approx(
        {"snntorch": 5, "spikingjelly": 3.1, "no neurons": 10 / 9, "memory": 1}
    )
    text = report.markdown(record)
    assert "5.0x (>= 6, **missed**)" in text and "3.1x (>= 3)" in text and "1.11 (<= 1.15)" in text
    assert "norse is not installed" in text and "refused: its loss is 2, ours 1" in text
    assert "inputs not zero: 3.0 %; spikes: sn1 10.0 %; membranes with a gradient: sn1 20.0 %" in text
    assert "| W1 | 1.00 | 10.0 | 1 | 0.1 | 10.1 | 10.0 |" in text  # 1 GFLOP at 100 GFLOP/s; 1 MB at 10 GB/s


@pytest.mark.filterwarnings("ignore")
def test_whole_run_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    bench.main(["--quick", "--only", "W1,W2", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert set(record["workloads"]) == {"W1", "W2"}
    rows = record["workloads"]["W1"]["candidates"]
    assert {"snnexp", "no neurons", "snntorch"} <= set(rows) and rows["snnexp"]["median_ms"] > 0
    assert (tmp_path / "bench.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "bench_steps.png").stat().st_size > 1000


def test_unknown_part_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--only", "W11"])
    assert "no such part W11" in capsys.readouterr().err


def test_lists_are_none_where_values_are_not_counts() -> None:
    inputs: Inputs = make_inputs(WORKLOADS["W1"].shrunk())
    assert inputs.events is None
    assert inputs.dense.std().item() == pytest.approx(1, rel=0.05)


def test_share_with_gradient_is_that_of_the_membranes_near_the_threshold() -> None:
    inputs = make_inputs(COMPACT)
    share = candidates.share_with_gradient(COMPACT, inputs, CPU)["sn2"]
    out = our_network(COMPACT, engine="reference")(inputs.dense)
    near = (out.mem.detach() - 1).abs() < 0.5
    assert share == pytest.approx(float(near.double().mean()), abs=1e-9) and 0 < share < 1
    assert bool((out.mem.detach() >= 1).eq(out.spk.detach() > 0).all())  # before the reset


@pytest.mark.data
def test_real_events_come_as_the_recipe_bins_them() -> None:
    w = WORKLOADS["W9"].shrunk()
    try:
        inputs = make_inputs(w)
    except DataError:
        pytest.skip("N-MNIST is not there")
    assert inputs.events is not None and inputs.events.values is not None
    assert torch.equal(inputs.dense, inputs.events.to_dense()) and inputs.dense.shape == (20, 2, 2, 34, 34)
    assert candidates.share_of_inputs(inputs) == pytest.approx(float((inputs.dense != 0).double().mean()))


def test_missing_data_leaves_a_workload_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNNEXP_DATA", "")
    arguments = ["--quick", "--only", "W9", "--out", str(tmp_path), "--data", str(tmp_path / "none")]
    bench.main(arguments)
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["workloads"] == {} and "NMNIST" in record["left_out"]["W9"]
    assert "W9 was left out: " in (tmp_path / "bench.md").read_text()


def test_first_step_ends_the_command(tmp_path: Path) -> None:
    """What W8 times is the command itself, up to the optimizer's first step: no error, and no epoch is finished."""
    done = subprocess.run([sys.executable, "-c", FIRST_STEP], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"epoch +1/", done.stdout)


def test_docs_get_what_is_kept_of_each_processor_between_the_marks(tmp_path: Path) -> None:
    about = {"commit": "abc", "date": "2026-01-02", "quick": False, "device": "cpu"}
    avx512 = record_of(snnexp=10, snntorch=50) | about | {"machine": {"cpu": "AMD EPYC", "capability": "AVX512"}}
    avx2 = record_of(snnexp=5, snntorch=40) | about
    avx2["machine"] = {"cpu": "AMD EPYC", "capability": "AVX2", "emulated": "ATEN_CPU_CAPABILITY=avx2"}
    folder = tmp_path / "records"
    kept = records.keep(avx512, folder)
    assert records.keep(record_of(snnexp=20, snntorch=100) | about | {"machine": avx512["machine"]}, folder) == kept
    records.keep(avx2, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["amd-epyc-avx2-emulated.json", "amd-epyc-avx512.json"]
    (tmp_path / "benchmarks.md").write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write_docs(records.all_kept(folder), tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| W1 | AMD EPYC, AVX512 (2026-01-02) | 5.0x (>= 6, **missed**) |" in text
    assert "| W1 | AMD EPYC, AVX2, emulated (2026-01-02) | 8.0x (>= 6) |" in text
    assert "emulated ATEN_CPU_CAPABILITY=avx2" in text and "2026-01-02, commit abc" in text
    assert "| snnexp | 20.0 |" in text and "| snnexp | 10.0 |" not in text  # the later run of a part
    assert (tmp_path / "images" / "bench_steps.png").exists()


@pytest.mark.filterwarnings("ignore")
def test_density_is_swept_with_both_ways_in_turns() -> None:
    found = measure_density(CPU, quick=True)
    assert list(found) == ["c12k5 on events 2x34x34", "FC512 on spikes 1024"]
    for points in found.values():
        assert [p["density"] for p in points] == [0.01, 0.5]
        assert all(p["ratio"] == pytest.approx(p["auto_ms"] / p["never_ms"]) for p in points)
    record = record_of(snnexp=10) | {"density": found}
    assert all(p["apart"] >= 0 for points in found.values() for p in points)
    assert "| | 1 % | 50 % | apart |" in report.markdown(record)


def test_neurons_in_front_hand_their_input_on() -> None:
    """So the convolution behind them sees the density of the sweep."""
    w = replace(SWEPT[2], density=0.1, batch=2, num_steps=3)
    assert candidates.firing_rates(w, make_inputs(w), CPU)["sn1"] == pytest.approx(0.1, rel=0.1)
