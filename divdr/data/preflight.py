"""All that can be known to be wrong with the data before the first iteration, in one list."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import SEVERAL_TASKS, task_config
from ..errors import DataError, DivdrError
from ..image_files import check_label_map, image_size, label_size, read_labels
from .catalog import check_datasets, evaluation_dicts, read_once, training_dicts
from .checks import annotation_problems
from .classes import class_problems, predicted_stuff, predicted_things
from .coco_json import evaluation_problems, source

logger = logging.getLogger(__name__)

_HEADS = 2000  # files of a data set whose heads are read: 2 s on a disk that knows none of them
_VALUES = 32  # label files of which every pixel is read
_TOLD = 5  # sentences of one kind about one data set


def check_data(cfg: CfgNode, *, training: bool = True) -> None:
    """See that data sets, config and model suit each other, all of them at once.

    Looked at are, of every data set: its registration, folders and files; its annotation file,
    every entry; every annotation; the heads of up to 2,000 image and label files, spread evenly,
    and every pixel of 32 labels; names, number and order of classes and key points, and the label
    of ignored pixels, against the config and against the first data set. Labels that are not read
    here are checked as they are used. At COCO's size this takes as long as reading its files.

    Classes that nothing in a data set belongs to are reported in a warning.

    Args:
        cfg: the whole configuration.
        training: whether ``DATASETS.TRAIN`` will be used, or ``DATASETS.TEST`` alone.

    Raises:
        DataError: with a sentence for everything that is wrong.
    """
    if cfg.MODEL.META_ARCHITECTURE == SEVERAL_TASKS:
        _check_tasks(cfg, training)
        return
    train = list(dict.fromkeys(cfg.DATASETS.TRAIN)) if training else []
    test = [name for name in dict.fromkeys(cfg.DATASETS.TEST) if name not in train]
    problems: list[str] = []
    sound = []
    with read_once([*train, *test]):
        for name in [*train, *test]:
            found = _problems(cfg, name, name in train)
            problems += found
            if not found:
                sound.append(name)
    # Names of classes are known once a data set has been read.
    problems += class_problems(cfg, sound)
    if problems:
        # A setting that suits none of several data sets is reported for the first.
        once = {text.partition(", but data set ")[0]: text for text in reversed(problems)}
        raise DataError(*reversed(once.values()))


def _check_tasks(cfg: CfgNode, training: bool) -> None:
    """Each task's data sets by its own configuration."""
    problems: list[str] = []
    for task in range(len(cfg.MODEL.MULTI_TASK.ARCHITECTURES)):
        own = task_config(cfg, task)
        if training and not own.DATASETS.TRAIN:
            problems.append(f"no data set of DATASETS.TRAIN is of task {task}, which has heads")
            continue
        try:
            check_data(own, training=training)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)


def _problems(cfg: CfgNode, name: str, training: bool) -> list[str]:
    """Sentences about one data set; the steps after one that failed would only repeat it."""
    found: list[str] = []
    try:
        check_datasets([name])
        if name in cfg.DATASETS.TEST:
            found = evaluation_problems(cfg, name)
        if not found:
            dicts = _dicts(cfg, name, training)
            found = list(_dict_problems(cfg, name, dicts, training))
    except DataError as error:
        return [*found, *error.problems]
    except DivdrError as error:
        return [*found, str(error)]
    return found


def _dicts(cfg: CfgNode, name: str, training: bool) -> list[dict]:
    if not training:
        return evaluation_dicts(cfg, [name])
    alone = cfg.clone()
    alone.defrost()
    alone.DATASETS.TRAIN = (name,)
    if cfg.MODEL.LOAD_PROPOSALS:
        files = dict(zip(cfg.DATASETS.TRAIN, cfg.DATASETS.PROPOSAL_FILES_TRAIN, strict=False))
        alone.DATASETS.PROPOSAL_FILES_TRAIN = (files.get(name),)
    return training_dicts(alone, annotations=False)


