"""One door for names: ours, those that packages register, and where a user's own code lies."""

import importlib
import logging
import sys
from pathlib import Path

import pytest
import torch

from snnexp import registry
from snnexp.cli import conf_dir
from snnexp.config import DecoderConf, NeuronConf, SurrogateConf
from snnexp.config_files import NamedConfigSource
from snnexp.decoders import build_decoder
from snnexp.errors import ConfigError
from snnexp.helptext import help_text
from snnexp.neurons.layer import SpikingLayer
from snnexp.neurons.surrogates import build_surrogate
from snnexp.registry import KINDS, LOSSES, SURROGATES, load, problem

CODE = """
import torch
import torch.nn.functional as F

from beside import TWO


def hinge(spk, mem, labels):
    right = F.one_hot(labels, spk.shape[2]).bool()
    rate = spk.mean(0)
    return (1 - rate[right].unsqueeze(1) + rate).clamp(min=0).mean() * TWO / 2


def with_decoder(spk, mem, labels, decoder):
    return decoder.scores(spk, mem).sum()


def bell(x, *, width):
    return torch.exp(-torch.square(x / width))


def eager(x, *, width):
    return torch.exp(-((x / width).pow(2)))


def no_labels(spk, mem):
    return spk.sum()


def wrong(spk, mem, labels):
    return torch.zeros(3) @ torch.zeros(4)


def per_sample(spk, mem, labels):
    return spk.sum((0, 2))


def cut_off(spk, mem, labels):
    return spk.detach().sum()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's code, which the command is started in."""
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "beside.py").write_text("TWO = 2\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mine", "beside", "broken"):
        sys.modules.pop(name, None)


