"""divdr: Diversified Dynamic Routing for dense prediction.

Two storeys. The method needs PyTorch, SciPy and scikit-learn alone: the rooms ``routing``,
``experts``, ``inference``, ``moe`` and ``checkpoint``, and the names below. The other rooms stand
on Detectron2. Where that is installed, ``import divdr`` also registers the ``DynamicRouting``
backbone, bare and under its necks, and the ``DynamicRoutingDecoder`` head.
"""

import sys
from importlib.util import find_spec

from . import checkpoint, errors, experts, inference, moe, routing
from .experts import LocalExperts, clustering_loss, kmeans
from .inference import InferencePlan
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
    "moe",
    "routing",
]

_ON_DETECTRON2 = [
    "add_divdr_config",
    "attach_routing",
    "attach_routing_from_config",
    "get_divdr_config",
    "with_routing",
]
_ROOMS_ON_DETECTRON2 = [
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
]

if find_spec("detectron2") is not None:
    from .config import add_divdr_config, get_divdr_config  # noqa: F401
    from .modeling import (  # noqa: F401
        attach_routing,
        attach_routing_from_config,
        with_routing,
    )

    __all__ += _ON_DETECTRON2
else:

    def _needs_detectron2(name: str) -> ImportError:
        return ImportError(
            f"{name} needs Detectron2, which pip does not install by itself: run `make setup` in "
            "divdr's folder, or `pip install 'divdr[detectron2]'` and then `pip install --no-deps "
            "--only-binary=:all: --python-version 3.10 --target SITE_PACKAGES "
            "sal-detectron2==0.7.2`, or build it from its own sources",
            name="detectron2",
        )

    def __getattr__(name: str):
        if name in _ON_DETECTRON2 or name in _ROOMS_ON_DETECTRON2:
            raise _needs_detectron2(f"divdr.{name}")
        raise AttributeError(f"module 'divdr' has no attribute {name!r}")

    class _UpperStorey:
        """Answers imports of its rooms, before Python finds files that fail half-way."""

        @staticmethod
        def find_spec(name: str, path=None, target=None) -> None:
            parent, _, room = name.rpartition(".")
            if parent == __name__ and room in _ROOMS_ON_DETECTRON2:
                raise _needs_detectron2(name)

    sys.meta_path.insert(0, _UpperStorey)
