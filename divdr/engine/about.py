"""What a checkpoint says of the model beside its weights: task, classes, how images come in.

By it a model can be run and its predictions drawn where the data set that it was trained on is not
registered, and weights are not run on classes or images of another kind unnoticed.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from ..config import SEVERAL_TASKS, task_config
from ..data.classification.class_sets import task_names
from ..data.coco_json import reading

KEY = "divdr"
"""Of this description in a checkpoint file."""

_NAMES = ("thing_classes", "stuff_classes", "classes")
_TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ImageClassifier": ("image classification", ("classes",)),
    "SemanticSegmentor": ("semantic segmentation", ("stuff_classes",)),
    "GeneralizedRCNN": ("object detection", ("thing_classes",)),
    "RetinaNet": ("object detection", ("thing_classes",)),
    "FCOS": ("object detection", ("thing_classes",)),
    "MultiTask": ("several tasks", ()),  # each has classes of its own
    "ProposalNetwork": ("region proposals", ()),
}
_KEPT = (
    *_NAMES,
    *("thing_colors", "stuff_colors", "ignore_label", "label_divisor", "coarse"),
    *("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id"),
    *("keypoint_names", "keypoint_flip_map", "keypoint_connection_rules"),
)


@dataclass(frozen=True)
class About:
    """A model's description.

    Attributes:
        task: in words; of an architecture that is not known, its name.
        dataset: name of the data set that the classes are of; "" without one.
        image_format: ``INPUT.FORMAT``.
        pixel_mean: ``MODEL.PIXEL_MEAN``, one number a channel.
        pixel_std: ``MODEL.PIXEL_STD``, likewise.
        kinds: which of the metadata's lists of names are those of the model's classes.
        metadata: names and colours of classes and keypoints, as Detectron2 calls them; plain lists,
            dicts, numbers and strings.
        tasks: the same of each task's classes, of a model of several; else empty.
    """

    task: str
    dataset: str
    image_format: str
    pixel_mean: list[float]
    pixel_std: list[float]
    kinds: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, cfg: CfgNode, dataset: str = "") -> About:
        """The description of a config's model, with the classes of a data set.

        Args:
            cfg: the whole configuration.
            dataset: name of a registered data set; one that is not registered has no classes.

        Raises:
            DataError: the data set's annotation file cannot be read.
        """
        task, kinds = _TASKS.get(
            cfg.MODEL.META_ARCHITECTURE,
            (cfg.MODEL.META_ARCHITECTURE, ("thing_classes", "stuff_classes")),
        )
        return cls(
            task,
            dataset,
            cfg.INPUT.FORMAT,
            [float(value) for value in cfg.MODEL.PIXEL_MEAN],
            [float(value) for value in cfg.MODEL.PIXEL_STD],
            list(kinds),
            _kept(dataset, kinds) if dataset in DatasetCatalog.list() else {},
            [_of_task(task) for task in model_tasks(cfg)],
        )

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint: nothing but plain Python types, which ``weights_only`` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Any) -> About | None:
        """What :meth:`as_dict` gave; None for anything else."""
        if not isinstance(content, Mapping):
            return None
        types: dict[str, type] = {
            "task": str,
            "dataset": str,
            "image_format": str,
            "pixel_mean": list,
            "pixel_std": list,
            "kinds": list,
            "metadata": dict,
        }
        if not all(isinstance(content.get(name), kind) for name, kind in types.items()):
            return None
        tasks = content.get("tasks", [])  # which older files lack
        if not isinstance(tasks, list) or not all(isinstance(task, Mapping) for task in tasks):
            return None
        return cls(**{name: content[name] for name in types}, tasks=[dict(task) for task in tasks])

    def other_task(self, run: About) -> str | None:
        """In which task a run's model differs from this checkpoint's; None: in none."""
        if self.task == run.task:
            return None
        return f"is of a model for {self.task}, and this config's model is for {run.task}"

    def other_input(self, run: About) -> str | None:
        """The first setting by which a run's images come in otherwise; None: there is none."""
        for key, there, here in (
            ("INPUT.FORMAT", self.image_format, run.image_format),
            ("MODEL.PIXEL_MEAN", self.pixel_mean, run.pixel_mean),
            ("MODEL.PIXEL_STD", self.pixel_std, run.pixel_std),
        ):
            if there != here:
                return f"was trained with {key} {there}, and this config has {here}"
        return None

    def other_classes(self, run: About) -> str | None:
        """The first class that is another one in a run's data set; None: there is none."""
        for kind in run.kinds:
            there, here = self.metadata.get(kind), run.metadata.get(kind)
            if not there or not here or list(there) == list(here):
                continue
            start = f"was trained on data set {self.dataset!r}, "
            for number, (old, new) in enumerate(zip(there, here, strict=False)):
                if old != new:
                    return (
                        f"{start}whose class {number} is {old!r}; in {run.dataset!r} it is {new!r}"
                    )
            return f"{start}which has {len(there)} classes; {run.dataset!r} has {len(here)}"
        return None


