"""examples/own_code: all of them train, and the record names them; readers, and what is wrong with them."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import compose_words

from snnexp.config import Config
from snnexp.errors import ConfigError, DataError
from snnexp.experiment import assemble, open_source
from snnexp.tasks.train import train
from snnexp.validation import validate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "own_code"
QUICK = ("device=cpu", "tracking=off", "trainer.plots=false", "trainer.max_epochs=2", "dataset.num_steps=4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples and with recordings of two classes: events left, events right."""
    for file in EXAMPLES.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "recordings").mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2), ("test", 2)):
        for number in range(count):
            for side, name in enumerate(("left", "right")):
                t, n = np.sort(rng.integers(0, 100_000, 60)), 60
                x, y, p = rng.integers(0, 8, n) + 8 * side, rng.integers(0, 16, n), rng.integers(0, 2, n)
                np.savez(tmp_path / "recordings" / f"{part}_{name}_{number}.npz", t=t, x=x, y=y, p=p)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composed(folder: Path, *overrides: str) -> tuple[Config, Any]:
    typed = [*QUICK, f"state_dir={folder}/runs", f"dataset.root={folder}/data", *overrides]
    cfg = compose_words(*typed)
    return validate(cfg), cfg


def trained(folder: Path, *words: str) -> tuple[dict[str, str], str]:
    """Tags and metrics of the run."""
    conf, cfg = composed(folder, *words)
    train(conf, cfg)
    (record,) = folder.glob("runs/*/*/record.json")
    return json.loads(record.read_text())["tags"], (record.parent / "metrics.jsonl").read_text()


READER = ("dataset.reader=reader.py:open_reader", "dataset.path=recordings")


def test_reader_network_loss_surrogate_callback_and_optimizer(here: Path) -> None:
    tags, metrics = trained(
        *(here, *READER, "model.module=network.py:Net", "model.kwargs.width=4", "decoder.loss=loss.py:smooth"),
        *("neuron.surrogate.name=surrogate.py:bell", "trainer.callbacks=[callback.py:Rest]"),
        *("optimizer=optimizer.py:SignDescent", "optimizer.lr=0.002", "scheduler=optimizer.py:halving"),
    )
    named = {key.removeprefix("code."): text for key, text in tags.items() if key.startswith("code.")}
    assert {key: text.split()[0] for key, text in named.items()} == {
        "dataset.reader": "reader.py:open_reader",
        "model.module": "network.py:Net",
        "decoder.loss": "loss.py:smooth",
        "neuron.surrogate.name": "surrogate.py:bell",
        "trainer.callbacks": "callback.py:Rest",
        "optimizer.name": "optimizer.py:SignDescent",
        "scheduler.name": "optimizer.py:halving",
    }
    assert all("sha256:" in text for text in named.values()) and tags["engine"] == "numba"
    assert '"mine/moved"' in metrics and '"test/synops"' in metrics and '"test/dead_fraction/sn2"' in metrics


def test_encoder_and_neuron(here: Path) -> None:
    tags, metrics = trained(
        *(here, "encoder=encoder.py:two_levels", "encoder.kwargs.bright=0.7", "neuron.equation=neuron.py:step"),
        *("dataset.limit_train=40", "dataset.limit_val=20", "dataset.limit_test=20", "model.spec=FC8-SN-FC-SN"),
    )
    assert tags["code.encoder.name"].startswith("encoder.py:two_levels sha256:")
    assert tags["code.neuron.equation"].startswith("neuron.py:step sha256:") and '"turn/mean/sn1"' in metrics


def test_every_example_says_how_it_is_used_and_the_page_shows_it() -> None:
    page = (EXAMPLES.parents[1] / "docs" / "own_code.md").read_text()
    for file in EXAMPLES.glob("*.py"):
        (command,) = re.findall(r"^snnexp .*$", file.read_text(), re.MULTILINE)
        assert f"{file.name}:" in command and f"examples/own_code/{file.name}" in page and command in page


def test_what_a_reader_gives_is_what_is_trained_on(here: Path) -> None:
    conf, _ = composed(here, *READER)
    source = open_source(conf)
    assert source.info.class_names == ("left", "right") and source.info.counts == {"train": 12, "val": 4, "test": 4}
    assert source.info.source == "reader.py:open_reader" and source.info.events == 20 * 60
    assert assemble(conf, source).network.input_shape == (2, 16, 16)
    first = source.info.data_fingerprint
    (here / "reader.py").write_text((here / "reader.py").read_text().replace('events["x"]', '15 - events["x"]'))
    assert open_source(conf).info.data_fingerprint != first  # other code, other events: packed anew


ONE = "'a', 'train', 0, [1, 2], [1, 2], [1, 2], [0, 1]"


@pytest.mark.parametrize(
    ("change", "message", "kind"),
    [
        (("shape = (2, size, size)", "shape = 16"), r"`shape` must be \(C, H, W\), not 16", ConfigError),
        (("class_names = tuple", "class_names = str"), "must name two classes or more", ConfigError),
        (("def recordings", "def samples"), "has no method `recordings`, which yields .name, part", ConfigError),
        (('["t"]', '["time"]'), r"reader.py, line \d+: `yield .*`: KeyError", ConfigError),
        (("yield path.name, part,", "yield path.name, 'all',"), "left_0.npz: its part is 'all'", DataError),
        (("self.class_names.index(name)", "7"), "its label is 7, and there are 2 classes", DataError),
        (('events["p"]', 'events["p"][:5]'), r"must have one length, but are \[60\], \[60\], \[60\], \[5\]", DataError),
    ],
)
def test_a_wrong_reader_gets_one_message(here: Path, change: tuple[str, str], message: str, kind: type) -> None:
    text = (here / "reader.py").read_text()
    assert change[0] in text
    (here / "reader.py").write_text(text.replace(*change))
    with pytest.raises(kind, match=message) as caught:
        open_source(composed(here, *READER)[0])
    assert "dataset.reader=reader.py:open_reader" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=own"], "dataset=own: needs dataset.reader="),
        (["dataset=own", "dataset.reader=nmnist"], "reader=nmnist: this is a data set of ours. Use dataset=nmnist"),
        (["dataset.reader=reader.py:open_it"], r"reader.py has no `open_it`. Did you mean open_reader\?"),
        (["dataset.reader=reader.py:open_reader", "dataset.path=nowhere"], "dataset.path=nowhere: there is no such"),
    ],
)
def test_a_reader_stands_on_its_own_option(here: Path, words: list[str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        open_source(composed(here, *words)[0])
