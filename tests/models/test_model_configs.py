"""Every file in conf/model plans on the data it is for, and has the size that its source states."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from snnexp.config import ModelConf
from snnexp.models.spec import WEIGHT_KINDS, plan

FOLDER = Path(__file__).parents[2] / "conf" / "model"
NAMES = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"own"})  # which has no spec

MNIST, CIFAR, NMNIST, DVS, SHD = (1, 28, 28), (3, 32, 32), (2, 34, 34), (2, 128, 128), (1, 1, 700)
DATA = {  # network: input, classes
    "mlp": (MNIST, 10), "digits": ((1, 8, 8), 10), "conv_small": (MNIST, 10), "randman_mlp": ((1, 1, 100), 10),
    "nmnist_conv": (NMNIST, 10), "dvs128_conv": ((2, 64, 64), 11), "cifar10dvs_conv": ((2, 64, 64), 10),
    "shd_mlp": (SHD, 20), "shd_rnn": (SHD, 20), "ssc_mlp": (SHD, 35),
    "rouser_nmnist": (NMNIST, 10), "rouser_dvs128": (DVS, 11), "rouser_shd": (SHD, 20),
    "plif_mnist": (MNIST, 10), "plif_fashion_mnist": (MNIST, 10), "plif_nmnist": (NMNIST, 10),
    "plif_cifar10": (CIFAR, 10), "plif_cifar10dvs": (DVS, 10), "plif_dvs128": (DVS, 11),
    "neunorm_cifarnet": (CIFAR, 10), "neunorm_cifar10_small": (CIFAR, 10), "neunorm_cifar10_middle": (CIFAR, 10),
    "neunorm_nmnist": (NMNIST, 10), "neunorm_dvscifar10": (DVS, 10),
    "stbp_mnist_mlp": (MNIST, 10), "stbp_mnist_conv": (MNIST, 10), "stbp_nmnist_mlp": (NMNIST, 10),
    "stbp_dvs128": ((2, 32, 32), 11), "ettfs_conv": (MNIST, 10), "ettfs_mlp": (MNIST, 10),
    "sew_resnet18": (CIFAR, 10),
}  # fmt: skip

MILLIONS = {  # PLIF: methods/plif.md section 3, one decimal place
    "plif_mnist": 13.2, "plif_fashion_mnist": 13.2, "plif_nmnist": 17.1, "plif_cifar10": 36.7,
    "plif_cifar10dvs": 17.4, "plif_dvs128": 1.7,
}  # fmt: skip
WEIGHTS = {  # without biases
    "rouser_nmnist": 1_411_000, "rouser_dvs128": 2_097_856, "rouser_shd": 184_000,  # Rouser, Table I
    "stbp_mnist_mlp": 784 * 512 + 512 * 10, "stbp_nmnist_mlp": 2312 * 512 + 512 * 10,
    "neunorm_cifarnet": 9 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024 + 1024 * 512)
    + 512 * 8 * 8 * 1024 + 1024 * 512 + 512 * 100,  # 45.05 M
}  # fmt: skip


def load(name: str) -> dict[str, object]:
    return dict(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def test_every_network_has_its_data_here() -> None:
    assert sorted(DATA) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_network_plans_and_describes_itself(name: str) -> None:
    conf = load(name)
    assert conf["name"] == name
    assert set(conf) - {"defaults"} <= set(ModelConf.__dataclass_fields__)
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
    shape, classes = DATA[name]
    layers = plan(str(conf["spec"]), shape, classes, bias=bool(conf.get("bias", True)))
    assert layers[-1].out_shape == (classes,)
    if name in MILLIONS:
        assert round(sum(layer.params for layer in layers) / 1e6, 1) == MILLIONS[name]
    if name in WEIGHTS:
        biases = sum(layer.out_shape[0] for layer in layers if layer.kind in WEIGHT_KINDS and layer.bias)
        weights = sum(layer.params for layer in layers if layer.kind in WEIGHT_KINDS) - biases
        assert weights == WEIGHTS[name]


def test_cifarnet_has_the_published_45_05_million_weights() -> None:
    assert round(WEIGHTS["neunorm_cifarnet"] / 1e6, 2) == 45.05
