"""divdr's keys in a Detectron2 configuration, made from ``divdr.settings``, which tell each one's
meaning, unit, range and source (``docs/settings.md``).
"""

from __future__ import annotations

from importlib import import_module

from detectron2.config import CfgNode, get_cfg

from .settings import GROUPS, OptimizerSettings, Settings, entries


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