class ModelTask(NamedTuple):
    """One of a model's several tasks.

    Attributes:
        name: the metadata's "task", or the data set's.
        dataset: one of ``DATASETS.TRAIN`` that is of it; "" if none is.
        cfg: the task's own configuration.
    """

    name: str
    dataset: str
    cfg: CfgNode


def model_tasks(cfg: CfgNode) -> list[ModelTask]:
    """A model's tasks in the order of their numbers; empty for a model of one.

    Raises:
        ConfigError: the tasks' settings do not suit each other.
    """
    named = {name: MetadataCatalog.get(name).get("task", name) for name in cfg.DATASETS.TRAIN}
    if cfg.MODEL.META_ARCHITECTURE == SEVERAL_TASKS:
        found = []
        for number, architecture in enumerate(cfg.MODEL.MULTI_TASK.ARCHITECTURES):
            own = task_config(cfg, number)
            dataset = next(iter(own.DATASETS.TRAIN), "")
            found.append(ModelTask(named.get(dataset, architecture), dataset, own))
        return found
    tasks = task_names(cfg) if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier" else []
    return [ModelTask(task, next(n for n in named if named[n] == task), cfg) for task in tasks]


def _of_task(task: ModelTask) -> dict[str, Any]:
    if task.dataset not in DatasetCatalog.list():
        return {}
    return _kept(task.dataset, _TASKS[task.cfg.MODEL.META_ARCHITECTURE][1])


def drawing_metadata(cfg: CfgNode, about: About | None, task: int | None = None) -> Metadata:
    """Names and colours of a model's classes, for pictures.

    They are the checkpoint's; where it has none, those of the config's data sets; where these are
    not registered, numbers.

    Args:
        cfg: the whole configuration.
        about: what the checkpoint says; None: nothing.
        task: whose classes, of a model of several.
    """
    if task is not None:
        chosen = model_tasks(cfg)[task]
        cfg, dataset = chosen.cfg, chosen.dataset
        known = [] if about is None else about.tasks
        found = dict(known[task]) if len(known) > task else _of_task(chosen)
    elif about is not None and any(about.metadata.get(kind) for kind in about.kinds):
        dataset, found = about.dataset, dict(about.metadata)
    else:
        names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
        dataset = next((name for name in names if name in DatasetCatalog.list()), "")
        found = _kept(dataset) if dataset else {}
    model = cfg.MODEL
    for kind, count in (
        ("thing_classes", max(model.ROI_HEADS.NUM_CLASSES, model.RETINANET.NUM_CLASSES)),
        ("stuff_classes", model.SEM_SEG_HEAD.NUM_CLASSES),
        ("classes", model.CLASSIFIER.NUM_CLASSES),
    ):
        if not found.get(kind):
            found[kind] = [str(number) for number in range(count)]
    return Metadata(name=dataset, **found)


def _kept(dataset: str, kinds: Sequence[str] = ()) -> dict[str, Any]:
    """What a description keeps of a data set's metadata; its ``kinds`` are found out if need be."""
    metadata = MetadataCatalog.get(dataset)
    if "thing_classes" in kinds and metadata.get("json_file") and not metadata.get("thing_classes"):
        with reading([dataset]):  # Detectron2 learns a COCO file's categories by loading it
            DatasetCatalog.get(dataset)
    found = {key: _plain(metadata.get(key)) for key in _KEPT}
    return {key: value for key, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, str) or value is None:
        return None if value is None else str(value)
    if isinstance(value, numbers.Integral):  # NumPy's too
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return [_plain(inner) for inner in value]
