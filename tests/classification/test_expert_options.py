"""CondConv and PWLU against naive loops, and what they replace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from divdr.errors import ConfigError
from divdr.moe import (
    PWLU,
    CondConv2d,
    ResNetParts,
    StageClassifier,
    align,
    named_classifier,
    part_macs,
    with_condconv,
    with_pwlu,
)


def network():
    parts = ResNetParts(channels=4)
    stem = parts.stem()
    branch = parts.branch(stem.out_channels)
    return StageClassifier(stem, branch, branch.out_channels, 3)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 2)])
def test_condconv_is_a_convolution_of_each_image_s_own_kernel(stride, groups):
    layer = CondConv2d(nn.Conv2d(4, 6, 3, stride, 1, groups=groups, bias=False), 3)
    x = torch.randn(5, 4, 8, 8)
    found = layer(x)
    for image, output in zip(x, found, strict=True):
        shares = torch.sigmoid(layer.route(image.mean((1, 2))))
        kernel = sum(share * weight for share, weight in zip(shares, layer.weight, strict=True))
        expected = F.conv2d(image[None], kernel, None, stride, 1, groups=groups)
        torch.testing.assert_close(output, expected[0], rtol=1e-4, atol=1e-5)
    found.sum().backward()
    wide = CondConv2d(nn.Conv2d(8, 64, 3, stride, 1, groups=groups, bias=False), 3)
    for kernel in wide.weight:  # each by itself; fan out is 9 · 64
        expected = (2 / (9 * 64)) ** 0.5
        assert kernel.std().item() == pytest.approx(expected, rel=0.1)
    assert layer.route.weight.grad.abs().sum() > 0


def test_condconv_replaces_the_convolutions_of_the_blocks():
    plain = network()
    mixed = with_condconv(copy.deepcopy(plain), 4)
    kinds = [type(m) for m in mixed.modules() if isinstance(m, nn.Conv2d | CondConv2d)]
    assert kinds == [nn.Conv2d] + [CondConv2d] * 6
    x = torch.randn(2, 3, 16, 16)
    assert mixed(x).shape == (2, 3)
    # Mixing kernels is 4 multiply-adds a weight, routes 4 a channel of the input.
    more = sum(
        4 * m.weight[0].numel() + m.route.in_features * 4
        for m in mixed.modules()
        if isinstance(m, CondConv2d)
    )
    assert part_macs(mixed, (3, 16, 16))[0] == part_macs(plain, (3, 16, 16))[0] + more
    named = with_condconv(named_classifier("torchvision:mobilenet_v3_small", 3), 2)
    gates = [m for n, m in named.named_modules() if n.endswith(("fc1", "fc2"))]
    assert gates
    assert all(isinstance(m, nn.Conv2d) for m in gates)
    with pytest.raises(ConfigError, match="no convolution that CondConv"):
        with_condconv(nn.Sequential(nn.Conv2d(3, 4, 1)), 4)
    with pytest.raises(ConfigError, match="at least 1 kernel, not -1"):
        with_condconv(network(), -1)


def test_pwlu_by_hand():
    # One channel, two intervals of 2 between −1 and 3, through 5, 1 and 2.
    function = PWLU(1, 2)
    with torch.no_grad():
        function.place_bounds()
        function.left.fill_(-1.0)
        function.right.fill_(3.0)
        function.values.copy_(torch.tensor([[5.0, 1.0, 2.0]]))
        function.left_slope.fill_(0.5)
        function.right_slope.fill_(-2.0)
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.5, 3.0, 4.0]).view(1, 1, 1, 7)
    expected = torch.tensor([4.0, 5.0, 3.0, 1.0, 1.75, 2.0, 0.0]).view(1, 1, 1, 7)
    found = function(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert function.left_slope.grad.item() == -2.0  # of x = −3 alone
    assert function.right_slope.grad.item() == 1.0
    # −1 is the first value, 0 half of it and half of the second; 2.5 a quarter of the second ...
    torch.testing.assert_close(function.values.grad, torch.tensor([[2.5, 1.75, 2.75]]))
    assert function.left.grad.abs().sum() > 0


def test_pwlu_is_relu_until_it_has_seen_enough():
    function = PWLU(2, 16).train()
    x = torch.randn(50, 2, 4, 4) * torch.tensor([1.0, 3.0])[:, None, None] + 0.5
    for part in x.split(20):
        torch.testing.assert_close(function(part), F.relu(part))
    saved = copy.deepcopy(function.state_dict())
    function.eval()(x + 100)  # is no training
    function.train()
    align([function])
    for channel in range(2):
        seen = x[:, channel]
        low, high = seen.mean() - 3 * seen.std(), seen.mean() + 3 * seen.std()
        torch.testing.assert_close(function.left[channel], low, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(function.right[channel], high, rtol=1e-3, atol=1e-3)
    # Now it is ReLU but for the interval of the kink, and learns.
    width = ((function.right - function.left) / 16).max().item()
    far = x.abs() > width
    torch.testing.assert_close(function(x)[far], F.relu(x)[far], rtol=1e-3, atol=1e-3)
    again = PWLU(2, 16)
    again.load_state_dict(function.state_dict())
    torch.testing.assert_close(again.eval()(x), function.eval()(x))
    again.load_state_dict(saved)
    torch.testing.assert_close(again(x), F.relu(x))


def test_pwlu_replaces_activations_of_maps():
    replaced = with_pwlu(network(), 8, (3, 16, 16))
    functions = [m for m in replaced.modules() if isinstance(m, PWLU)]
    assert [len(m.left) for m in functions] == [4, 4, 4, 8, 8, 16, 16]
    assert not [m for m in replaced.modules() if isinstance(m, nn.ReLU)]
    align(functions)
    x = torch.randn(2, 3, 16, 16)
    replaced(x).sum().backward()
    assert all(f.values.grad is not None for f in functions)
    assert part_macs(replaced, (3, 16, 16))[0] == part_macs(network(), (3, 16, 16))[0]
    named = with_pwlu(named_classifier("torchvision:mobilenet_v3_small", 3), 4, (3, 64, 64))
    # Squeeze and excitation and the last layers see single pixels.
    left = [n for n, m in named.named_modules() if isinstance(m, nn.ReLU | nn.Hardswish)]
    assert left
    assert all(n.startswith("classifier") or n.endswith(".activation") for n in left)
    with pytest.raises(ConfigError, match="no activation that PWLU"):
        with_pwlu(nn.Conv2d(3, 4, 1), 4, (3, 8, 8))
    with pytest.raises(ConfigError, match="at least 1 interval, not -2"):
        with_pwlu(network(), -2, (3, 8, 8))
