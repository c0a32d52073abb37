"""The notation: what it accepts, the shapes it infers, and the errors it explains."""

from __future__ import annotations

import subprocess
import sys

import pytest

from snnexp.errors import ConfigError
from snnexp.models.spec import parse, plan
from snnexp.models.tokens import TOKENS


def test_tokens_carry_their_numbers_and_place() -> None:
    spec = "c12k5s2p1-BN-SN-MP2-DP0.25-FC10-SN-VOTE2"
    tokens = parse(spec)
    assert [t.kind for t in tokens] == [
        "conv", "batch_norm", "spiking", "max_pool", "dropout", "linear", "spiking", "vote",
    ]  # fmt: skip
    assert tokens[0].args == {"out": 12, "k": 5, "s": 2, "p": 1}
    assert tokens[4].args == {"rate": 0.25}
    assert [spec[t.start : t.end] for t in tokens] == [t.text for t in tokens]


def test_repetition_nests_and_both_papers_forms_agree() -> None:
    ours = parse("((c8k3-BN-SN)x3-MP2)x2-DP-FC-SN")
    plif = parse("{{c8k3-BN-SN}*3-MP2}*2-DP-FC-SN")
    expanded = parse("-".join([*(["c8k3-BN-SN"] * 3), "MP2"] * 2) + "-DP-FC-SN")
    assert [t.text for t in ours] == [t.text for t in plif] == [t.text for t in expanded]


def test_plif_table_string_plans_as_printed() -> None:
    printed = "{c128k3s1-BN-SN-MPk2s2}*2-DP-FC2048-SN-DP-FC100-SN-APk10s10"  # Table 6, with SN for PLIF
    ours = "(c128k3-BN-SN-MP2)x2-DP0.5-FC2048-SN-DP0.5-FC-SN-VOTE10"
    left, right = plan(printed, (1, 28, 28), 10), plan(ours, (1, 28, 28), 10)
    assert [(a.kind, a.name, a.out_shape, dict(a.args)) for a in left] == [
        (b.kind, b.name, b.out_shape, dict(b.args)) for b in right
    ]


def test_shapes_by_hand() -> None:
    layers = {layer.name: layer for layer in plan("c12k5p0-SN-MP2-c64k5-SN-MP3s2-FC-SN", (2, 34, 34), 10)}
    assert layers["conv1"].out_shape == (12, 30, 30)  # 34 - 5 + 1
    assert layers["mp1"].out_shape == (12, 15, 15)
    assert layers["conv2"].out_shape == (64, 15, 15)  # same padding by default: 5 // 2 on each side
    assert layers["mp2"].out_shape == (64, 7, 7)  # (15 - 3) // 2 + 1
    assert layers["flat1"].out_shape == (64 * 49,)
    assert layers["fc1"].out_shape == (10,)
    assert layers["conv1"].params == 12 * 2 * 25 + 12
    assert layers["conv2"].params == 64 * 12 * 25 + 64
    assert layers["conv2"].fan_in == 12 * 25


def test_an_even_window_has_no_padding() -> None:
    assert plan("c4k4-SN-FC-SN", (1, 8, 8), 10)[0].out_shape == (4, 5, 5)


def test_names_count_each_kind_in_order() -> None:
    names = [layer.name for layer in plan("c4k3-SN-NN-c4k3-BN-SN-AP2-RFC8-SN-LN-FC-SN", (1, 8, 8), 10)]
    assert names == [
        "conv1", "sn1", "nn1", "conv2", "bn1", "sn2", "ap1", "flat1", "rfc1", "sn3", "ln1", "fc1", "sn4",
    ]  # fmt: skip


def test_bias_is_off_before_batch_norm_and_on_request() -> None:
    layers = plan("FC5-BN-SN-FC-SN", (1, 2, 2), 3)
    assert [layer.bias for layer in layers if layer.kind == "linear"] == [False, True]
    assert [layer.params for layer in layers if layer.kind == "linear"] == [20, 18]
    assert [layer.params for layer in plan("FC5-SN-FC-SN", (1, 2, 2), 3, bias=False)] == [0, 20, 0, 15, 0]


def test_fc_without_a_number_is_one_neuron_per_class_and_vote() -> None:
    assert plan("FC-SN", (1, 4, 4), 11)[-1].out_shape == (11,)
    voted = plan("FC-SN", (1, 4, 4), 11, votes=10)
    assert [layer.out_shape for layer in voted] == [(16,), (110,), (110,), (11,)]
    assert voted[-1].kind == "vote"
    # a VOTE of the spec's own is not joined by a second one
    own = plan("FC-SN-VOTE5", (1, 4, 4), 11, votes=10)
    assert [layer.out_shape for layer in own][1:] == [(55,), (55,), (11,)]


SHAPE = (1, 28, 28)


