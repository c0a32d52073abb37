"""`snnexp.load`: what names a network, what it does without its data, and what is refused with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from library_jobs import JOB
from safetensors import safe_open
from safetensors.torch import save_file

import snnexp
from snnexp.exchange.nir_writing import graph_of


def weights(net: snnexp.Net) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in net.state_dict().values()]


def rewritten(run: snnexp.Run, folder: Path, change: Callable[[dict, dict], None]) -> Path:
    """The best weights as a file of an older version, or of somebody else's, with another header."""
    with safe_open(run.folder / "best.safetensors", framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key in ("config", "facts", "snnexp")}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    config, facts = json.loads(metadata["config"]), json.loads(metadata["facts"])
    change(config, facts)
    path = folder / "other.safetensors"
    save_file(tensors, path, {**metadata, "config": json.dumps(config), "facts": json.dumps(facts)})
    return path


def test_a_run_loads_by_every_name_it_has(run: snnexp.Run) -> None:
    wanted = weights(run.load())
    names = [
        run,
        run.folder,
        run.folder / "best.safetensors",
        run.run_id,
        run.run_id[:8],
        run.folder.parent.name,
        run.folder.parent,
    ]
    for name in names:
        net = snnexp.load(name)
        assert all(torch.equal(a, b) for a, b in zip(weights(net), wanted, strict=True)), name
        assert not net.training and net.facts["role"] == "best"
    assert snnexp.load(run, checkpoint="last").facts["role"] == "last"


def test_weights_load_from_the_store_alone_and_as_an_exported_file(
    run: snnexp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_store = snnexp.load(run.run_id[:10], state_dir=tmp_path / "none")
    exported = tmp_path / "exported.safetensors"
    shutil.copy(run.folder / "best.safetensors", exported)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNNEXP_DATA", str(tmp_path / "no-data"))
    from_file = snnexp.load(exported)
    assert all(torch.equal(a, b) for a, b in zip(weights(from_store), weights(from_file), strict=True))
    assert from_file.class_names == tuple("0123456789") and from_file.input_shape == (1, 8, 8)


def test_a_data_set_that_nobody_knows_comes_with_the_weights(run: snnexp.Run, tmp_path: Path) -> None:
    """A foreign set's shape and classes are nowhere published: they travel in the header."""

    def foreign(config: dict, facts: dict) -> None:
        config["dataset"]["name"] = facts["input"]["name"] = "my_own_set"

    net = snnexp.load(rewritten(run, tmp_path, foreign))
    assert net(torch.zeros(2, 3, 1, 8, 8)).spk.shape == (2, 3, 10)


def test_files_of_older_versions_know_published_sets_only(run: snnexp.Run, tmp_path: Path) -> None:
    net = snnexp.load(rewritten(run, tmp_path, lambda config, facts: facts.pop("input")))
    assert net.input_shape == (1, 8, 8) and len(net.class_names) == 10

    def unknown(config: dict, facts: dict) -> None:
        del facts["input"]
        config["dataset"]["name"] = "my_own_set"

    def normalised(config: dict, facts: dict) -> None:
        del facts["input"]
        config["dataset"]["normalize"] = True

    with pytest.raises(snnexp.DataError, match=r"did not keep the shape of dataset=my_own_set.*train again"):
        snnexp.load(rewritten(run, tmp_path, unknown))
    with pytest.raises(snnexp.DataError, match="mean and deviation"):
        snnexp.load(rewritten(run, tmp_path, normalised))


@pytest.mark.parametrize("damage", [{"shape": [8, 8]}, {"kind": "sound"}, {"class_names": 3}, {"num_steps": None}])
def test_a_wrong_description_of_the_input_is_named(run: snnexp.Run, tmp_path: Path, damage: dict) -> None:
    path = rewritten(run, tmp_path, lambda config, facts: facts["input"].update(damage))
    with pytest.raises(snnexp.DataError, match=r"other\.safetensors"):
        snnexp.load(path)


def test_code_named_in_a_file_needs_the_users_word(run: snnexp.Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')\n")
    path = rewritten(run, tmp_path, lambda config, facts: config["neuron"].update(equation=f"{tmp_path}/mine.py:step"))
    with pytest.raises(snnexp.ConfigError, match=r"neuron\.equation=.*mine\.py:step.*trust_code=True"):
        snnexp.load(path)
    with pytest.raises(SystemExit, match="imported"):
        snnexp.load(path, trust_code=True)


def test_a_network_of_ones_own_loads_with_ones_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, neurons):\n"
        "        super().__init__()\n"
        "        self.fc1, self.sn1 = nn.Linear(64, num_classes), neurons(num_classes, 'sn1')\n\n"
        "    def forward(self, x):\n"
        "        return self.sn1(self.fc1(x.flatten(2)))\n"
    )
    words = [word for word in JOB if not word.startswith("model.")]
    words += ["model.module=own_net.py:Net", "tracking=off", "trainer=smoke"]
    run = snnexp.train(words, progress=False)
    with pytest.raises(snnexp.ConfigError, match=r"model\.module=own_net\.py:Net.*trust_code=True"):
        snnexp.load(run)
    net = snnexp.load(run, trust_code=True)
    assert net.dead_neurons([torch.zeros(4, 2, 1, 8, 8)])["sn1"].shape == (10,)
    assert torch.equal(net(torch.ones(4, 2, 1, 8, 8)).spk, run.load()(torch.ones(4, 2, 1, 8, 8)).spk)
    with pytest.raises(snnexp.ConfigError, match=r"own_net\.py:Net is a module of your own"):
        graph_of(net.network)


