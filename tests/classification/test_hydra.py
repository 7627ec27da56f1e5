"""HydraRes and DynK-Hydra against Algorithm 1 image by image, and which loss reaches what."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from divdr.errors import ConfigError, DataError
from divdr.moe import (
    Cost,
    DenseNetParts,
    Hydra,
    HydraSettings,
    PooledGate,
    Prediction,
    ResNetParts,
    above,
    at_thresholds,
    between,
    loss_between,
    num_parameters,
    threshold_curve,
)

CLASSES, BRANCHES = 6, 3
PARTITION = torch.tensor([0, 0, 1, 1, 2, 2])


def make(**settings):
    parts = ResNetParts(channels=4)
    stem = parts.stem()
    trunk = parts.gater_trunk(stem.out_channels)
    branches = [parts.branch(stem.out_channels) for _ in range(BRANCHES)]
    network = Hydra(
        stem,
        branches,
        PooledGate(trunk, trunk.out_channels, BRANCHES),
        branches[0].out_channels,
        CLASSES,
        HydraSettings(**{"top_k": 2, "train_threshold": 0.0, **settings}),
    )
    network.set_partition(PARTITION)
    return network


def images(count=7, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def spread(network, factor=40.0):
    """Gater's answers that differ from image to image."""
    with torch.no_grad():
        network.gater.predict.weight.mul_(factor)
    return network


@torch.no_grad()
def middle(network, x):
    """A threshold that the second branch reaches for half of the images."""
    return network.gater(network.stem(x)).softmax(1).topk(2).values[:, 1].median().item() + 1e-6


def halves(x, labels):
    half = len(x) // 2
    return [(x[:half], labels[:half]), (x[half:], labels[half:])]


def force(network, *branches):
    """The gater always ranks these first."""
    with torch.no_grad():
        network.gater.predict.weight.zero_()
        network.gater.predict.bias.fill_(0.0)
        for place, branch in enumerate(branches):
            network.gater.predict.bias[branch] = 10.0 - place


def touched(network):
    """Names of the children, and of single branches and heads, that a gradient has reached."""
    names = set()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().sum() > 0:
            parts = name.split(".")
            numbered = parts[0] in ("branches", "branch_heads")
            names.add(".".join(parts[:2]) if numbered else parts[0])
    return names


def algorithm_1(network, image):
    """The paper's Algorithm 1, for one image."""
    maps = network.stem(image[None])
    weights = network.gater(maps).softmax(1)[0]
    best = sorted(range(BRANCHES), key=lambda i: -weights[i].item())[: network.settings.top_k]
    chosen = [i for i in best if weights[i] >= network.threshold] or best[:1]
    total = sum(network.branches[i](maps) for i in chosen)
    return network.classify(network.combiner(total).mean((2, 3)))[0], sorted(chosen)


@pytest.mark.parametrize("threshold", [0.0, None, 1.0])
@torch.no_grad()
def test_a_batch_gives_what_algorithm_1_gives_for_every_image(threshold):
    network = spread(make()).eval()
    x = images()
    network.threshold = middle(network, x) if threshold is None else threshold
    logits, ran = network(x)
    for index, image in enumerate(x):
        expected, chosen = algorithm_1(network, image)
        assert ran[index].nonzero()[:, 0].tolist() == chosen
        torch.testing.assert_close(logits[index], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_branch_that_nobody_chose_does_not_run():
    network = make(top_k=1).eval()
    force(network, 2)
    seen = []
    for number, branch in enumerate(network.branches):
        branch.register_forward_hook(lambda m, args, out, n=number: seen.append((n, len(args[0]))))
    network(images(5))
    assert seen == [(2, 5)]
    assert network(images(0)).logits.shape == (0, CLASSES)


def test_selection_by_hand():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [0.05, 0.9, 0.05]])
    assert above(probabilities, 2, 0.0).chosen.long().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 0]]
    assert above(probabilities, 3, 0.2).chosen.long().tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 0]]
    # Nothing reaches 0.95; the most probable one runs all the same.
    assert above(probabilities, 2, 0.95).chosen.long().tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_the_ensemble_s_loss_reaches_stem_and_chosen_branches_but_not_the_gater():
    network = make().train()
    force(network, 0, 2)
    labels = torch.tensor([2, 3, 2, 3, 2, 3, 2])  # all of branch 1
    network.losses(images(), labels)["loss_ensemble"].backward()
    assert touched(network) == {"stem", "branches.0", "branches.2", "combiner", "classify"}
    assert all(p.grad is None for p in network.gater.parameters())


def test_the_gater_s_loss_reaches_gater_and_stem_alone():
    network = make().train()
    network.losses(images(), torch.arange(7) % CLASSES)["loss_gater"].backward()
    assert touched(network) == {"stem", "gater"}


