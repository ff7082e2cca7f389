import pytest
import torch
from torch import Tensor, nn

from tests.xfer.quant.nets import big, images, small
from xfer.quant import check_fold, fold


@pytest.mark.parametrize("build", [big, small])
def test_outputs_stay_and_no_batchnorm_does(build):
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert check_fold(model, folded, images(4, 64)) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_shared_convolution_is_refused():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.one = nn.Sequential(self.conv, nn.BatchNorm2d(4))
            self.two = nn.Sequential(self.conv, nn.BatchNorm2d(4))

    with pytest.raises(ValueError, match="shares its weight"):
        fold(Shared())


def test_a_batchnorm_shared_by_two_convolutions_goes_into_both():
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm)
    norm.running_mean, norm.running_var = torch.tensor([1.0, -1, 2]), torch.tensor([0.5, 2, 3])
    check_fold(model, fold(model), images())


def test_registration_that_is_not_call_order_is_noticed():
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)
            self.norm.running_mean = torch.tensor([1.0, -1, 2])

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.norm(x))

    with pytest.raises(ValueError, match="call order"):
        check_fold(Swapped(), fold(Swapped()), images())


def test_another_width_is_no_pair_and_missing_statistics_are_refused():
    assert isinstance(fold(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(3)))[1], nn.BatchNorm2d)
    with pytest.raises(ValueError, match="no running statistics"):
        fold(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)))


def test_an_activation_inside_a_batchnorm_stays_behind():
    """As timm's BatchNormAct2d has it."""

    class WithActivation(nn.BatchNorm2d):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.act = nn.ReLU()

        def forward(self, input: Tensor) -> Tensor:
            return self.act(super().forward(input))

    model = nn.Sequential(nn.Conv2d(3, 4, 1), WithActivation(4), nn.Conv2d(4, 2, 1))
    folded = fold(model.eval())
    check_fold(model, folded, images())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
