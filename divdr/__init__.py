"""divdr: Diversified Dynamic Routing for dense prediction, a Detectron2 extension.

Importing it registers the ``DynamicRouting`` backbone, bare and under its necks, and the
``DynamicRoutingDecoder`` head.
"""

from importlib.util import find_spec

if find_spec("detectron2") is None:
    raise ImportError(
        "divdr needs Detectron2, which pip does not install by itself: run `make setup` in divdr's "
        "folder, or `pip install --no-deps --only-binary=:all: --python-version 3.10 "
        "--target SITE_PACKAGES sal-detectron2==0.7.2`, or build it from its own sources"
    )

from .config import add_divdr_config, get_divdr_config
from .modeling import attach_routing, attach_routing_from_config, with_routing

__version__ = "0.1.0"

__all__ = [
    "add_divdr_config",
    "attach_routing",
    "attach_routing_from_config",
    "get_divdr_config",
    "with_routing",
]
