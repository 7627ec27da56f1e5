"""Class partitions: Algorithm 2 by hand, balance, and files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from divdr.config import get_divdr_config
from divdr.errors import ConfigError, DataError
from divdr.modeling.classifiers import choose_partition
from divdr.moe import (
    NamedInput,
    class_means,
    cluster_partition,
    given_partition,
    greedy_partition,
    load_partition,
    random_partition,
    save_partition,
)


def test_rounds_of_algorithm_2_by_hand():
    # Round 1: centre 0 takes class 1 (0.1), centre 1 the nearest that is free, class 2 (0.3).
    # Round 2: centre 0 takes class 0 (0.2), centre 1 class 3 (0.9); round 3: class 4 for centre 0.
    distances = torch.tensor([[0.2, 0.5], [0.1, 0.2], [0.4, 0.3], [0.5, 0.9], [0.6, 1.5]])
    assert greedy_partition(distances).tolist() == [0, 0, 1, 1, 0]


def test_clusters_of_equal_size_are_found():
    # Three heaps of two classes each, far apart.
    means = torch.tensor([[0.0, 0], [9, 9], [0, 9.1], [9.1, 9], [0, 9], [0.1, 0]])
    found = cluster_partition(means, 3)
    assert found[0] == found[5]
    assert found[1] == found[3]
    assert found[2] == found[4]
    assert sorted(found.bincount().tolist()) == [2, 2, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 100))
def test_partitions_are_balanced(classes, branches, seed):
    if branches > classes:
        with pytest.raises(ConfigError, match=f"{branches} branches cannot share {classes}"):
            random_partition(classes, branches, seed=seed)
        return
    generator = torch.Generator().manual_seed(seed)
    for found in (
        random_partition(classes, branches, seed=seed),
        cluster_partition(torch.rand(classes, 4, generator=generator), branches, seed=seed),
    ):
        sizes = found.bincount(minlength=branches)
        assert len(sizes) == branches
        assert sizes.max() - sizes.min() <= 1


def test_chance_depends_on_the_seed():
    assert random_partition(20, 5, seed=1).equal(random_partition(20, 5, seed=1))
    assert not random_partition(20, 5, seed=1).equal(random_partition(20, 5, seed=2))


def test_given_labels_that_cannot_be():
    assert given_partition([1, 0, 1], 2).tolist() == [1, 0, 1]
    with pytest.raises(ConfigError, match="names branch 2; there are 2"):
        given_partition([0, 1, 2], 2)
    with pytest.raises(ConfigError, match="gives branch 1 no class"):
        given_partition([0, 2, 0], 3)


def test_a_file_is_read_by_class_names_and_refused_for_other_classes(tmp_path):
    path = tmp_path / "partition.json"
    save_partition(path, "letters_train", ["a", "b", "c"], torch.tensor([1, 0, 1]))
    assert load_partition(path, ["c", "b", "a"], 2).tolist() == [1, 0, 1]
    assert load_partition(path, ["b", "a", "c"], 2).tolist() == [0, 1, 1]
    with pytest.raises(DataError, match=r"of data set 'letters_train' with 3 classes.*'d' is in"):
        load_partition(path, ["a", "b", "c", "d"], 2)
    with pytest.raises(ConfigError, match="gives branch 2 no class"):
        load_partition(path, ["a", "b", "c"], 3)
    path.write_text("{")
    with pytest.raises(DataError, match=r"partition\.json cannot be read"):
        load_partition(path, ["a"], 1)
    with pytest.raises(DataError, match="cannot be read"):
        load_partition(tmp_path / "none.json", ["a"], 1)


def test_embedders_of_a_library_look_at_each_image_for_itself(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 9)
    )
    asked = []

    def named(name, num_classes, **keys):
        asked.append((name, num_classes, keys))
        return network.train()

    given = NamedInput((4, 4), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    module = "divdr.modeling.classifiers.image_classifier."
    monkeypatch.setattr(module + "named_classifier", named)
    monkeypatch.setattr(module + "named_input", lambda name: given)
    cfg = get_divdr_config()
    cfg.MODEL.DEVICE, cfg.INPUT.CLASSIFICATION.SIZE = "cpu", 4
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0], [50.0]
    hydra = cfg.MODEL.CLASSIFIER.HYDRA
    hydra.BRANCHES, hydra.PARTITION, hydra.EMBEDDER = 3, "cluster", "timm:network"
    x, labels = torch.randn(60, 1, 4, 4), torch.arange(60) % 6
    order = labels.argsort()  # batches of one class each: their own statistics would hide it
    batches = [(x[rows], labels[rows]) for rows in order.split(10)]
    before = {k: v.clone() for k, v in network.state_dict().items()}
    seen = []

    def means(embed, *args):
        seen.append(class_means(embed, *args))
        return seen[0]

    monkeypatch.setattr("divdr.modeling.classifiers.image_classifier.class_means", means)
    found = choose_partition(cfg, list("abcdef"), None, lambda: batches)
    assert asked == [("timm:network", None, {"pretrained": True, "image_size": 4})]
    assert all(v.equal(before[k]) for k, v in network.state_dict().items())
    with torch.no_grad():
        grey = (50 * x + 100) / 255  # as the library's weights know it
        mean, deviation = (torch.tensor(v)[:, None, None] for v in (given.mean, given.std))
        embedded = network.eval()[:4]((grey.expand(-1, 3, -1, -1) - mean) / deviation)
    expected = torch.stack([embedded[labels == c].double().mean(0) for c in range(6)])
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-6)
    assert found.equal(cluster_partition(expected, 3))
    assert found.bincount().tolist() == [2, 2, 2]
