import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from divdr.errors import ConfigError
from divdr.routing import build_op, count_macs, op_names, register_op


@pytest.mark.parametrize("name", op_names())
def test_ops_keep_the_shape(name):
    x = torch.randn(2, 8, 9, 7)
    assert build_op(name, 8, torch.nn.BatchNorm2d).eval()(x).shape == x.shape


# fvcore counts no pooling, which squeeze_excite begins with.
CONVOLUTIONS = [n for n in op_names() if "pool" not in n and n != "squeeze_excite"]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_cost_what_fvcore_counts(name):
    op = build_op(name, 8, lambda channels: torch.nn.Identity())
    for module in op.modules():
        if isinstance(module, torch.nn.Sequential):
            for key, child in list(module.named_children()):
                if isinstance(child, torch.nn.ReLU):
                    module[int(key)] = torch.nn.Identity()
    counted = count_macs(op, (8, 9, 7))[0]
    analysis = FlopCountAnalysis(op.eval(), torch.randn(1, 8, 9, 7))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert counted == analysis.total()


def test_squeeze_and_excitation_by_hand():
    op = build_op("squeeze_excite", 8, lambda channels: torch.nn.Identity())
    # The mean reads 8 · 9 · 7 numbers; 8 to 1 channel, ReLU, 1 to 8.
    assert count_macs(op, (8, 9, 7))[0] == 8 * 63 + 8 + 1 + 8


def test_norm_relu_and_pooling_by_hand():
    layers = torch.nn.Sequential(
        torch.nn.BatchNorm2d(2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, 1, 1),
        torch.nn.AdaptiveAvgPool2d(1),
    )
    # 2·4·5 = 40 numbers: norm 80 (40 without affine), ReLU 40, 9 · 40 for the windows, pooling 40.
    assert count_macs(layers, (2, 4, 5)) == (520, (2, 1, 1))
    assert count_macs(layers, (2, 4, 5), affine_norm=False)[0] == 480


def test_unknown_layers_are_not_counted_silently():
    with pytest.raises(TypeError, match="GELU"):
        count_macs(torch.nn.GELU(), (2, 4, 5))


def test_names_are_checked():
    with pytest.raises(ConfigError, match="unknown operation 'conv_5x6'; nearest are conv_5x5"):
        build_op("conv_5x6", 8, torch.nn.BatchNorm2d)
    with pytest.raises(ConfigError, match="exists"):
        register_op("skip_connect")(lambda channels, norm: torch.nn.Identity())
