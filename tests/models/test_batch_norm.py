"""Batch norm's own kernels: torch's values, gradients and running statistics; more digits, whatever the threads."""

import pytest
import torch
from torch import Tensor, nn

from snnexp.models.batch_norm import BatchNorm2d, with_sums


def maps(*shape: int, dtype: torch.dtype = torch.float64, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + mean
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def pair(channels: int, dtype: torch.dtype = torch.float64) -> tuple[nn.BatchNorm2d, BatchNorm2d]:
    theirs = nn.BatchNorm2d(channels, dtype=dtype)
    nn.init.uniform_(theirs.weight, 0.5, 2)
    nn.init.uniform_(theirs.bias, -1, 1)
    ours = BatchNorm2d(channels, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("shape", [(5, 7, 3, 4), (2, 4, 1, 1), (40, 5, 31, 17), (3, 33, 2, 2)])
def test_is_torchs(shape: tuple[int, ...]) -> None:
    x = maps(*shape, mean=2.0).requires_grad_()
    weight = maps(*shape[::-1]).permute(3, 2, 1, 0)
    theirs, ours = pair(shape[1])
    results = []
    for module in (theirs, ours):
        y = module(module(x))  # running statistics of two passes
        results.append((y, *torch.autograd.grad((y * weight).sum(), [x, module.weight, module.bias])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize(("mean", "again"), [(24.0, False), (60.0, True), (3e4, True)])
def test_sums_that_a_convolution_took_far_from_the_mean_are_taken_again(mean: float, again: bool) -> None:
    x = maps(6, 5, 9, 8, mean=mean)  # standard deviations of 3
    rows = x.permute(0, 2, 3, 1).reshape(-1, 5)
    rough = torch.stack([rows.sum(0), rows.square().sum(0) * (1 + 1e-6)])  # of six digits
    with_sums(x, torch.zeros(5, dtype=torch.float64).numpy(), rough.numpy())
    _, ours = pair(5)
    ours.momentum = 1.0
    ours(x)
    assert ours.running_var is not None
    error = (ours.running_var / rows.var(0) - 1).abs().max()
    assert error < 1e-9 if again else 1e-6 < error < 1e-4


def test_statistics_can_be_switched_off_as_torchs() -> None:
    x = maps(5, 7, 3, 4, mean=2.0)
    results = []
    for module in pair(7):
        module.track_running_stats = False
        results.append((module(x), *module.state_dict().values()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def test_gradcheck() -> None:
    x = maps(3, 4, 2, 2).requires_grad_()
    _, ours = pair(4)
    assert torch.autograd.gradcheck(ours, x)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    x = maps(64, 8, 16, 16, mean=1e4)
    exact = nn.BatchNorm2d(8, dtype=torch.float64)(x)
    theirs, ours = pair(8, torch.float32)
    nn.init.ones_(ours.weight)
    nn.init.zeros_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    y, other = ours(x.float()), theirs(x.float())
    assert y.dtype == torch.float32
    assert (y - exact).abs().max() <= 2 * (other - exact).abs().max() + 1e-3  # the input itself has lost digits


@pytest.mark.usefixtures("threads")
def test_threads_do_not_change_bits() -> None:
    x = maps(50, 8, 30, 30, dtype=torch.float32).requires_grad_()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        _, ours = pair(8, torch.float32)
        y = ours(x)
        results.append((y, *torch.autograd.grad(y.square().sum() + y.sum(), [x, ours.weight, ours.bias])))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_overwriting_the_gradient_changes_no_number() -> None:
    x = maps(6, 8, 5, 5).requires_grad_()
    found = []
    for overwrite in (False, True):
        torch.manual_seed(0)
        _, ours = pair(8)
        ours.overwrite_gradient = overwrite
        given = maps(6, 8, 5, 5, mean=0.5)
        (grad,) = torch.autograd.grad(ours(x), x, given)
        assert (grad.data_ptr() == given.data_ptr()) == overwrite
        found.append(grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("case", ["contiguous", "few channels", "half", "autocast"])
def test_what_the_kernels_do_not_take_goes_to_torch(case: str) -> None:
    x = maps(4, 3 if case == "few channels" else 8, 5, 5, dtype=torch.bfloat16 if case == "half" else torch.float32)
    x = x.contiguous() if case == "contiguous" else x
    theirs, ours = pair(x.shape[1], x.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(ours(x), theirs(x))


def test_one_row_is_refused_as_torch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchNorm2d(4)(torch.ones(1, 4, 1, 1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_options_that_the_kernels_lack_go_to_torch(options: dict[str, object]) -> None:
    x = maps(4, 8, 5, 5, dtype=torch.float32)
    assert torch.equal(BatchNorm2d(8, **options)(x), nn.BatchNorm2d(8, **options)(x))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_infinity_gives_what_torch_gives() -> None:
    x = maps(4, 8, 5, 5)
    x[0, 2, 1, 1] = float("inf")
    theirs, ours = pair(8)
    torch.testing.assert_close(ours(x), theirs(x), equal_nan=True)