def test_a_branch_s_loss_reaches_it_without_being_chosen():
    network = make().train()
    force(network, 0, 2)
    labels = torch.tensor([2, 3, 2, 3, 2, 3, 2])
    network.losses(images(), labels)["loss_branch"].backward()
    assert touched(network) == {"stem", "branches.1", "branch_heads.1"}


def test_branches_that_no_loss_needs_are_left_alone_by_the_optimizer():
    network = make(branch_weight=0.0).train()
    force(network, 0, 2)
    assert len(network.branch_heads) == 0
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    before = {k: v.clone() for k, v in network.branches[1].state_dict().items()}
    losses = network.losses(images(), torch.tensor([2, 3, 2, 3, 2, 3, 2]))
    assert set(losses) == {"loss_ensemble", "loss_gater"}
    sum(losses.values()).backward()
    optimizer.step()
    assert all(v.equal(before[k]) for k, v in network.branches[1].state_dict().items())


@pytest.mark.parametrize("parts", [ResNetParts(channels=4), DenseNetParts(growth=2)])
def test_a_branch_with_one_image_whose_map_is_one_pixel_trains(parts):
    stem = parts.stem()
    trunk = parts.gater_trunk(stem.out_channels)
    branches = [parts.branch(stem.out_channels) for _ in range(BRANCHES)]
    width = branches[0].out_channels
    settings = HydraSettings(top_k=1, train_threshold=0.0)
    network = Hydra(
        stem, branches, PooledGate(trunk, trunk.out_channels, BRANCHES), width, CLASSES, settings
    ).train()
    network.set_partition(PARTITION)
    force(network, 0)
    x = images(3)[..., :4, :4]
    before = {k: v.clone() for k, v in network.branches[2].state_dict().items()}
    losses = network.losses(x, torch.tensor([0, 1, 4]))  # branch 2 gets the last image alone
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert touched(network) >= {"branches.0", "branches.2", "branch_heads.2"}
    state = network.branches[2].state_dict()
    assert all(v.equal(state[k]) for k, v in before.items())  # a variance does not exist there
    # The combiner too, in a batch of one.
    one = network.losses(x[:1], torch.tensor([0]))
    assert all(value.isfinite() for value in one.values())


def test_values_of_the_losses():
    network = make(ensemble_weight=2.0, gater_weight=3.0, branch_weight=0.5, top_k=3).train()
    for layer in network.modules():  # so that no value depends on the rest of the batch
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    x, labels = images(5), torch.tensor([0, 1, 2, 2, 3])  # no image for branch 2
    losses = network.losses(x, labels)
    with torch.no_grad():
        maps = network.stem(x)
        total = sum(branch(maps) for branch in network.branches)
        logits = network.classify(network.combiner(total).mean((2, 3)))
        torch.testing.assert_close(losses["loss_ensemble"], 2 * F.cross_entropy(logits, labels))
        coarse = torch.tensor([0, 0, 1, 1, 1])
        expected = 3 * F.cross_entropy(network.gater(maps), coarse)
        torch.testing.assert_close(losses["loss_gater"], expected)
        expected = 0.0
        for branch, rows in ((0, [0, 1]), (1, [2, 3, 4])):
            pooled = network.branches[branch](maps[rows]).mean((2, 3))
            expected += F.cross_entropy(network.branch_heads[branch](pooled), labels[rows])
        torch.testing.assert_close(losses["loss_branch"], 0.5 * expected)


def test_the_threshold_of_training_is_its_own():
    network = make(threshold=1.0, train_threshold=0.0, top_k=3)
    assert network.train()(images()).ran.sum() == 21
    assert network.eval()(images()).ran.sum() == 7


def test_cost_is_what_the_parts_cost():
    # 16 × 16 pixels, 4, 8 and 16 channels, one block a stage; multiply-adds by hand.
    stem = 16 * 16 * 9 * (3 * 4 + 4 * 4 + 4 * 4) + 8 * 8 * 9 * (4 * 8 + 8 * 8)
    stage = 4 * 4 * 9 * (8 * 16 + 16 * 16)
    combined = 4 * 4 * 16 * 16 + 16 * CLASSES
    cost = make().cost(16, 16)
    assert cost.experts == (stage,) * 3
    assert cost.shared == stem + stage + 16 * BRANCHES + combined
    ran = torch.tensor([[True, False, True], [False, True, False]])
    assert cost.of(ran).tolist() == [cost.shared + 2 * stage, cost.shared + stage]


