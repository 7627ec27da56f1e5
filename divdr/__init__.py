"""divdr: Diversified Dynamic Routing for dense prediction.

Two storeys. The method needs PyTorch, SciPy and scikit-learn alone: the rooms ``routing``,
``experts``, ``inference``, ``moe`` and ``checkpoint``, and the names below. The other rooms stand
on Detectron2. Where that is installed, ``import divdr`` also registers the ``DynamicRouting``
backbone, bare and under its necks, and the ``DynamicRoutingDecoder`` head.

Rooms and names are imported as they are asked for: ``import divdr`` alone, and with it the start
of the command line, takes no time. What is registered is so as soon as ``detectron2.modeling`` is
imported, before or after this (``divdr.registration``).
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import checkpoint, errors, experts, inference, moe, routing
    from .config import add_divdr_config, get_divdr_config
    from .engine import Predictor, create_model
    from .engine.hub import HubPredictor as HubPredictor
    from .experts import LocalExperts, clustering_loss, kmeans
    from .inference import InferencePlan
    from .modeling import attach_routing, attach_routing_from_config, with_routing
    from .packaged_configs import list_models
    from .routing import DynamicRoutingNetwork, RoutingSpace

__version__ = "0.1.0"

__all__ = [
    "DynamicRoutingNetwork",
    "InferencePlan",
    "LocalExperts",
    "RoutingSpace",
    "checkpoint",
    "clustering_loss",
    "errors",
    "experts",
    "inference",
    "kmeans",
    "list_models",
    "moe",
    "routing",
]

# Rooms that work without Detectron2, and those that stand on it.
_ROOMS = {
    "checkpoint",
    "command_line",
    "errors",
    "experts",
    "inference",
    "moe",
    "packaged_configs",
    "routing",
    "settings",
    "translation",
    "verbs",
}
_ROOMS_ON_DETECTRON2 = {
    "benchmark",
    "config",
    "data",
    "engine",
    "evaluation",
    "image_files",
    "image_keys",
    "modeling",
    "studies",
    "visualization",
}
# The room of each name.
_NAMES = {
    "DynamicRoutingNetwork": "routing",
    "InferencePlan": "inference",
    "LocalExperts": "experts",
    "RoutingSpace": "routing",
    "clustering_loss": "experts",
    "kmeans": "experts",
    "list_models": "packaged_configs",
}
_NAMES_ON_DETECTRON2 = {
    "HubPredictor": "engine.hub",  # needs a package of its own, and is none of __all__ therefore
    "Predictor": "engine",
    "add_divdr_config": "config",
    "attach_routing": "modeling",
    "attach_routing_from_config": "modeling",
    "create_model": "engine",
    "get_divdr_config": "config",
    "with_routing": "modeling",
}


def _needs_detectron2(name: str) -> ImportError:
    return ImportError(
        f"{name} needs Detectron2, which pip does not install by itself: run `make setup` in "
        "divdr's folder, or `pip install 'divdr[detectron2]'` and then `pip install --no-deps "
        "--only-binary=:all: --python-version 3.10 --target SITE_PACKAGES "
        "sal-detectron2==0.7.2`, or build it from its own sources",
        name="detectron2",
    )


class _UpperStorey:
    """Answers imports of its rooms, before Python finds files that fail half-way."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        parent, _, room = name.rpartition(".")
        if parent == __name__ and room in _ROOMS_ON_DETECTRON2:
            raise _needs_detectron2(name)


_HAS_DETECTRON2 = find_spec("detectron2") is not None
if _HAS_DETECTRON2:
    from .registration import register_with_detectron2

    register_with_detectron2()
    __all__ += [
        "Predictor",
        "add_divdr_config",
        "attach_routing",
        "attach_routing_from_config",
        "create_model",
        "get_divdr_config",
        "with_routing",
    ]
elif not any(getattr(finder, "__name__", "") == "_UpperStorey" for finder in sys.meta_path):
    sys.meta_path.insert(0, _UpperStorey)


if not TYPE_CHECKING:  # else every name would pass for one of divdr's

    def __getattr__(name: str):
        room = _NAMES.get(name) or _NAMES_ON_DETECTRON2.get(name)
        upper = name in _NAMES_ON_DETECTRON2 or name in _ROOMS_ON_DETECTRON2
        if not (room or upper or name in _ROOMS):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if upper and not _HAS_DETECTRON2:
            raise _needs_detectron2(f"{__name__}.{name}")
        if room is None:
            return import_module(f".{name}", __name__)
        value = globals()[name] = getattr(import_module(f".{room}", __name__), name)
        return value


def __dir__() -> list[str]:
    names = {*globals(), *_ROOMS, *_NAMES}
    if _HAS_DETECTRON2:
        names |= {*_ROOMS_ON_DETECTRON2, *_NAMES_ON_DETECTRON2}
    return sorted(names)
