import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch.utils.data import get_worker_info

from divdr import get_divdr_config
from divdr.data import build_train_loader
from divdr.data.loader import SeededIndexBatches
from divdr.engine import check_config
from divdr.errors import ConfigError, DataError


@pytest.fixture
def dataset(request):
    name = f"numbers_{request.node.name}"
    dicts = [{"number": n, "width": 2 if n % 3 else 1, "height": 1} for n in range(11)]
    DatasetCatalog.register(name, lambda: dicts)
    yield name
    DatasetCatalog.remove(name)


def config(dataset, **dataloader):
    cfg = get_divdr_config()
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SEED = 3
    cfg.DATALOADER.NUM_WORKERS = 0
    for name, value in dataloader.items():
        cfg.DATALOADER[name] = value
    return cfg


def draw(item):
    """A mapper that draws from every generator that augmentations use."""
    numbers = float(np.random.rand()), float(torch.rand(())), random.random()  # noqa: NPY002
    return item["number"], *numbers


def batches(cfg, count, start=0):
    loader = build_train_loader(cfg, draw)
    loader.batch_sampler.start = start
    return list(itertools.islice(loader, count))


def test_stream_goes_on_where_it_stopped(dataset):
    cfg = config(dataset)
    whole = batches(cfg, 9)
    assert batches(cfg, 4, start=5) == whole[5:]


def test_workers_do_not_change_the_stream(dataset):
    alone = batches(config(dataset), 5)
    assert batches(config(dataset, NUM_WORKERS=2), 5) == alone
    where = build_train_loader(config(dataset, NUM_WORKERS=2), lambda item: get_worker_info().id)
    assert [set(batch) for batch in itertools.islice(where, 2)] == [{0}, {1}]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_start_is_read_with_the_first_batch(dataset, workers):
    # Detectron2 0.6 makes the iterator before a resumed run knows where it stands.
    whole = batches(config(dataset), 7)
    loader = build_train_loader(config(dataset, NUM_WORKERS=workers), draw)
    iterator = iter(loader)
    loader.batch_sampler.start = 4
    assert list(itertools.islice(iterator, 3)) == whole[4:]


def test_starting_to_load_draws_nothing_that_the_model_would(dataset):
    cfg = config(dataset)
    cfg.DATALOADER.NUM_WORKERS = 1
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    next(iter(build_train_loader(cfg, draw)))
    assert torch.rand(4).equal(wanted)


def test_two_processes_share_one_stream(dataset, monkeypatch):
    # What one process would see, images and draws, dealt out one by one.
    cfg = config(dataset, ASPECT_RATIO_GROUPING=False)
    alone = [item for batch in batches(cfg, 5) for item in batch]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        own = batches(cfg, 5)
        assert [len(batch) for batch in own] == [2] * 5
        assert [item for batch in own for item in batch] == alone[rank::2]


def test_draws_differ_between_passes_and_seeds(dataset):
    cfg = config(dataset)
    items = [item for batch in batches(cfg, 8) for item in batch]
    for generator in (1, 2, 3):
        assert len({item[generator] for item in items}) == len(items)
    other = config(dataset)
    other.SEED = 4
    assert batches(other, 2) != batches(cfg, 2)


def test_every_image_comes_once_a_pass(dataset):
    cfg = config(dataset, ASPECT_RATIO_GROUPING=False)
    numbers = [item[0] for batch in batches(cfg, 11) for item in batch]
    for first in range(0, 44, 11):
        assert sorted(numbers[first : first + 11]) == list(range(11))


def test_batches_hold_one_aspect_ratio(dataset):
    for batch in batches(config(dataset), 12):
        assert len({number % 3 == 0 for number, *_ in batch}) == 1


def test_grouped_batches_by_hand():
    # Groups of indices 0..5 are a, b, a, a, b, b; batches of two fill in the order of the stream.
    sampler = SeededIndexBatches(range(6), 2, groups=[0, 1, 0, 0, 1, 1])
    assert list(sampler) == [[(0, 0), (2, 2)], [(1, 1), (4, 4)]]


def numbers(loader, count):
    return [item[0] for batch in itertools.islice(loader, count) for item in batch]


def test_a_drawn_subset_is_the_same_in_every_run(dataset):
    cfg = config(dataset, SAMPLER_TRAIN="RandomSubsetTrainingSampler", RANDOM_SUBSET_RATIO=0.5)
    drawn = numbers(build_train_loader(cfg, draw), 10)
    assert len(set(drawn)) == 5
    torch.manual_seed(99)  # whatever was drawn before
    assert numbers(build_train_loader(cfg, draw), 10) == drawn
    cfg.SEED = 5
    assert set(numbers(build_train_loader(cfg, draw), 10)) != set(drawn)


def test_images_can_be_selected(dataset):
    loader = build_train_loader(config(dataset), draw, select=lambda d: d["number"] % 2 == 0)
    assert set(numbers(loader, 8)) == {0, 2, 4, 6, 8, 10}


def test_rare_classes_are_repeated(dataset):
    for item in DatasetCatalog.get(dataset):
        item["annotations"] = [{"category_id": int(item["number"] == 7)}]
    cfg = config(dataset, SAMPLER_TRAIN="RepeatFactorTrainingSampler", REPEAT_THRESHOLD=0.5)
    drawn = numbers(build_train_loader(cfg, draw), 100)
    # One image of eleven has the class: √(0.5 · 11) = 2.3 times as often as each other one.
    assert drawn.count(7) / (len(drawn) - drawn.count(7)) * 10 == pytest.approx(2.35, abs=0.25)