@pytest.mark.parametrize(
    ("spec", "message", "marked"),
    [
        ("c12k5-SN-ML2-FC10-SN", "unknown token ML2. Did you mean MP2 (max pooling)?", "ML2"),
        ("128C3-SN-FC-SN", "unknown token 128C3. Did you mean c128k3 (convolution)?", "128C3"),
        ("512FC-SN", "unknown token 512FC. Did you mean FC512 (fully connected)?", "512FC"),
        ("FC10-PLIF", "unknown token PLIF. Did you mean SN (spiking neurons)?", "PLIF"),
        ("FC10-sn", "unknown token sn. Did you mean SN (spiking neurons)?", "sn"),
        ("C8k3-SN-FC-SN", "unknown token C8k3. Did you mean c8k3 (convolution)?", "C8k3"),
        ("FC10-SN-DP1.5", "unknown token DP1.5.", "DP1.5"),
        ("FC10-SN-DP1", "DP1 would drop everything", "DP1"),
        ("c0k3-SN-FC-SN", "c0k3: numbers start at 1.", "c0k3"),
        ("FC10--SN", "a token is missing here", "-"),
        ("", "a token is missing here", ""),
        ("FC10-SN-", "a token is missing here", ""),
        ("(FC10-SN", "expected ) here", ""),
        ("(FC10-SN}x2", "expected ) here", "}"),
        ("FC10-SN)x2", "closing ) without an opening one", ")"),
        ("(FC10-SN)", "a group needs its repetition after it: (...)x2.", ")"),
        ("(FC10-SN)x99999", "more than 10,000 layers", "x99999"),
        ("FC10 SN", "expected - between two tokens", "S"),
        ("FC-SN-FC-SN", "only the last FC may leave its number out", "FC"),
        ("FC10", "the network must end in SN, not in FC10: append -SN.", "FC10"),
        ("FC10-SN-DP0.5", "the network must end in SN, not in DP0.5", "DP0.5"),
        ("SN", "the network has no layer with weights", "SN"),
        ("FC20-SN", "the network ends in 20 outputs, but the data set has 10 classes. Use FC10", "FC20"),
        ("FC50-SN-VOTE10", "5 outputs, but the data set has 10 classes (10 neurons per class). Use FC100", "FC50"),
        ("FC55-SN-VOTE10", "VOTE10 does not divide 55 output neurons into equal groups. Use FC60", "VOTE10"),
        ("FC100-VOTE10-SN", "VOTE10 averages output spikes, so it stands after the last SN", "VOTE10"),
        ("FC100-SN-AP10s5", "voting needs a stride equal to its size", "AP10s5"),
        ("c4k3-SN-VOTE2-FC-SN", "VOTE2 needs a flat input, but it is 4x28x28", "VOTE2"),
        ("c4k3-NN-SN-FC-SN", "NN normalises spikes, so it stands right after an SN", "NN"),
        ("FC64-SN-NN-FC-SN", "NN needs feature maps", "NN"),
        ("RFC20-BN-SN-FC-SN", "RFC20 feeds its own spikes back, so an SN must follow it directly", "RFC20"),
        ("FC64-SN-MP2-FC-SN", "MP2 needs maps [C, H, W], but its input is flat (64)", "MP2"),
        ("FC64-SN-c4k3-SN-FC-SN", "c4k3 needs maps [C, H, W], but its input is flat (64)", "c4k3"),
        ("c4k3-SN-MP2-MP2-MP2-MP2-AP2-FC-SN", "AP2 pools 2x2 pixels, but its input is 4x1x1", "AP2"),
        ("c4k31p0-SN-FC-SN", "c4k31p0 has a window of 31x31, but its input is 1x28x28 (padding 0)", "c4k31p0"),
    ],
)
def test_errors_point_at_the_token(spec: str, message: str, marked: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(spec, SHAPE, 10)
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("model.spec: ")
    assert message in lines[0]
    assert lines[1] == f"  {spec}"
    place = lines[2].index("^")
    assert lines[2] == " " * place + "^" * max(len(marked), 1)
    assert lines[1][place : place + len(marked)] == marked


def test_an_unknown_token_lists_all_tokens() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("XYZ")
    for token in TOKENS:
        assert f"  {token.usage}" in str(caught.value)


def test_every_row_of_the_table_parses() -> None:
    examples = {"[<out>]": "", "[<p>]": "", "[s<stride>]": "", "[p<pad>]": "", "<out>": "8", "<size>": "3", "<n>": "2"}
    for token in TOKENS:
        text = token.usage
        for hole, value in examples.items():
            text = text.replace(hole, value)
        assert parse(text)[0].kind == token.kind, text


def test_the_notation_is_read_without_torch() -> None:
    code = "import sys, snnexp.models.spec; print([m for m in ('torch', 'numpy', 'snntorch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_delays_by_hand() -> None:
    layers = plan("DL8-c4k3-SN-DL2-MP2-DL4-FC12-SN-DL3-RFC9DL5-SN-FC-SN", (2, 8, 8), 10)
    found = [(a.name, a.args["max"], a.in_shape, a.params) for a in layers if a.kind == "delay"]
    assert found == [("dl1", 8, (2, 8, 8), 2), ("dl2", 2, (4, 8, 8), 4), ("dl3", 4, (64,), 64), ("dl4", 3, (12,), 12)]
    names = [layer.name for layer in layers]
    assert names[names.index("dl3") - 1] == "flat1" and names.count("flat1") == 1
    (rfc,) = [layer for layer in layers if layer.kind == "recurrent"]
    assert dict(rfc.args) == {"out": 9, "max": 5} and rfc.params == 9 * 12 + 9 * 9 + 9 + 9


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("FC-SN-DL3", "there is no next layer"),
        ("FC-SN-DL3-VOTE1", "after the last SN"),
        ("DL0-FC-SN", "numbers start at 1"),
        ("DL-FC-SN", "unknown token DL"),
        ("RFC9-DL3-SN-FC-SN", "RFC9-SN"),
        ("DELAY8-FC-SN", "DL8"),
        ("FC9DL3-SN-FC-SN", "unknown token FC9DL3"),
    ],
)
def test_wrong_delays_are_explained(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=r"\^") as error:
        plan(spec, (1, 8, 8), 10)
    assert words in str(error.value)
