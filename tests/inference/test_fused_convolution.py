import pytest
import torch
import torch.nn.functional as F
from planned import agrees, pictures, routed_network

from divdr.inference import convolution, fused_ops
from divdr.inference.convolution import Convolution

PRECISIONS = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["fused", "public"])
def path(request, monkeypatch):
    if request.param == "public":
        monkeypatch.setattr(convolution, "fusing_available", lambda tensor: False)
    elif not convolution.fusing_available(torch.zeros(1)):
        pytest.skip("this build of PyTorch has no oneDNN convolution")
    return request.param


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("shape", [(1, 8, 6, 5), (3, 8, 1, 1), (2, 8, 1, 7), (1, 8, 33, 20)])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1}, {"groups": 8}])
def test_convolution_equals_the_plain_one(path, dtype, shape, options):
    conv = torch.nn.Conv2d(8, 8, 3 if "padding" in options else 1, **options)
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted = F.conv2d(
            x.float(),
            conv.weight.to(dtype).float(),
            conv.bias.to(dtype).float(),
            stride=conv.stride,
            padding=conv.padding,
            groups=conv.groups,
        )
        bound = 1e-5 if dtype == torch.float32 else 3e-2
        for relu in (False, True):
            y = Convolution(conv, None, relu, dtype)(x).float()
            assert torch.allclose(y, wanted.relu() if relu else wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("shape", [(1, 6, 5), (3, 1, 1), (2, 1, 7), (4, 33, 20)])
def test_sum_and_relu_onto_a_map(path, dtype, channels, shape):
    conv = torch.nn.Conv2d(channels, channels, 1)
    x, total = torch.randn(2, shape[0], channels, *shape[1:]).to(dtype)
    x, total = (t.contiguous(memory_format=torch.channels_last) for t in (x, total))
    with torch.no_grad():
        weight, bias = conv.weight.to(dtype).float(), conv.bias.to(dtype).float()
        wanted = (F.conv2d(x.float(), weight, bias) + total.float()).relu()
        y = Convolution(conv, None, False, dtype).onto(total, x)
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(y.float(), wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}, {"groups": 2}])
def test_what_the_fused_sum_does_not_know_is_summed_apart(path, options):
    conv = torch.nn.Conv2d(4, 4, 1, **options)
    x = torch.randn(1, 4, 5, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    half = conv.bfloat16()
    with torch.no_grad():
        total = torch.randn_like(half(x)).contiguous(memory_format=torch.channels_last)
        wanted = (half(x).float() + total.float()).relu()
        y = Convolution(conv, None, False, torch.bfloat16).onto(total.clone(), x)
    assert torch.allclose(y.float(), wanted, rtol=3e-2, atol=3e-2)


def test_the_public_path_alone_gives_the_same_network(path):
    agrees(routed_network().float(), pictures(3).float(), 1e-4)


def test_a_missing_or_wrong_operation_is_noticed(monkeypatch):
    def missing(*args):
        raise AttributeError("no such operation")

    for broken in (missing, lambda x, *args: x):
        for name in ("fused", "packed_weight"):
            for known in (fused_ops._works, fused_ops._packs):
                known.cache_clear()
            with monkeypatch.context() as patch:
                patch.setattr(fused_ops, name, broken)
                if name == "fused":
                    assert not fused_ops.fusing_available(torch.zeros(1))
                # Plain weights, which the second leaves as they are, always serve.
                assert fused_ops.packing_available(torch.zeros(1)) == (
                    name == "packed_weight" and broken is not missing
                )
    for known in (fused_ops._works, fused_ops._packs):
        known.cache_clear()
    assert not fused_ops.fusing_available(torch.zeros(1, dtype=torch.float64))
