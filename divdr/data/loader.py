"""A training loader whose stream of batches depends on the seed and the position alone.

Detectron2's own loader starts its stream anew after a resumed run, and its augmentations depend on
what the worker has drawn before. Here a batch is a function of (seed, iteration), so that a
resumed run sees exactly what an uninterrupted one would have seen, with any number of workers.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..config import SEVERAL_TASKS, task_config
from ..errors import ConfigError
from ..image_keys import IMAGE_KEY
from ..settings import LoaderSettings
from .catalog import training_dicts
from .checked_mapper import CheckedMapper, DetectionMapper, PanopticTargetMapper
from .class_frequencies import repeat_factors, shown_classes
from .classification.class_sets import ClassificationMapper
from .classification.stacked_images import StackedBatches, StackedLoader, as_they_come
from .mapper import SemanticCropMapper

SeededIndex = tuple[int, int]
"""(position in the stream over all processes, index into the data set)."""


class SeededIndexBatches:
    """Endless batches of indices from an endless stream, with their positions in it.

    Args:
        indices: this process's stream; iterating anew starts it anew.
        batch_size: indices a batch.
        groups: a number for every index of the data set; batches hold one group only (portrait
            and landscape images, say). None: batches are taken as they come.

    Attributes:
        start: batches that iteration leaves out, those of a run to be continued.
    """

    def __init__(
        self, indices: Iterable[int], batch_size: int, groups: list[int] | None = None
    ) -> None:
        self.start = 0
        self._indices = indices
        self._batch_size = batch_size
        self._groups = groups

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        # A generator, so that ``start`` is read at the first batch and not before.
        yield from itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[SeededIndex]]:
        rank, world = comm.get_rank(), comm.get_world_size()
        waiting: dict[int, list[SeededIndex]] = {}
        for position, index in enumerate(self._indices):
            group = self._groups[index] if self._groups is not None else 0
            batch = waiting.setdefault(group, [])
            batch.append((position * world + rank, index))
            if len(batch) == self._batch_size:
                waiting[group] = []
                yield batch


class TrainLoader(DataLoader):
    """A loader that begins its work with the first batch asked for.

    PyTorch's begins with ``iter``, where workers fetch their first batches at once; and the trainer
    of Detectron2 0.6 calls that in its constructor, before a run that is resumed has set where
    its ``batch_sampler`` starts.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


class StackedTrainLoader(TrainLoader, StackedLoader):
    """Likewise, of images in memory."""


class SeededDataset(Dataset):
    """Items drawn with randomness that the seed and the position in the stream alone decide.

    Attributes:
        keys: of the images (``divdr.image_keys``); None: not known.
    """

    def __init__(self, dataset: Dataset, seed: int, keys: list[str] | None = None) -> None:
        self._dataset = dataset
        self._seed = seed
        self.keys = keys

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, seeded_index: SeededIndex) -> Any:
        position, index = seeded_index
        _seed_cpu(self._seed, position)
        return self._dataset[index]