def package(folder: Path, name: str, *points: str, group: str = "snnexp.losses") -> None:
    """An installed package that registers something."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *points, ""]))


@pytest.fixture
def installed(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = mine / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    registry.scanned.cache_clear()
    yield site
    registry.scanned.cache_clear()


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.key)
def test_every_word_of_ours_is_there(kind):
    assert all(load(kind, word) is not None and problem(kind, word) is None for word in kind.ours)


def test_a_file_and_a_module_are_found_from_the_start_folder_and_may_import_what_lies_beside_them(mine):
    file, module = load(LOSSES, "mine.py:hinge"), load(LOSSES, "mine:hinge")
    assert file.__code__.co_filename == module.__code__.co_filename == str(mine / "mine.py")
    assert load(LOSSES, "mine.hinge") is module and load(LOSSES, str(mine / "mine.py:hinge")) is file
    assert str(mine) not in sys.path


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("crossentropy", r"decoder.loss=crossentropy: no such option. Did you mean cross_entropy\?.*file.py:name"),
        ("nowhere.py:f", "decoder.loss=nowhere.py:f: there is no file nowhere.py in "),
        ("nowhere:f", "decoder.loss=nowhere:f: .*No module named 'nowhere'"),
        ("mine.py", "decoder.loss=mine.py: write package.module:name or path/to/file.py:name"),
        ("mine.py:hing", r"decoder.loss=mine.py:hing: mine.py has no `hing`. Did you mean hinge\?"),
        ("broken.py:f", r"decoder.loss=broken.py:f: .*broken.py, line 2: `1 / 0`: ZeroDivisionError"),
        ("syntax.py:f", r"decoder.loss=syntax.py:f: .*syntax.py, line 1: SyntaxError"),
        ("mine.py:TWO", "decoder.loss=mine.py:TWO: this is no function but int"),
        ("mine.py:no_labels", r"decoder.loss=mine.py:no_labels: it must take \(spk, mem, labels\): too many"),
        ("mine.py:wrong", r"decoder.loss=mine.py:wrong: .*mine.py, line \d+: `return torch.zeros.*`: RuntimeError"),
        ("mine.py:per_sample", r"it must return one number, a tensor of shape \[\], not a tensor of shape \[2\]"),
        ("mine.py:cut_off", "no gradient comes back from it"),
    ],
)
def test_a_wrong_reference_gets_one_message_with_its_key(mine, word, message):
    (mine / "broken.py").write_text("# nothing\n1 / 0\n")
    (mine / "syntax.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=message):
        build_decoder(DecoderConf("rate", loss=word), 3, 4)


def test_a_loss_of_ones_own(mine):
    decoder = build_decoder(DecoderConf("rate", loss="mine.py:hinge"), 3, 4)
    spk = torch.zeros(4, 2, 3)
    spk[:, 0, 1] = 1
    # first sample: right class rate 1: max(0, 1 - 1 + rate) = 0, 1, 0; second: all silent, 1 each
    assert decoder.loss(spk, None, torch.tensor([1, 0])).item() == pytest.approx(4 / 6)
    decoder = build_decoder(DecoderConf("rate", loss="mine.py:with_decoder"), 3, 4)
    assert decoder.loss(spk, None, torch.tensor([1, 0])).item() == 1.0


def test_a_surrogate_of_ones_own_runs_compiled_with_the_references_gradient_if_it_can(mine):
    torch.manual_seed(0)
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    found = {}
    for name, engine in (("bell", "reference"), ("bell", "numba"), ("eager", "auto")):
        conf = NeuronConf("t", engine=engine, surrogate=SurrogateConf(f"mine.py:{name}", width=0.7))
        layer = SpikingLayer(conf, (5,), "sn1").double()
        given = x.clone().requires_grad_()
        layer(given).spk.square().sum().backward()
        found[name, engine] = given.grad
    assert layer.engine == "reference"  # the last one
    assert "line 23: `return torch.exp(-((x / width).pow(2)))`" in layer.engine_reason and ".pow" in layer.engine_reason
    first, *others = found.values()
    assert first.abs().max() > 0
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-12, atol=1e-14)
    with pytest.raises(ConfigError, match=r"neuron.engine=numba: no kernel for surrogate mine.py:eager: .*line 23"):
        conf = NeuronConf("t", engine="numba", surrogate=SurrogateConf("mine.py:eager"))
        SpikingLayer(conf, (5,), "sn1")(x)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(x): return x.sum()", r"for x of shape \[5\] it must return a tensor of that shape.*returned \[\]"),
        ("def f(x, steepness): return x", "it must take x, and by keyword any of alpha, slope.*known of its steepness"),
        ("def f(x): return 1 / (x - x)", "finite derivative"),
        ("f = 3", "this is no function but int"),
    ],
)
def test_a_wrong_surrogate_is_refused(mine, body, message):
    (mine / "mine.py").write_text(body)
    with pytest.raises(ConfigError, match=rf"neuron.surrogate.name=mine.py:f: .*{message}"):
        build_surrogate(SurrogateConf("mine.py:f"))


def test_a_package_registers_names(installed):
    package(installed, "focus", "hinge = mine:hinge", "mse = mine:wrong")
    package(installed, "bells", "bell = mine:bell", group=SURROGATES.group)
    assert "hinge" in LOSSES.names() and "bell" in SURROGATES.names()
    assert load(LOSSES, "hinge").__name__ == "hinge" and problem(LOSSES, "hinge") is None
    assert load(LOSSES, "mse").__module__ == "snnexp.decoders"  # ours stay ours
    assert "Did you mean hinge?" in str(problem(LOSSES, "hing"))
    package(installed, "rate2", "square = mine:hinge", group="snnexp.encoders")
    registry.scanned.cache_clear()
    text = help_text(conf_dir())
    assert "decoder.loss=hinge: of the package focus" in text and "encoder.name=square: of the package rate2" in text
    source = NamedConfigSource()
    assert "square" in source.list("encoder", None) and source.is_config("encoder/square")  # completion asks for these
    assert source.is_config("encoder/mine.py:hinge") and not source.is_config("encoder/circle")
    assert source.load_config("encoder/square").config.name == "square"


def test_broken_packages_harm_nobody_who_does_not_use_them(installed, caplog):
    package(installed, "gone", "gone = gone.module:loss")
    package(installed, "odd", "odd = not a reference")
    package(installed, "damaged", "no equals sign")
    package(installed, "twin1", "twin = mine:hinge")
    package(installed, "twin2", "twin = mine:with_decoder")
    with caplog.at_level(logging.WARNING):
        assert {"gone", "twin"} <= set(LOSSES.names()) and "odd" not in LOSSES.names()
        LOSSES.names()
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2 and "odd" in "".join(warned) and "damaged-1.0.dist-info" in "".join(warned)
    with pytest.raises(ConfigError, match=r"decoder.loss=gone \(registered by the package gone\): .*No module named"):
        load(LOSSES, "gone")
    assert "twin1 (mine:hinge) and twin2 (mine:with_decoder) have this name" in str(problem(LOSSES, "twin"))


def test_names_of_ours_look_at_no_package(monkeypatch):
    monkeypatch.setattr(registry, "registered", lambda group: pytest.fail("packages were asked"))
    assert problem(LOSSES, "tet") is None and load(SURROGATES, "atan") is not None
    assert importlib.import_module("snnexp.registry").__name__ in sys.modules