def test_what_names_no_network_is_said_in_one_message(run: snnexp.Run, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    data = bytearray((run.folder / "best.safetensors").read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(data)
    other = tmp_path / "plain.safetensors"
    save_file({"w": torch.zeros(1)}, other)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG")
    cases = {
        "0123456789abcdef0123456789abcdef": "no best.safetensors for it",
        run.run_id[:5]: "8 digits",
        "nowhere.safetensors": r"nowhere\.safetensors: no such checkpoint",
        str(damaged): r"damaged\.safetensors.*digest",
        str(other): "no snnexp configuration",
        str(picture): r"picture\.png is damaged",
        str(run.folder / "state.pt"): r"training state.*best\.safetensors",
    }
    for source, message in cases.items():
        with pytest.raises(snnexp.DataError, match=message):
            snnexp.load(source)
    with pytest.raises(snnexp.ConfigError, match="Did you mean best"):
        snnexp.load(run, checkpoint="bset")


def test_parents_and_several_runs_of_one_beginning_are_told_apart(run: snnexp.Run, home: Path) -> None:
    """They can only be met in the store: a sweep's parent has no folder."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_run(run.run_id).info.experiment_id
    parent = client.create_run(experiment, tags={"snnexp.role": "sweep"}, run_name="sweep").info.run_id
    child = client.create_run(experiment, tags={"mlflow.parentRunId": parent}, run_name="a child").info.run_id
    try:
        with pytest.raises(snnexp.DataError, match=rf"parent of a sweep.*(\n.*)*{child}  a child"):
            snnexp.load(parent)
        with pytest.raises(snnexp.DataError, match="parent of a sweep"):
            snnexp.load(parent[:12])
        with pytest.raises(snnexp.DataError, match=r"no best\.safetensors"):
            snnexp.load(child)
        table = snnexp.runs()
        assert set(table.run_id) == {run.run_id, child}
    finally:
        for made in (parent, child):
            client.delete_run(made)


def test_an_ambiguous_beginning_lists_the_runs(run: snnexp.Run, tmp_path: Path) -> None:
    for number in (1, 2):
        shutil.copytree(run.folder.parent, tmp_path / "runs" / f"digits-fixed-{number}")
    with pytest.raises(snnexp.DataError, match=r"2 runs begin like this.*\n.*digits-fixed-1.*\n.*digits-fixed-2"):
        snnexp.load(run.run_id, state_dir=tmp_path / "runs")


def test_a_run_without_weights_says_how_to_get_them(run: snnexp.Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / run.folder.parent.name / "001"
    shutil.copytree(run.folder, folder)
    for name in ("best", "last"):
        (folder / f"{name}.safetensors").unlink()
    nowhere = f"sqlite:///{tmp_path}/none.db"
    for name in (folder.parent.name, folder.parent, folder):
        with pytest.raises(snnexp.DataError, match="It has not come that far: give its command again"):
            snnexp.load(name, state_dir=tmp_path / "runs", tracking_uri=nowhere)
    with pytest.raises(snnexp.DataError, match=r"no best\.safetensors"):
        snnexp.load(tmp_path, tracking_uri=nowhere)


def test_nobody_elses_random_numbers_or_threads_change(run: snnexp.Run) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    net = run.load()
    net.dead_neurons(net.open_data("test"))
    assert torch.equal(torch.rand(3), wanted)
