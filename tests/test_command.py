"""The real command in a subprocess: help, messages, exit codes, and that a mistake costs no torch import."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import run_job
from hydra.types import HydraContext

from snnexp.cli import _disk_full, _not_writable
from snnexp.config import register_schemas
from snnexp.folders import conf_dir
from snnexp.helptext import GROUPS


def test_help_lists_every_group_and_option(snnexp) -> None:
    done = snnexp("--help")
    assert done.returncode == 0, done.stderr
    for group in GROUPS:
        assert f"\n{group}: " in done.stdout, group
    for option in ("randman", "cifar10dvs", "dietsnn", "temporal_weight", "rouser_fig6b", "plif_cifar10", "inspect"):
        assert f"\n  {option} " in done.stdout, option
    assert done.stdout.count("\n  snnexp") == 6  # the example commands


@pytest.mark.parametrize("arguments", [["--help"], ["neuron=rousr"], ["neuron.treshold=1"]])
def test_help_and_mistakes_import_nothing_heavy(arguments: list[str], tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "snnexp", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "snnexp.cli" in imported  # the list is what we think it is
    assert not imported & {"torch", "numpy", "snntorch", "tonic", "mlflow", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["neuron=rousr"], "neuron=rousr: no such option. Did you mean rouser?"),
        (["nueron=rouser"], "nueron: no such group or key. Did you mean neuron?"),
        (["neuron.treshold=1"], "neuron.treshold: no such key. Did you mean neuron.threshold?"),
        (["+neuron.treshold=1"], "neuron.treshold: no such key. Did you mean threshold?"),
        (["+typo=1"], "typo: no such key."),
        (["optimizer.lr=abc"], "optimizer.lr=abc: Value 'abc' of type 'str' could not be converted to Float."),
        (["device=gpu"], "device=gpu: no such option. Did you mean cuda?"),
        (["neuron=rouser,fixed"], "To run one after the other: -m neuron=rouser,fixed"),
        (["neuron=[rouser,fixed]"], "To sweep: -m neuron=rouser,fixed"),
        (["experiment=rouser_fig6"], "no such option. Did you mean rouser_fig6"),
        (["encoder=none"], "encoder=none: images have no time. Use encoder=direct"),
        (["dataset=nmnist", "encoder=rate"], "event recordings are spikes already"),
        (["dataset=digits", "dataset.bin_by=time"], "dataset.bin_by: no such key."),
        (["dataset.num_steps=0"], "dataset.num_steps=0: must be >= 1."),
        (["dataset.val_fraction=1"], "dataset.val_fraction=1.0: must be >= 0 and < 1."),
        (["dataset.val_fraction=0.001"], "class"),
        (["model.spec=FC10-ML2-SN"], "unknown token ML2. Did you mean MP2"),
        (["model.spec=MP2-MP2-MP2-MP2-FC-SN"], "Pooling is deeper than the image"),
        (["neuron=plif", "neuron.beta=1"], "a learned beta starts strictly between 0 and 1"),
        (["neuron.beta=1.2"], "neuron.beta=1.2: must be >= 0 and <= 1."),
        (["neuron.threshold=-1"], "neuron.threshold=-1.0: must be >= 0"),
        (["neuron.threshold=nan"], "must be a number"),
        (["neuron.beta=[0.96,0.82]"], "the smaller one comes first; write neuron.beta=[0.82, 0.96]."),
        (["neuron.alpha=[0.5]"], "must be a number, or two to draw between, as in neuron.alpha=[0.8,0.9]."),
        (["neuron.beta=[0.5,1.5]"], "neuron.beta=[0.5, 1.5]: must be >= 0 and <= 1."),
        (["neuron.surrogate.name=attan"], "Did you mean atan?"),
        (["neuron=ttfs", "decoder=rate"], "a neuron that spikes once has no rate"),
        (["decoder=first_spike", "decoder.loss=mse"], "decoder.loss=mse"),
        (["device=cpu", "neuron.engine=triton"], "neuron.engine=triton: needs device=cuda"),
        (["dataset=nmnist", "dataset.root=nowhere", "dataset.download=false"], "NMNIST"),
        (["task=evaluate"], "needs run_id="),
        (["task=evaluate", "run_id=12345678"], "run_id=12345678: no best.safetensors"),
        (["seed"], "Write KEY=VALUE"),
        (["model.spec=(FC8-SN)x2-FC-SN"], """Quote it twice: 'model.spec="(FC8-SN)x2-FC-SN"'"""),
        (["dataset.root=${nope}"], "dataset.root"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(snnexp, arguments: list[str], expected: str) -> None:
    done = snnexp(*arguments)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("snnexp: error: ")


def test_all_mistakes_are_reported_at_once(snnexp) -> None:
    done = snnexp("dataset.num_steps=0", "dataset.batch_size=-1", "neuron.reset=soft")
    assert done.returncode == 2
    for name in ("dataset.num_steps=0", "dataset.batch_size=-1", "neuron.reset=soft"):
        assert name in done.stderr


def test_completion_offers_groups_and_options(snnexp) -> None:
    done = snnexp("-sc", "query=bash", env={"COMP_LINE": "snnexp neuron=r", "COMP_POINT": "15"})
    assert "neuron=rouser" in done.stdout, done.stderr


def test_inspect_prints_layers_and_records_nothing(snnexp, tmp_path) -> None:
    done = snnexp("task=inspect", "neuron=plif")
    assert done.returncode == 0, done.stderr
    for word in ("identity:", "sn1", "decays:", "train 1,292, val 145, test 360", "memory: about"):
        assert word in done.stdout
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "runs").exists()


def test_warnings_reach_the_terminal(snnexp, tmp_path) -> None:
    job = ("trainer=smoke", "model.spec=FC-SN", "tracking=off", "trainer.plots=false")
    assert snnexp(*job).returncode == 0
    (record,) = tmp_path.glob("runs/*/001/run.json")
    record.write_text("{")
    done = snnexp(*job)
    assert done.returncode == 0
    assert f"snnexp: {record} is damaged" in done.stderr


def test_a_full_disk_and_a_read_only_folder_are_named_with_the_way_out() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/metrics.jsonl")
    assert str(_disk_full(full)).startswith("No space left on device: runs/metrics.jsonl. What was finished is kept.")
    read_only = OSError(errno.EROFS, "Read-only file system", "outputs")
    assert "outputs: Read-only file system. Start from a folder that you may write to" in str(_not_writable(read_only))
    assert _disk_full(read_only) is None and _not_writable(full) is None and _not_writable(ValueError("x")) is None


@pytest.mark.parametrize("folder", ["/dev/null/x", "f", "a" * 300])
def test_a_run_folder_that_cannot_be_made_is_named(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").touch()
    register_schemas()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=[f"hydra.run.dir={folder}"], return_hydra_config=True)
        with pytest.raises(OSError) as raised:
            run_job(print, cfg, "hydra.run.dir", None, HydraContext(None, None))  # type: ignore[arg-type]
    assert f"{folder}: " in str(_not_writable(raised.value)) and "hydra.run.dir" in str(_not_writable(raised.value))