def seed_everything(*numbers: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators from non-negative numbers."""
    seed = _seed_cpu(*numbers)
    # On a machine without any it takes longer than a step of a small network: it notes its caller
    # for the day that a GPU is initialised.
    if _has_accelerator():
        torch.manual_seed(seed)


@cache
def _has_accelerator() -> bool:
    return any(d.is_available() for d in (torch.cuda, torch.xpu, torch.backends.mps))


def _seed_cpu(*numbers: int) -> int:
    """Those of the CPU alone; returns PyTorch's seed."""
    state = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002  Detectron2 draws from this one
    torch.default_generator.manual_seed(int(state[2]))
    return int(state[2])


class TaskMapper:
    """Gives each image to the mapper of its task.

    Args:
        cfg: of several tasks.

    Raises:
        ConfigError: the tasks' settings do not suit each other.
    """

    def __init__(self, cfg: CfgNode) -> None:
        tasks = range(len(cfg.MODEL.MULTI_TASK.ARCHITECTURES))
        self._mappers = [build_mapper(task_config(cfg, task)) for task in tasks]

    def __call__(self, dataset_dict: dict) -> Any:
        """What the task's mapper makes of the dict, and the number of its "task"."""
        item = self._mappers[dataset_dict["task"]](dataset_dict)
        item["task"] = dataset_dict["task"]
        return item


def build_mapper(cfg: CfgNode) -> Callable[[dict], Any]:
    """The training mapper that ``cfg.INPUT.DATASET_MAPPER_NAME`` names.

    Raises:
        ConfigError: the name is unknown.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if cfg.MODEL.META_ARCHITECTURE == SEVERAL_TASKS:
        return TaskMapper(cfg)
    if name == "semantic_crop":
        return SemanticCropMapper(cfg)
    if name == "classification":
        return ClassificationMapper(cfg, is_train=True)
    if name == "panoptic_deeplab":
        return _panoptic_deeplab_mapper(cfg)
    if name:
        raise ConfigError(
            f'INPUT.DATASET_MAPPER_NAME {name!r} is unknown; known are "semantic_crop", '
            '"classification", "panoptic_deeplab" and ""'
        )
    return DetectionMapper(cfg, is_train=True)


def _panoptic_deeplab_mapper(cfg: CfgNode) -> Callable[[dict], Any]:
    try:
        from detectron2.projects.panoptic_deeplab import PanopticDeeplabDatasetMapper
    except ImportError as error:
        raise ConfigError(
            'INPUT.DATASET_MAPPER_NAME "panoptic_deeplab" needs the project of that name beside '
            f"Detectron2, and panopticapi ({error})"
        ) from None
    theirs = PanopticDeeplabDatasetMapper(cfg)
    return PanopticTargetMapper(
        theirs.augmentations, theirs.image_format, theirs.panoptic_target_generator
    )


def build_train_loader(
    cfg: CfgNode,
    mapper: Callable[[dict], Any] | None = None,
    *,
    seed: int | None = None,
    select: Callable[[dict], bool] | None = None,
) -> DataLoader:
    """An endless loader over ``cfg.DATASETS.TRAIN``; its ``batch_sampler.start`` skips batches,
    if it is set before the first one is asked for.

    Args:
        cfg: the whole configuration.
        mapper: from dataset dict to model input; None: by ``build_mapper``.
        seed: of order and augmentations; None: ``cfg.SEED``, or a shared random one below 0.
        select: which dataset dicts to keep; None: all.

    Raises:
        ConfigError: the batch is empty or does not divide among the processes, or a sampler that
            is unknown or does not suit the data.
        DataError: the data sets hold no images, or something that cannot be right; from the
            loader, once it reads an image, likewise.
    """
    world = comm.get_world_size()
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch < 1:  # it would never be full
        raise ConfigError(f"SOLVER.IMS_PER_BATCH must be at least 1, not {batch}")
    if batch % world:
        raise ConfigError(f"SOLVER.IMS_PER_BATCH {batch} does not divide by the {world} processes")
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    # What somebody's own mapper makes of annotations is not known here.
    detectrons = mapper is None and not cfg.INPUT.DATASET_MAPPER_NAME
    dicts = training_dicts(cfg, annotations=detectrons)
    if select is not None:
        dicts = [d for d in dicts if select(d)]
    groups = _groups(cfg, dicts)
    keys = [d[IMAGE_KEY] for d in dicts] if all(IMAGE_KEY in d for d in dicts) else None
    mapper = mapper or build_mapper(cfg)
    stacked = mapper.stacked(dicts) if isinstance(mapper, ClassificationMapper) else None
    dataset: Dataset
    if stacked is not None and isinstance(mapper, ClassificationMapper):
        dataset = StackedBatches(stacked, mapper.augmentation, seed, keys)
    else:
        listed = MapDataset(DatasetFromList(dicts, copy=False), CheckedMapper(mapper))
        dataset = SeededDataset(listed, seed, keys)
    kind = TrainLoader if stacked is None else StackedTrainLoader
    return kind(
        dataset,
        batch_sampler=SeededIndexBatches(_index_stream(cfg, dicts, seed), batch // world, groups),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=as_they_come,
        # As it starts, a loader draws a number: not from the generator that the model draws from,
        # where a resumed run would go on from another place than one that began earlier.
        generator=torch.Generator().manual_seed(seed % 2**63),
    )


def _groups(cfg: CfgNode, dicts: list[dict]) -> list[int] | None:
    """What the images of a batch have in common: their task, and whether they are wide."""
    by_shape = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    if not by_shape and cfg.MODEL.META_ARCHITECTURE != SEVERAL_TASKS:
        return None
    wide = [int(by_shape and d.get("width", 0) > d.get("height", 0)) for d in dicts]
    if cfg.MODEL.META_ARCHITECTURE != SEVERAL_TASKS:
        return wide
    return [2 * d["task"] + one for d, one in zip(dicts, wide, strict=True)]


def _index_stream(cfg: CfgNode, dicts: list[dict], seed: int) -> Iterable[int]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dicts), seed=seed)
    if name == "RandomSubsetTrainingSampler":
        # Detectron2's own configurations have no such key.
        ratio = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO", LoaderSettings.random_subset_ratio)
        if int(ratio * len(dicts)) < 1:
            raise ConfigError(
                f"DATALOADER.RANDOM_SUBSET_RATIO {ratio} leaves none of {len(dicts)} images"
            )
        return RandomSubsetTrainingSampler(len(dicts), ratio, seed_shuffle=seed, seed_subset=seed)
    if name in _REPEATING:
        return RepeatFactorTrainingSampler(torch.tensor(_repeats(cfg, dicts)), seed=seed)
    raise ConfigError(
        f"DATALOADER.SAMPLER_TRAIN {name!r} is unknown; known are TrainingSampler, "
        f"RandomSubsetTrainingSampler, {', '.join(_REPEATING[:-1])} and {_REPEATING[-1]}"
    )


_REPEATING = (
    "RepeatFactorTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)


def _repeats(cfg: CfgNode, dicts: list[dict]) -> list[float]:
    """How often a pass shows each image, on average."""
    name, rare = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD
    sqrt = cfg.DATALOADER.get("REPEAT_SQRT", True)  # Detectron2 0.6 has no such key
    if name == "RepeatFactorTrainingSampler":
        return repeat_factors(shown_classes(cfg, dicts), rare, sqrt)
    sets = _data_sets(cfg, dicts)
    weights = _data_set_factors(cfg)
    factors = [weights[each] for each in sets]
    if name == "WeightedCategoryTrainingSampler":
        # How rare a class is depends on the data set, as in Detectron2.
        shown = shown_classes(cfg, dicts)
        for each in weights:
            places = [place for place, own in enumerate(sets) if own == each]
            own = repeat_factors([shown[place] for place in places], rare, sqrt)
            for place, factor in zip(places, own, strict=True):
                factors[place] *= factor
        least = min((factor for factor in factors if factor), default=1.0)
        factors = [factor / least for factor in factors]
    if not any(factors):
        raise ConfigError(
            "DATASETS.TRAIN_REPEAT_FACTOR leaves no image: it is 0 for every data set of TRAIN"
        )
    return factors


def _data_set_factors(cfg: CfgNode) -> dict[str, float]:
    factors = dict.fromkeys(cfg.DATASETS.TRAIN, 1.0)
    # Detectron2's own configurations have no such key.
    for name, factor in cfg.DATASETS.get("TRAIN_REPEAT_FACTOR", ()):
        if name not in factors:
            raise ConfigError(
                f"DATASETS.TRAIN_REPEAT_FACTOR names {name!r}, which DATASETS.TRAIN does not: "
                f"{', '.join(map(repr, factors))}"
            )
        factors[name] = float(factor)
    return factors


def _data_sets(cfg: CfgNode, dicts: list[dict]) -> list[str]:
    """Of which data set of ``DATASETS.TRAIN`` each image is."""
    names = {name.replace("/", "_"): name for name in cfg.DATASETS.TRAIN}
    return [names[record[IMAGE_KEY].partition("/")[0]] for record in dicts]


def annotated_images(cfg: CfgNode, part: int = 0, parts: int = 1) -> Iterator[dict]:
    """Dicts of "image" (C, H, W) and "instances", resized as for evaluation, each image once.

    Args:
        cfg: the whole configuration; images are those of ``DATASETS.TRAIN``.
        part: which share of them, from 0.
        parts: number of shares.

    Raises:
        DataError: see :func:`training_dicts`; or an image cannot be used.
    """
    mapper = CheckedMapper(
        DetectionMapper(
            is_train=True,
            augmentations=build_augmentation(cfg, is_train=False),
            image_format=cfg.INPUT.FORMAT,
        )
    )
    for record in training_dicts(cfg)[part::parts]:
        yield mapper(record)
