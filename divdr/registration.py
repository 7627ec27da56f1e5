"""Registers divdr's parts with Detectron2 as soon as that has registries, and not before.

``import divdr`` promises that Detectron2 knows the backbone, the necks and the head afterwards.
Importing Detectron2 takes seconds, though, and a program that never uses it should not wait for
it. Nobody can miss a registered part who has not imported ``detectron2.modeling``, in which the
registries are: a finder in ``sys.meta_path`` sees that import, lets the other finders do it, and
imports ``divdr.modeling`` right behind it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_REGISTRIES = "detectron2.modeling"
_PARTS = f"{__package__}.modeling"


class _ThenRegister(Loader):
    """Loads a module by its own loader, and then registers.

    The module keeps its own loader, so that nothing that asks for its source or files sees this.
    """

    def __init__(self, own: Any, finder: _Watch) -> None:
        self._own = own
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        # If this import is one of divdr.modeling's own, that one is in sys.modules already and
        # goes on behind it.
        import_module(_PARTS)


class _Watch(MetaPathFinder):
    """Finds ``detectron2.modeling`` by whichever finder comes behind it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _REGISTRIES:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Watch) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _ThenRegister(spec.loader, self)
                return spec
        return None


def register_with_detectron2() -> None:
    """Register the backbones and heads now, or right after ``detectron2.modeling`` is imported.

    Calling it again changes nothing. It does not import Detectron2 by itself.
    """
    if _REGISTRIES in sys.modules:
        import_module(_PARTS)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())