def test_curve_over_thresholds():
    network = spread(make(threshold=0.3)).train()
    x, labels = images(20), torch.arange(20) % CLASSES
    tau = middle(network.eval(), x)
    network.train()
    points = threshold_curve(network, lambda: halves(x, labels), [0.0, tau, 1.0])
    assert [p.threshold for p in points] == [0.0, tau, 1.0]
    assert [points[0].mean_branches, points[2].mean_branches] == [2.0, 1.0]
    assert 1.0 < points[1].mean_branches < 2.0
    cost = network.cost(16, 16)
    for point in points:
        expected = cost.shared + point.mean_branches * cost.experts[0]
        assert point.macs == pytest.approx(expected)
    assert network.threshold == 0.3
    assert network.training
    network.threshold = tau
    with torch.no_grad():
        right = network.eval()(x).logits.argmax(1) == labels
    assert points[1].accuracy == pytest.approx(100 * right.double().mean().item())
    # The image's network is all but the branches that did not run and the extra heads.
    branch = num_parameters(network.branches[0])
    fixed = num_parameters(network) - 3 * branch - num_parameters(network.branch_heads)
    for point in points:
        assert point.loaded == pytest.approx(fixed + point.mean_branches * branch)
    with pytest.raises(ConfigError, match=r"τ must be between 0 and 1, not 1\.5"):
        threshold_curve(network, list, [1.5])
    with pytest.raises(DataError, match="no images"):
        threshold_curve(network, list, [0.5])


@torch.no_grad()
def test_one_pass_gives_what_every_threshold_gives_alone():
    network = spread(make(top_k=3)).eval()
    x = images(20)
    taus = [0.0, middle(network, x), 1.0]
    seen = []
    for branch in network.branches:
        branch.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    together = at_thresholds(network, x, taus)
    assert seen == [20, 20, 20]  # τ 0 needs everything: each branch once
    for tau, found in zip(taus, together, strict=True):
        network.threshold = tau
        alone = network(x)
        assert found.ran.equal(alone.ran)
        torch.testing.assert_close(found.logits, alone.logits, rtol=1e-4, atol=1e-5)


class Plain:
    """Any system with a threshold: it answers 1 above τ, and an expert runs for the others."""

    training = False
    threshold = 0.4

    def check_threshold(self, threshold):
        assert threshold <= 1

    def eval(self):
        return self

    def train(self, mode=True):
        return self

    def cost(self, height, width):
        return Cost(height * width, (1.0,))

    def __call__(self, x):
        sure = x.flatten(1).mean(1) > self.threshold
        return Prediction(torch.stack([0.5 * torch.ones(len(x)), sure.float()], 1), ~sure[:, None])


def test_a_curve_of_any_system_reads_the_images_once():
    x = torch.tensor([0.1, 0.3, 0.5, 0.9]).reshape(4, 1, 1, 1).expand(4, 1, 2, 3)
    reads = []

    def batches():
        reads.append(1)
        return [(x, torch.ones(4, dtype=torch.int64))]

    system = Plain()
    points = threshold_curve(system, batches, [0.0, 0.4, 1.0])
    assert reads == [1]
    assert [p.mean_branches for p in points] == [0.0, 0.5, 1.0]
    assert [p.accuracy for p in points] == [100.0, 50.0, 0.0]
    assert [p.macs for p in points] == [6.0, 6.5, 7.0]
    assert [p.loaded for p in points] == [None] * 3
    assert system.threshold == 0.4


@torch.no_grad()
def test_line_between_two_branches():
    network = make().eval()
    x, labels = images(12), torch.arange(12) % CLASSES
    points = loss_between(network, 0, 2, lambda: [(x, labels)], steps=3)
    assert [p.share for p in points] == [0.0, 0.5, 1.0]
    theirs = (PARTITION[labels] == 0) | (PARTITION[labels] == 2)
    for point, branch in ((points[0], 0), (points[2], 2)):
        force(network, branch)
        network.settings = HydraSettings(top_k=1)
        logits = network(x[theirs]).logits
        assert point.loss == pytest.approx(F.cross_entropy(logits, labels[theirs]).item(), rel=1e-4)
    half = between(network.branches[0], network.branches[2], 0.5).state_dict()
    one, other = network.branches[0].state_dict(), network.branches[2].state_dict()
    for name, value in half.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (one[name] + other[name]) / 2)
    with pytest.raises(ConfigError, match="two of the branches 0 to 2"):
        loss_between(network, 0, 3, list)
    with pytest.raises(DataError, match="no image belongs"):
        loss_between(network, 0, 2, lambda: [(x[2:4], labels[2:4])])


def test_settings_and_data_that_cannot_be():
    with pytest.raises(ConfigError, match="TOP_K must be between 1 and the 3 branches, not 4"):
        make(top_k=4)
    with pytest.raises(ConfigError, match=r"between 0 and 1, not -0\.1"):
        make(threshold=-0.1)
    network = make()
    with pytest.raises(DataError, match="label 6 is no class; there are 6"):
        network.losses(images(1), torch.tensor([6]))
    with pytest.raises(ConfigError, match="of 3 classes; the model has 6"):
        network.set_partition(torch.tensor([0, 1, 2]))
    network.partition.fill_(-1)
    with pytest.raises(ConfigError, match="no class partition yet"):
        network.losses(images(1), torch.tensor([0]))
