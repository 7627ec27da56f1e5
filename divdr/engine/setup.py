"""From the command line to a checked configuration, and from errors to one clear sentence."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode

from ..config import get_divdr_config
from ..errors import ConfigError, DataError, DivdrError

logger = logging.getLogger(__name__)


def load_config(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """Detectron2's and divdr's defaults, then a yaml file, then ``KEY VALUE`` pairs; checked.

    Raises:
        ConfigError: no such file, an unknown key, a value of the wrong type, or settings that
            contradict each other.
    """
    cfg = get_divdr_config()
    if config_file and not os.path.isfile(config_file):
        raise ConfigError(f"configuration file {config_file} does not exist")
    try:
        if config_file:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(overrides))
    except (KeyError, AssertionError, ValueError) as error:
        message = str(error.args[0]) if error.args else str(error)
        if message.startswith("Non-existent"):  # yacs' word for an unknown key
            raise ConfigError(_unknown_key(message, cfg)) from None
        raise ConfigError(f"configuration: {message}") from None
    check_config(cfg)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """See that divdr's settings make sense together; warn of those that do nothing.

    Raises:
        ConfigError: a setting is out of its range.
    """
    clustering, budget = cfg.MODEL.ROUTING.CLUSTERING, cfg.MODEL.ROUTING.BUDGET
    if clustering.ENABLED and clustering.NUM_EXPERTS < 1:
        raise ConfigError(
            f"MODEL.ROUTING.CLUSTERING.NUM_EXPERTS must be at least 1, not {clustering.NUM_EXPERTS}"
        )
    for name, value in (
        ("CLUSTERING.WEIGHT", clustering.WEIGHT),
        ("CLUSTERING.MARGIN", clustering.MARGIN),
        ("BUDGET.WEIGHT", budget.WEIGHT),
        ("BUDGET.TARGET", budget.TARGET),
    ):
        if value < 0:
            raise ConfigError(f"MODEL.ROUTING.{name} cannot be negative: {value}")
    if cfg.SOLVER.STOP_ITER < 0:
        raise ConfigError(f"SOLVER.STOP_ITER cannot be negative: {cfg.SOLVER.STOP_ITER}")
    active = clustering.ENABLED and clustering.WEIGHT > 0
    if active and clustering.MARGIN == 0 and clustering.NUM_EXPERTS == 2:
        logger.warning(
            "MODEL.ROUTING.CLUSTERING: with MARGIN 0 and NUM_EXPERTS 2 the clustering loss is "
            "identically zero (an activation is never closer to the other centre)"
        )


def report_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a tool's ``main``: a user's errors are told in one sentence, exit code 2."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except DivdrError as error:
            print(f"error: {one_sentence(error)}", file=sys.stderr, flush=True)
            sys.exit(2)

    guarded.__name__ = main.__name__
    guarded.__qualname__ = main.__qualname__
    guarded.__module__ = main.__module__
    return guarded


def one_sentence(error: BaseException) -> str:
    """An error's own words; a data loader's worker puts its whole traceback before them.

    Of several problems with the data every one is told, on a line of its own.
    """
    text = str(error).strip()
    marker = f"{type(error).__name__}: "
    if "Original Traceback" in text and marker in text:
        return text.rsplit(marker, 1)[1].strip().splitlines()[0]
    if isinstance(error, DataError) and len(error.problems) > 1:
        return text
    return text.splitlines()[0] if text else type(error).__name__


def _unknown_key(message: str, cfg: CfgNode) -> str:
    key = message.rsplit(": ", 1)[-1]
    known = list(_keys(cfg))
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown configuration key {key}{hint}"


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
