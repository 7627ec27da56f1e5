import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from divdr.inference.convolution import Chain, fold, is_foldable_norm, is_plain_convolution, leaves


def filled(norm):
    """Statistics and weights for two channels: mean 1, 3; variance 4, 0.25; γ 2, 5; β 10, -1."""
    norm.running_mean.copy_(torch.tensor([1.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    norm.weight.data.copy_(torch.tensor([2.0, 5.0]))
    norm.bias.data.copy_(torch.tensor([10.0, -1.0]))
    norm.eps = 0.0
    return norm.eval()


@pytest.mark.parametrize("make", [nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d])
def test_fold_by_hand(make):
    conv = nn.Conv2d(1, 2, 1)
    conv.weight.data.copy_(torch.tensor([3.0, 4.0]).view(2, 1, 1, 1))
    conv.bias.data.copy_(torch.tensor([0.5, 1.0]))
    weight, bias = fold(conv, filled(make(2)))
    # γ/√variance is 2/2 = 1 and 5/0.5 = 10: weights 3·1 and 4·10, biases (0.5 − 1)·1 + 10 = 9.5
    # and (1 − 3)·10 − 1 = −21.
    assert weight.flatten().tolist() == [3.0, 40.0]
    assert bias.tolist() == [9.5, -21.0]
    assert weight.dtype == torch.float64


def test_fold_without_bias_or_affine_part_or_norm():
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data.fill_(2.0)
    norm = nn.BatchNorm2d(2, affine=False, eps=0.0).eval()
    norm.running_mean.copy_(torch.tensor([1.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    weight, bias = fold(conv, norm)
    # 1/√variance is 0.5 and 2; biases −1·0.5 and −3·2.
    assert weight.flatten().tolist() == [1.0, 4.0]
    assert bias.tolist() == [-0.5, -6.0]
    assert fold(conv, None)[1] is None


def test_what_can_be_folded():
    assert is_foldable_norm(nn.BatchNorm2d(2).eval())
    assert not is_foldable_norm(nn.BatchNorm2d(2).train())
    assert not is_foldable_norm(nn.BatchNorm2d(2, track_running_stats=False).eval())
    assert not is_foldable_norm(nn.GroupNorm(1, 2).eval())
    assert is_plain_convolution(nn.Conv2d(1, 1, 1))
    assert not is_plain_convolution(nn.Conv2d(1, 1, 3, padding="same"))
    assert not is_plain_convolution(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 1))
    assert not is_plain_convolution(normed)


class _Backwards(nn.Sequential):
    def forward(self, x):
        for layer in reversed(list(self)):
            x = layer(x)
        return x


def test_leaves_look_into_plain_containers_alone():
    one, two, three = nn.ReLU(), nn.ReLU(), _Backwards(nn.ReLU(), nn.Identity())
    assert list(leaves(nn.Sequential(one, nn.Sequential(two, three)))) == [one, two, three]


def test_a_chain_of_folded_layers_is_short_and_the_same():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Identity(),
        nn.Conv2d(4, 4, 3, stride=2, dilation=2, padding=(2, 1), groups=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
    ).eval()
    module[0][1].running_mean.normal_()
    chain = Chain(module, torch.float32)
    # Folded convolution, convolution, GroupNorm, ReLU.
    assert len(chain.steps) == 4
    assert not chain.owns_result
    x = torch.randn(2, 3, 9, 7)
    with torch.no_grad():
        assert torch.allclose(chain(x), module(x), atol=1e-5)
    first = Chain(module[:1], torch.float32)
    assert first.owns_result
    assert first.tail is None
    assert Chain(nn.Identity(), torch.float32).is_identity