def _dict_problems(cfg: CfgNode, name: str, dicts: Sequence[dict], training: bool) -> Iterator[str]:
    if not isinstance(dicts, list):  # Detectron2 also takes data sets that are no lists
        return
    if not dicts:
        yield f"{source([name])}: holds no image"
        return
    if not cfg.INPUT.DATASET_MAPPER_NAME or not training:
        found = annotation_problems(cfg, [name], dicts, training=training)
        yield from islice(found, _TOLD)
    needs_labels = cfg.MODEL.META_ARCHITECTURE in ("SemanticSegmentor", "PanopticFPN")
    if training and needs_labels:
        without = [d for d in dicts if not d.get("sem_seg_file_name")]
        if without:
            yield (
                f"{source([name])}: image {without[0].get('file_name')} has no label file, which "
                f"{cfg.MODEL.META_ARCHITECTURE} learns from"
                + (f", nor have {len(without) - 1} others" if len(without) > 1 else "")
            )
    yield from islice(_head_problems(dicts), _TOLD)
    if predicted_stuff(cfg)[0] and cfg.MODEL.META_ARCHITECTURE != "PanopticDeepLab":
        yield from islice(_label_problems(cfg, name, dicts), _TOLD)
    _tell_unused(cfg, name, dicts)


def _head_problems(dicts: Sequence[dict]) -> Iterator[str]:
    """By the heads of image and label files: damaged ones, sizes that differ, colours in labels."""
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(_head_problem, _spread(dicts, _HEADS)):
            if found:
                yield found


def _head_problem(record: dict) -> str | None:
    file, label = record.get("file_name"), record.get("sem_seg_file_name")
    if not file or "://" in str(file):
        return None
    try:
        rows, columns, _ = image_size(file)
        declared = record.get("height", rows), record.get("width", columns)
        if declared != (rows, columns):
            return (
                f"file {file} is {rows}×{columns} pixels, and should be {declared[0]}×{declared[1]}"
            )
        if label:
            found = label_size(label)
            if found != (rows, columns):
                return (
                    f"label file {label} is {found[0]}×{found[1]} pixels, its image "
                    f"{rows}×{columns}"
                )
    except DataError as error:
        return str(error)
    return None


def _label_problems(cfg: CfgNode, name: str, dicts: Sequence[dict]) -> Iterator[str]:
    """By all pixels of some labels; warns of classes that have none, if these are all labels."""
    labelled = [d for d in dicts if d.get("sem_seg_file_name")]
    chosen = _spread(labelled, _VALUES)
    metadata = MetadataCatalog.get(name)
    classes = list(metadata.get("stuff_classes", None) or ())
    count = len(classes) or predicted_stuff(cfg)[1]
    ignore = metadata.get("ignore_label", None)
    ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE if ignore is None else ignore
    seen: set[int] = set()
    for record in chosen:
        path = record["sem_seg_file_name"]
        try:
            labels = read_labels(path)
            check_label_map(labels, path, classes=count, ignore=ignore)
        except DataError as error:
            yield str(error)
            continue
        seen.update(np.unique(labels).tolist())
    if chosen and not seen - {ignore}:
        some = "label" if len(chosen) == len(labelled) else f"of {len(chosen)} labels"
        logger.warning("%s: no pixel of any %s has a class", source([name]), some)
    elif len(chosen) == len(labelled):
        _warn_of_unused(
            name, [c for number, c in enumerate(classes) if number not in seen], "pixel"
        )


def _tell_unused(cfg: CfgNode, name: str, dicts: Sequence[dict]) -> None:
    """Warn of classes that no box or image has."""
    metadata = MetadataCatalog.get(name)
    if cfg.INPUT.DATASET_MAPPER_NAME == "classification":
        used = Counter(record.get("label") for record in dicts)
        classes = metadata.get("classes", None) or ()
        _warn_of_unused(name, [c for number, c in enumerate(classes) if not used[number]], "image")
    elif predicted_things(cfg)[0] and any(record.get("annotations") for record in dicts):
        used = Counter(a.get("category_id") for d in dicts for a in d.get("annotations", ()))
        classes = metadata.get("thing_classes", None) or ()
        _warn_of_unused(name, [c for number, c in enumerate(classes) if not used[number]], "box")


def _warn_of_unused(name: str, classes: Sequence[str], what: str) -> None:
    if classes:
        listed = ", ".join(repr(each) for each in classes[:5])
        more = f" and {len(classes) - 5} more" if len(classes) > 5 else ""
        logger.warning("%s: no %s is of class %s%s", source([name]), what, listed, more)


def _spread(items: Sequence[dict], count: int) -> list[dict]:
    """At most so many of the items, spread evenly."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