def test_settings_and_data_are_checked(dataset, monkeypatch):
    with pytest.raises(ConfigError, match="SAMPLER_TRAIN 'Nothing'"):
        build_train_loader(config(dataset, SAMPLER_TRAIN="Nothing"), draw)
    with pytest.raises(ConfigError, match="classes of boxes, label files or images, which"):
        build_train_loader(config(dataset, SAMPLER_TRAIN="RepeatFactorTrainingSampler"), draw)
    few = config(dataset, SAMPLER_TRAIN="RandomSubsetTrainingSampler", RANDOM_SUBSET_RATIO=0.05)
    with pytest.raises(ConfigError, match=r"RATIO 0\.05 leaves none of 11 images"):
        build_train_loader(few, draw)
    none = config(dataset)
    none.SOLVER.IMS_PER_BATCH = 0
    with pytest.raises(ConfigError, match="IMS_PER_BATCH must be at least 1"):
        build_train_loader(none, draw)
    cfg = config(dataset)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(DataError, match="names no data set"):
        build_train_loader(cfg, draw)
    cfg = config(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(comm, "get_world_size", lambda: 3)
        with pytest.raises(ConfigError, match="4 does not divide by the 3 processes"):
            build_train_loader(cfg, draw)
    cfg.INPUT.DATASET_MAPPER_NAME = "other"
    with pytest.raises(ConfigError, match="semantic_crop"):
        build_train_loader(cfg)


@pytest.fixture
def second(request):
    name = f"more_numbers_{request.node.name}"
    dicts = [{"number": 100 + n, "width": 2, "height": 1} for n in range(4)]
    DatasetCatalog.register(name, lambda: dicts)
    yield name
    DatasetCatalog.remove(name)


def weighted(dataset, second, factors, **dataloader):
    cfg = config(dataset, **{"SAMPLER_TRAIN": "WeightedTrainingSampler", **dataloader})
    cfg.DATASETS.TRAIN = (dataset, second)
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = factors
    return cfg


def test_data_sets_are_weighted(dataset, second):
    cfg = weighted(dataset, second, [(second, 3.0)])
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    # A pass is 11 images once and 4 thrice: 23 images, of which 12 are of the second.
    one_pass = [n for batch in batches(cfg, 23) for n, *_ in batch][:23]
    assert [one_pass.count(n) for n in (0, 5, 10, 100, 103)] == [1, 1, 1, 3, 3]
    cfg = weighted(dataset, second, [(dataset, 0), (second, 0.5)])
    drawn = numbers(build_train_loader(cfg, draw), 20)
    assert set(drawn) == {100, 101, 102, 103}


def test_rare_classes_are_repeated_within_their_data_set(dataset, second):
    for item in [*DatasetCatalog.get(dataset), *DatasetCatalog.get(second)]:
        item["annotations"] = [{"category_id": int(item["number"] in (7, 100))}]
    cfg = weighted(
        dataset,
        second,
        [(dataset, 2.0)],
        SAMPLER_TRAIN="WeightedCategoryTrainingSampler",
        REPEAT_THRESHOLD=1.0,
        REPEAT_SQRT=False,
        ASPECT_RATIO_GROUPING=False,
    )
    drawn = numbers(build_train_loader(cfg, draw), 600)
    # Class 1 is in 1 of 11 and in 1 of 4, class 0 in 10 of 11 and in 3 of 4: factors 11 and 4, 1.1
    # and 4/3, those of the first data set doubled, and all of them by the least, 4/3, divided.
    share = {7: 22, 0: 2.2, 100: 4, 101: 4 / 3}
    whole = 22 + 10 * 2.2 + 4 + 3 * 4 / 3
    for number, factor in share.items():
        assert drawn.count(number) / len(drawn) == pytest.approx(factor / whole, rel=0.12)


@pytest.mark.parametrize("sampler", ["WeightedTrainingSampler", "WeightedCategoryTrainingSampler"])
def test_weighted_streams_go_on_where_they_stopped(dataset, second, sampler, monkeypatch):
    for item in [*DatasetCatalog.get(dataset), *DatasetCatalog.get(second)]:
        item["annotations"] = [{"category_id": int(item["number"] == 7)}]
    cfg = weighted(dataset, second, [(second, 1.7)], SAMPLER_TRAIN=sampler, REPEAT_THRESHOLD=0.5)
    whole = batches(cfg, 9)
    assert batches(cfg, 4, start=5) == whole[5:]
    cfg.DATALOADER.NUM_WORKERS = 2
    assert batches(cfg, 4, start=5) == whole[5:]
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.ASPECT_RATIO_GROUPING = 0, False
    alone = [item for batch in batches(cfg, 5) for item in batch]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert [item for batch in batches(cfg, 5) for item in batch] == alone[1::2]


def test_weights_are_checked(dataset, second):
    with pytest.raises(ConfigError, match="FACTOR names 'others', which DATASETS"):
        build_train_loader(weighted(dataset, second, [("others", 2.0)]), draw)
    with pytest.raises(ConfigError, match="it is 0 for every data set of TRAIN"):
        build_train_loader(weighted(dataset, second, [(dataset, 0), (second, 0)]), draw)
    for wrong in ([(dataset,)], [(dataset, "2")], [(dataset, -1)], [dataset]):
        with pytest.raises(ConfigError, match="TRAIN_REPEAT_FACTOR must hold pairs of a data set"):
            check_config(weighted(dataset, second, wrong))
