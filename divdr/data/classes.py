"""Whether the classes that a model predicts are those of its data sets, and the same in all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .classification.class_sets import task_names

_SEMANTIC = ("SemanticSegmentor", "PanopticFPN", "PanopticDeepLab")
_INSTANCES = ("GeneralizedRCNN", "PanopticFPN", "RetinaNet")
# What an evaluation reads of a model's output, by the data set's evaluator_type.
_SEMANTIC_EVALUATORS = ("sem_seg", "cityscapes_sem_seg")
_INSTANCE_EVALUATORS = ("coco", "lvis", "pascal_voc", "cityscapes_instance")


def predicted_things(cfg: CfgNode) -> tuple[str, int]:
    """The setting of how many classes of things a model predicts, and its value.

    ("", 0) for an architecture that predicts none, or is not Detectron2's own.
    """
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        return "MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE in _INSTANCES:
        return "MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return "", 0


def predicted_stuff(cfg: CfgNode) -> tuple[str, int]:
    """The same of the classes of a semantic segmentation."""
    if cfg.MODEL.META_ARCHITECTURE in _SEMANTIC:
        return "MODEL.SEM_SEG_HEAD.NUM_CLASSES", cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    return "", 0


def class_problems(cfg: CfgNode, names: Sequence[str]) -> Iterator[str]:
    """Sentences about data sets whose classes are not the model's, or not those of the first.

    Args:
        cfg: the whole configuration.
        names: of data sets that have been loaded, those of the training first.
    """
    for name in names:
        yield from _kind_problems(cfg, name)
    for key, what, setting in _compared(cfg):
        known = [(name, _listed(name, key)) for name in names]
        known = [(name, classes) for name, classes in known if classes]
        for name, classes in known[1:]:
            first, others = known[0]
            if classes != others:
                yield _difference(what, first, others, name, classes)
        if known and setting[0]:
            name, classes = known[0]
            key_name, count = setting
            if len(classes) != count:
                yield (
                    f"{key_name} is {count}, but data set {name!r} has {len(classes)} {what} "
                    f"({_some(classes)}); set it to {len(classes)}"
                )
    yield from _ignored_problems(cfg, names)
    yield from _task_problems(cfg, names)
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TEST:
        sigmas, points = cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        if (len(sigmas) or 17) != points:  # COCO's own are for its 17
            yield (
                f"TEST.KEYPOINT_OKS_SIGMAS has {len(sigmas) or 17} numbers, but the model predicts "
                f"{points} key points"
            )


def _compared(cfg: CfgNode) -> Iterator[tuple[str, str, tuple[str, int]]]:
    """Metadata that the data sets of this model must agree on."""
    things, stuff = predicted_things(cfg), predicted_stuff(cfg)
    if things[0] or cfg.MODEL.META_ARCHITECTURE == "PanopticDeepLab":
        yield "thing_classes", "categories of things", things
    if stuff[0]:
        yield "stuff_classes", "classes", stuff
    if things[0] and cfg.MODEL.KEYPOINT_ON:
        count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        yield "keypoint_names", "key points", ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", count)
    if cfg.INPUT.DATASET_MAPPER_NAME == "classification" and not task_names(cfg):
        key = "MODEL.CLASSIFIER.NUM_CLASSES"
        yield "classes", "classes", (key, cfg.MODEL.CLASSIFIER.NUM_CLASSES)


def _kind_problems(cfg: CfgNode, name: str) -> Iterator[str]:
    kind = MetadataCatalog.get(name).get("evaluator_type", None)
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture not in {*_SEMANTIC, *_INSTANCES} or name not in cfg.DATASETS.TEST:
        return
    lacking = ""
    if kind in _SEMANTIC_EVALUATORS and architecture not in _SEMANTIC:
        lacking = "a semantic segmentation"
    if kind in _INSTANCE_EVALUATORS and architecture not in (*_INSTANCES, "PanopticDeepLab"):
        lacking = "instances"
    if lacking:
        yield (
            f"data set {name!r} is evaluated by {lacking}, which {architecture} does not predict"
        )


def _ignored_problems(cfg: CfgNode, names: Sequence[str]) -> Iterator[str]:
    if not predicted_stuff(cfg)[0] or cfg.MODEL.META_ARCHITECTURE == "PanopticDeepLab":
        return
    ignored = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    for name in names:
        own = MetadataCatalog.get(name).get("ignore_label", None)
        if own is not None and own != ignored:
            yield (
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignored}, but data set {name!r} marks pixels "
                f"without a class by {own}"
            )


def _task_problems(cfg: CfgNode, names: Sequence[str]) -> Iterator[str]:
    tasks, counts = task_names(cfg), cfg.MODEL.CLASSIFIER.PER_EXAMPLE.TASKS
    if not tasks:
        return
    key = "MODEL.CLASSIFIER.PER_EXAMPLE.TASKS"
    if len(tasks) > len(counts):
        yield (
            f"task {tasks[len(counts)]!r} of DATASETS.TRAIN has no readout: {key} tells the "
            f"classes of {len(counts)}, and there are {len(tasks)}"
        )
    for name in names:
        task, classes = MetadataCatalog.get(name).get("task", name), _listed(name, "classes")
        if task not in tasks:
            yield f"data set {name!r} is of task {task!r}, of which none of DATASETS.TRAIN is"
        elif tasks.index(task) < len(counts) and len(classes) != counts[tasks.index(task)]:
            number = tasks.index(task)
            yield (
                f"{key}[{number}] is {counts[number]}, but data set {name!r} has {len(classes)} "
                "classes"
            )


def _listed(name: str, key: str) -> list[str]:
    return [str(each) for each in MetadataCatalog.get(name).get(key, None) or ()]


def _difference(what: str, first: str, others: list[str], name: str, classes: list[str]) -> str:
    start = f"data sets {first!r} and {name!r} have other {what}"
    here, there = [c for c in classes if c not in others], [c for c in others if c not in classes]
    if here or there:
        parts = []
        if here:
            parts.append(f"only {name!r} has {_some(here)}")
        if there:
            parts.append(f"only {first!r} has {_some(there)}")
        return f"{start}: {', '.join(parts)}"
    pairs: Any = enumerate(zip(others, classes, strict=False))
    number = next((n for n, (a, b) in pairs if a != b), min(len(others), len(classes)) - 1)
    return (
        f"{start}: number {number} is {others[number]!r} in the first, {classes[number]!r} in "
        "the second"
    )


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(repr(name) for name in names[:4])
    return listed + (f" and {len(names) - 4} more" if len(names) > 4 else "")
