"""What a loaded network does: spikes, scores, dead neurons, and the record's own numbers."""

from __future__ import annotations

import pytest
import torch

import snnexp


@pytest.fixture(scope="module")
def net(run: snnexp.Run) -> snnexp.Net:
    return run.load()


def test_images_go_through_the_encoder_and_input_over_time_does_not(net: snnexp.Net) -> None:
    images, labels = next(iter(net.open_data("test")))
    assert images.dtype == torch.uint8 and labels.shape == (32,)
    by_image = net(images)
    by_hand = net((images.float() / 255).expand(4, *images.shape))  # digits: direct encoding
    assert by_image.spk.shape == by_image.mem.shape == (4, 32, 10)
    assert torch.equal(by_image.spk, by_hand.spk)
    flat = net((images.float() / 255).flatten(1).expand(4, 32, 64))
    assert torch.equal(by_image.spk, flat.spk)
    assert torch.equal(net.scores(images), by_image.spk.mean(0))
    assert torch.equal(net.predict(images), by_image.spk.mean(0).argmax(-1))


def test_spikes_of_all_layers_end_in_those_of_the_output(net: snnexp.Net) -> None:
    images, _ = next(iter(net.open_data("test")))
    spikes = net.spikes(images)
    assert {name: tuple(spk.shape) for name, spk in spikes.items()} == {"sn1": (4, 32, 4, 8, 8), "sn2": (4, 32, 10)}
    assert torch.equal(spikes["sn2"], net(images).spk)


def test_dead_neurons_are_those_of_the_record(run: snnexp.Run, net: snnexp.Net) -> None:
    dead = net.dead_neurons(net.open_data("test"))
    assert {name: tuple(mask.shape) for name, mask in dead.items()} == {"sn1": (4, 8, 8), "sn2": (10,)}
    for name, mask in dead.items():
        assert mask.sum() == run.metrics[f"test/dead_neurons/{name}"]
    spikes = net.spikes(next(iter(net.open_data("test")))[0])  # the test split is one batch
    assert torch.equal(dead["sn1"], spikes["sn1"].sum((0, 1)) == 0)


def test_a_loader_of_anybodys_will_do(net: snnexp.Net) -> None:
    batches = [torch.zeros(2, 3, 1, 8, 8), (torch.zeros(2, 3, 1, 8, 8), torch.zeros(3))]
    assert net.dead_neurons(batches)["sn2"].all()
    with pytest.raises(snnexp.ConfigError, match="no batches"):
        net.dead_neurons([])


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 1, 8, 8),
        torch.zeros(4, 3, 1, 8, 9),
        torch.zeros(4, 3, 65),
        torch.zeros(3, 1, 9, 9, dtype=torch.uint8),
        torch.zeros(4, 3, 1, 8, 8, dtype=torch.int64),
    ],
)
def test_input_of_another_shape_or_type_is_told_what_it_should_be(net: snnexp.Net, x: torch.Tensor) -> None:
    with pytest.raises(snnexp.ConfigError, match=r"float \[T, B, 1, 8, 8\] or \[T, B, 64\]"):
        net(x)


def test_gradients_pass(net: snnexp.Net) -> None:
    x = torch.rand(4, 2, 1, 8, 8, requires_grad=True)
    net(x).mem.sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    net.zero_grad()


def test_epochs_of_data_repeat_and_differ(net: snnexp.Net) -> None:
    data = net.open_data("train")
    first, again, other = (torch.cat([labels for _, labels in data.epoch(n)]) for n in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(list(data)) == len(data) == 2 and "digits, train: 64 samples" in repr(data)
    with pytest.raises(snnexp.ConfigError, match="Did you mean test"):
        net.open_data("tset")


def test_open_data_takes_names_and_overrides() -> None:
    data = snnexp.open_data(["dataset=randman", "dataset.samples_per_class=10", "dataset.num_units=5"], "val")
    x, labels = next(iter(data))
    assert x.shape[2:] == (1, 1, 5) and x.dtype == torch.float32 and len(labels) == x.shape[1]
    with pytest.raises(snnexp.ConfigError, match="Did you mean digits"):
        snnexp.open_data("digts")


def test_a_layer_alone(run: snnexp.Run) -> None:
    layer = snnexp.SpikingLayer(snnexp.NeuronConf(name="mine", beta=0.5), (3,), "sn1")
    out = layer(torch.full((4, 1, 3), 0.75))
    assert out.spk[:, 0, 0].tolist() == [0, 1, 0, 1]  # 0.75, 1.125, 0.75, 1.125
