"""Figures of a training for Weights & Biases, beside ``metrics.json`` and TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..checkpoint import write_text_atomically
from ..errors import ConfigError
from ..settings import WandbSettings
from .finite import figures_by_iteration

RUN_FILE = "wandb_run.txt"
"""In a run's folder: the id by which a resumed run goes on in the same place."""


class WandbWriter(EventWriter):
    """Sends what training logs, under the iteration that it is of.

    A resumed run goes on as the run whose id its folder keeps. The whole configuration is sent
    too. wandb's own variables hold (``WANDB_MODE=offline``, ``WANDB_API_KEY``, ``WANDB_ENTITY``).

    Args:
        cfg: the whole configuration; its ``WANDB`` says where to.
        window: numbers that are smoothed are the median of so many.
    """

    def __init__(self, cfg: CfgNode, window: int = 20) -> None:
        self._cfg = cfg
        self._window = window
        self._last = -1
        self._run: Any = None

    def start(self, resumed: bool) -> None:
        """Begin, or go on.

        Args:
            resumed: whether training goes on from a checkpoint of its own.

        Raises:
            ConfigError: wandb is not installed, or cannot start.
        """
        wandb = installed_wandb()
        settings = WandbSettings.of(self._cfg.WANDB)
        folder = self._cfg.OUTPUT_DIR
        note = Path(folder) / RUN_FILE
        known = note.read_text(encoding="utf-8").strip() if resumed and note.is_file() else ""
        try:
            self._run = wandb.init(
                project=settings.project,
                name=settings.name or os.path.basename(os.path.abspath(folder)),
                id=known or None,
                resume="allow",
                dir=folder,
                config=yaml.safe_load(self._cfg.dump()),
            )
            # Figures come late, and those of a killed run come twice: not in the order of steps.
            self._run.define_metric("iteration")
            self._run.define_metric("*", step_metric="iteration")
        except Exception as error:  # of the network, the account, or wandb's own settings
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(
                f"WANDB.ENABLED is True, but wandb cannot start ({reason}); WANDB_MODE=offline "
                "in the environment keeps its figures in OUTPUT_DIR"
            ) from None
        write_text_atomically(note, self._run.id)

    def write(self) -> None:
        """Send what was put into the storage since the last time, by iteration."""
        if self._run is None:
            return
        lines = figures_by_iteration(get_event_storage(), self._window, self._last)
        for at, figures in lines:
            self._run.log({**figures, "iteration": at})
            self._last = at

    def close(self) -> None:
        """Send the rest, and end."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def installed_wandb() -> Any:
    """The module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import wandb
    except ImportError:
        wandb = None
    if not hasattr(wandb, "init"):  # a folder of that name is a module too
        raise ConfigError("WANDB.ENABLED is True, but wandb is not installed: pip install wandb")
    return wandb
