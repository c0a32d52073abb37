"""Every shipped configuration composes and validates; every data set works with every neuron by the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from snnexp.cli import conf_dir
from snnexp.config import Config, register_schemas
from snnexp.data.facts import FACTS
from snnexp.errors import ConfigError
from snnexp.helptext import GROUPS, describe
from snnexp.validation import validate

CONF = conf_dir()
NEURONS = sorted(path.stem for path in (CONF / "neuron").glob("*.yaml"))
# Options that change the meaning of another group are tested with a partner that they fit.
PARTNERS = {
    "encoder/none": ["dataset=nmnist"],
    "decoder/first_spike": ["neuron=ttfs"],
    "task/evaluate": ["run_id=x"],
    "task/export": ["run_id=x"],
    "task/probe": ["run_id=x"],
    "task/diagnose": ["run_id=x"],
}


def composed(*overrides: str) -> Config:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides))
        return validate(cfg)


READER = """
class Reader:
    shape, class_names = (2, 28, 28), ("a", "b")
    def recordings(self):
        return iter(())
def open_reader(conf):
    return Reader()
"""


@pytest.fixture(scope="session")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the sets of a user's own files need: small ones."""
    root = tmp_path_factory.mktemp("own")
    for name in ("a", "b"):
        (root / "events" / name).mkdir(parents=True)
        (root / "events" / name / "1.csv").write_text("t_us,x,y,p\n0,1,2,1\n")
        (root / "pictures" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(root / "pictures" / name / "1.png")
    folder = [f"dataset.path={root / 'events'}", "dataset.sensor_size=34x34"]
    reader = root / "reader.py"
    reader.write_text(READER)
    return {
        "own": [f"dataset.reader={reader}:open_reader"],
        "folder": folder,
        "images": [f"dataset.path={root / 'pictures'}"],
        "tonic": ["dataset.class=POKERDVS"],
    }


def test_the_contract_has_its_options() -> None:
    wanted = {
        "dataset": "digits randman mnist fashion_mnist cifar10 nmnist dvs128 shd ssc cifar10dvs folder images tonic",
        "neuron": "fixed rouser plif ttfs ltmd dietsnn",
        "encoder": "none direct rate latency delta",
        "decoder": "rate membrane first_spike temporal_weight vote",
        "optimizer": "adam adamw sgd",
        "scheduler": "none cosine step",
        "trainer": "default smoke",
        "tracking": "mlflow off",
        "task": "train evaluate inspect prepare report export",
    }
    for group, options in wanted.items():
        assert set(options.split()) <= {path.stem for path in (CONF / group).glob("*.yaml")}, group


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dataset", sorted(FACTS))
def test_every_pair_of_dataset_and_neuron(dataset: str, neuron: str, own_data: dict[str, list[str]]) -> None:
    conf = composed(f"dataset={dataset}", f"neuron={neuron}", *own_data.get(dataset, []))
    assert (conf.dataset.name, conf.neuron.name) == (dataset, neuron)


@pytest.mark.parametrize(
    "path",
    sorted(
        p
        for g in ("task", "encoder", "decoder", "optimizer", "scheduler", "trainer", "tracking")
        for p in CONF.glob(f"{g}/*.yaml")
    ),
    ids=lambda p: f"{p.parent.name}/{p.stem}",
)
def test_every_option_of_the_small_groups(path: Path) -> None:
    option = f"{path.parent.name}/{path.stem}"
    composed(option.replace("/", "="), *PARTNERS.get(option, []))


@pytest.mark.parametrize("path", sorted(CONF.glob("experiment/*.yaml")), ids=lambda p: p.stem)
def test_every_experiment(path: Path) -> None:
    composed(f"+experiment={path.stem}")
    text = path.read_text(encoding="utf-8")
    for heading in ("# Run:", "# Published:"):
        assert heading in text


def test_every_option_describes_itself() -> None:
    files = [path for group in GROUPS for path in (CONF / group).glob("*.yaml")]
    assert len(files) > 70
    for path in files:
        assert len(describe(path)) > 8, path


def test_the_command_line_wins_over_what_follows_from_the_neuron() -> None:
    conf = composed("neuron=ttfs", "decoder=first_spike", "model.init=default")
    assert (conf.decoder.name, conf.model.init) == ("first_spike", "default")


def test_the_command_line_wins_over_an_experiment() -> None:
    arguments = ["experiment=rouser_fig6b", "trainer=smoke", "neuron=plif", "neuron.threshold=2"]
    conf = composed(*arguments)
    assert (conf.trainer.max_epochs, conf.trainer.smoke_steps) == (1, 2)
    assert (conf.neuron.name, conf.neuron.surrogate.name, conf.neuron.threshold) == ("plif", "atan", 2.0)
    assert conf.dataset.num_steps == 300  # what was not chosen is still the experiment's


def test_tet_decides_by_the_mean_over_time() -> None:
    with pytest.raises(ConfigError, match=r"decoder\.reduce=mean"):
        composed("decoder=membrane", "decoder.loss=tet")
    for advice in (["decoder.reduce=mean"], ["decoder.loss=ce_step"]):
        composed("decoder=membrane", "decoder.loss=tet", *advice)
    tet, spikes = composed("decoder=tet").decoder, composed("decoder=rate", "decoder.loss=tet").decoder
    assert (tet.name, tet.loss, tet.reduce, tet.tet_lambda, spikes.loss) == ("membrane", "tet", "mean", 1e-3, "tet")


def test_two_passes_need_dropout():
    with pytest.raises(ConfigError, match=r"decoder.agreement=0.5: model.spec has no dropout.* DPM0.2"):
        composed("model.spec=FC8-SN-FC-SN", "decoder.agreement=0.5")
    assert composed("model.spec=FC8-SN-DPM0.2-FC-SN", "decoder.agreement=0.5").decoder.agreement == 0.5
    with pytest.raises(ConfigError, match="first_spike"):
        composed("model.spec=FC8-SN-DP-FC-SN", "neuron=ttfs", "decoder=first_spike", "decoder.agreement=0.5")
