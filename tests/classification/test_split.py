"""Networks cut in two: the halves are the whole, and wrong places are named."""

import pytest
import torch
from torch import nn
from torchvision import models

from divdr.errors import ConfigError
from divdr.moe import named_classifier, num_parameters, part_macs, split_at, with_embedding


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("torchvision:resnet18", "layer2"),
        ("torchvision:mobilenet_v3_small", "features.7"),
        ("torchvision:densenet121", "features.denseblock1"),
        ("timm:tinynet_e", "blocks.2"),
    ],
)
def test_halves_are_the_whole_and_share_its_weights(name, node):
    whole = named_classifier(name, 7).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    first, second = split_at(whole, node)
    both, width = with_embedding(second)
    z, logits = both(first(x))
    torch.testing.assert_close(logits, whole(x))
    torch.testing.assert_close(second(first(x)), whole(x))
    last = [m for m in whole.modules() if isinstance(m, nn.Linear)][-1]
    assert z.shape == (2, width)
    torch.testing.assert_close(last(z), logits)
    names = [set(dict(part.named_parameters())) for part in (first, second)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == set(dict(whole.named_parameters()))
    own = dict(whole.named_parameters())
    assert all(p is own[n] for part in (first, second) for n, p in part.named_parameters())


class TwoPaths(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        early = self.first(x)
        return self.second(early) + early.relu()


class Fickle(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(nn.functional.dropout(x, 0.5, self.training))


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        return self.last(x) if x.sum() > 0 else self.last(-x)


@pytest.mark.parametrize(
    ("network", "node", "message"),
    [
        (models.resnet18, "layre2", "has no module 'layre2' to split at; near are layer2"),
        (models.resnet18, "layer2.0.conv1", "what follows also needs"),
        (TwoPaths, "unused", "its forward never calls it"),
        (TwoPaths, "second", "what follows also needs"),
        (Fickle, "first", "trains otherwise than by its modules"),
        (ByValue, "last", "cannot be traced"),
    ],
)
def test_where_it_cannot_be_cut(network, node, message):
    with pytest.raises(ConfigError, match=message):
        split_at(network(), node)


def test_a_network_without_a_linear_layer_embeds_nothing():
    with pytest.raises(ConfigError, match="has no linear layer"):
        with_embedding(nn.Sequential(nn.Conv2d(3, 3, 1)))


@pytest.mark.parametrize(("base", "expert", "together"), [("18", "18", 0.82), ("18", "10", 0.67)])
def test_multiply_adds_are_those_that_the_paper_prints(base, expert, together):
    # Table 1: an expert of a tiny ResNet is its third and fourth layer and the classifier.
    whole = named_classifier(f"torchvision:tiny_resnet{base}", 100)
    first, rest = split_at(whole, "layer2")
    macs, shape = part_macs(first, (3, 32, 32))
    whole_macs = macs + part_macs(rest, shape)[0]
    assert whole_macs / 1e9 == pytest.approx(0.556, abs=0.001)
    if expert == "18":
        own = rest
        assert 20 * num_parameters(own) == pytest.approx(21.1e7, rel=0.01)
    else:
        # torchvision has no ResNet-10: one block a layer.
        from torchvision.models.resnet import BasicBlock, ResNet

        shallow = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=100)
        own = split_at(shallow, "layer2")[1]
    assert (whole_macs + part_macs(own, shape)[0]) / 1e9 == pytest.approx(together, abs=0.006)
