"""Any other callable, timed beside the ways of running a network."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable

from torch import Tensor

from ..errors import ConfigError
from ..routing.network import DynamicRoutingNetwork


class Against:
    """``MODULE:FUNCTION`` by name: FUNCTION(x), or FUNCTION(x, network) if it takes two parameters.

    MODULE may lie in the current folder.

    Args:
        name: as above.

    Raises:
        ConfigError: there is no such callable, or its module cannot be imported.
    """

    def __init__(self, name: str) -> None:
        module, colon, function = name.partition(":")
        if not (module and colon and function):
            raise ConfigError(f"--against wants MODULE:FUNCTION, not {name!r}")
        self.name = name
        self._function: Callable[..., object] = _imported(name, module, function)
        self._takes_network = _parameters(self._function) >= 2

    def bind(self, network: DynamicRoutingNetwork, x: Tensor) -> Callable[[], object]:
        """The call on one input.

        Raises:
            ConfigError: (from the call) the function failed.
        """
        arguments = (x, network) if self._takes_network else (x,)

        def call() -> object:
            try:
                return self._function(*arguments)
            except Exception as error:
                raise ConfigError(f"{self.name} failed: {_in_one_line(error)}") from error

        return call


def _imported(name: str, module: str, function: str) -> Callable[..., object]:
    sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may fail in any way while it is imported
        raise ConfigError(f"{name} cannot be imported: {_in_one_line(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise ConfigError(f"{name} is not a function but a {type(found).__name__}")
    return found


def _parameters(function: Callable[..., object]) -> int:
    """How many positional arguments it wants; optional ones do not count, 1 if it does not tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
