"""divdr's keys in a Detectron2 configuration, made from ``divdr.settings``, which tell each one's
meaning, unit, range and source (``docs/settings.md``); and what one of several tasks sees of it.
"""

from __future__ import annotations

from importlib import import_module

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from .errors import ConfigError
from .settings import GROUPS, MultiTaskSettings, OptimizerSettings, Settings, entries


def add_settings(cfg: CfgNode, settings: Settings) -> None:
    """Add the keys of a group of settings, with the values that it holds, to a configuration.

    Args:
        cfg: to which groups that it lacks are added too.
        settings: stand where their ``KEY`` says.
    """
    node = cfg
    for name in settings.KEY.split("."):
        if name not in node:
            node[name] = CfgNode()
        node = node[name]
    for entry in entries(type(settings)):
        value = getattr(settings, entry.attribute)
        if isinstance(value, Settings):
            add_settings(cfg, value)
        else:
            node[entry.name] = _plain(value)


def _plain(value: object) -> object:
    """A value as yaml writes it: lists in place of tuples."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def add_divdr_config(cfg: CfgNode) -> None:
    """Add divdr's keys, with their defaults, to a Detectron2 config."""
    for group in GROUPS:
        # Its key is there before, by add_project_configs, or by a project's own function.
        if group is not OptimizerSettings:
            add_settings(cfg, group())


def add_project_configs(cfg: CfgNode) -> None:
    """Add the keys of Detectron2's projects PointRend, DeepLab and Panoptic-DeepLab.

    Those that are not installed beside Detectron2 are left out. ``SOLVER.OPTIMIZER``, which
    Panoptic-DeepLab brings along, starts with divdr's own default.
    """
    for project, function in (
        ("point_rend", "add_pointrend_config"),
        ("deeplab", "add_deeplab_config"),
        ("panoptic_deeplab", "add_panoptic_deeplab_config"),
    ):
        try:
            module = import_module(f"detectron2.projects.{project}")
        except ImportError:
            continue
        getattr(module, function)(cfg)
    add_settings(cfg, OptimizerSettings())
    # DeepLab's default; Detectron2's own ResNets know no such stem.
    if "STEM_TYPE" in cfg.MODEL.RESNETS:
        cfg.MODEL.RESNETS.STEM_TYPE = "basic"


def get_divdr_config() -> CfgNode:
    """A copy of Detectron2's default config with its projects' keys and divdr's."""
    cfg = get_cfg()
    add_project_configs(cfg)
    add_divdr_config(cfg)
    return cfg


SEVERAL_TASKS = "MultiTask"
"""The architecture of several tasks over one backbone, by ``MODEL.MULTI_TASK``."""

_CLASSES = {
    "SemanticSegmentor": ("SEM_SEG_HEAD", "NUM_CLASSES"),
    "GeneralizedRCNN": ("ROI_HEADS", "NUM_CLASSES"),
}


def task_numbers(cfg: CfgNode) -> dict[str, int]:
    """The number of each data set's task, for a configuration of :data:`SEVERAL_TASKS`.

    Tasks are numbered as they first stand in ``DATASETS.TRAIN``: data sets whose metadata name the
    same ``task`` are one, another is a task of its own. A data set of ``DATASETS.TEST`` whose
    metadata name none, and which is not trained on, is of the task of its place in the list.

    Raises:
        ConfigError: there are other tasks than heads, or a data set of ``TEST`` is of no task.
    """
    names = [MetadataCatalog.get(name).get("task", name) for name in cfg.DATASETS.TRAIN]
    tasks = list(dict.fromkeys(names))
    heads = MultiTaskSettings.of(cfg.MODEL.MULTI_TASK).architectures
    key = f"{MultiTaskSettings.KEY}.ARCHITECTURES"
    if len(tasks) > len(heads):
        raise ConfigError(
            f"task {tasks[len(heads)]!r} of DATASETS.TRAIN has no head: {key} names those of "
            f"{len(heads)}, and there are {len(tasks)}"
        )
    found = {name: tasks.index(task) for name, task in zip(cfg.DATASETS.TRAIN, names, strict=True)}
    for place, name in enumerate(cfg.DATASETS.TEST):
        task = MetadataCatalog.get(name).get("task", name)
        number = tasks.index(task) if task in tasks else place
        if number >= len(heads) or (task != name and task not in tasks):
            raise ConfigError(
                f"data set {name!r} of DATASETS.TEST is of no task: its metadata name none of "
                f"DATASETS.TRAIN, and {key} names the heads of {len(heads)}"
            )
        found[name] = number
    return found


def task_config(cfg: CfgNode, task: int) -> CfgNode:
    """The configuration of one of several tasks: its architecture, classes and data sets.

    Args:
        cfg: the whole configuration.
        task: its number.

    Raises:
        ConfigError: see :func:`task_numbers`; or the numbers of classes are not one a task.
    """
    settings = MultiTaskSettings.of(cfg.MODEL.MULTI_TASK)
    if settings.classes and len(settings.classes) != len(settings.architectures):
        raise ConfigError(
            f"{settings.KEY}.CLASSES has {len(settings.classes)} numbers, and ARCHITECTURES "
            f"{len(settings.architectures)} tasks"
        )
    own = cfg.clone()
    own.defrost()
    own.MODEL.META_ARCHITECTURE = settings.architectures[task]
    if settings.classes:
        group, name = _CLASSES[settings.architectures[task]]
        own.MODEL[group][name] = settings.classes[task]
    numbers = task_numbers(cfg)
    for split in ("TRAIN", "TEST"):
        chosen = [name for name in cfg.DATASETS[split] if numbers[name] == task]
        own.DATASETS[split] = tuple(chosen)
    return own
