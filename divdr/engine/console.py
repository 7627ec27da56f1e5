"""What a person sees of a training or an evaluation; the log file has all of Detectron2's lines.

On a terminal there is one line of progress; where the output goes to a file there are Detectron2's
lines of progress instead. Warnings, and what this module shows, stand in both.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

logger = logging.getLogger(__name__)

_ROOTS = ("detectron2", "fvcore", "divdr")
# What else than warnings the screen shows.
_OWN = {f"divdr.engine.{name}" for name in ("console", "trainer", "stage_hook", "own_data")}
_PROGRESS = {"detectron2.utils.events", "detectron2.evaluation.evaluator"}

_FIGURES = {
    "loss": "total_loss",
    "GFLOPs": "train/real_gflops",
    "inter (experts)": "clustering/inter_experts",
}

_TRAINING = "{desc} {percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt}{postfix}"
_REDRAW = 0.5  # seconds
_WINDOW = 1000  # iterations whose median tells the time left, as in Detectron2's lines


def main_figures(values: Mapping[str, float]) -> dict[str, str]:
    """What stands beside a progress bar, by short names.

    Args:
        values: the latest of a training, by the names of ``metrics.json``.
    """
    return {short: f"{values[name]:.3f}" for short, name in _FIGURES.items() if name in values}


class ScreenHandler(logging.StreamHandler):
    """Shows on the screen what a person wants to know, above a progress bar if there is one.

    Args:
        stream: the screen; no terminal gets Detectron2's lines of progress.
        formatter: of those lines.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter | None) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)

    @property
    def live(self) -> bool:
        """Whether the screen is a terminal, on which a line can be written anew."""
        return not self.stream.closed and self.stream.isatty()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is shown."""
        if record.levelno < logging.WARNING:
            shown = record.levelno >= logging.INFO and (
                record.name in _OWN or (record.name in _PROGRESS and not self.live)
            )
            if not shown:
                return False
        return bool(super().filter(record))

    def format(self, record: logging.LogRecord) -> str:
        """The message; Detectron2's lines of progress have their time."""
        if record.name in _PROGRESS:
            return super().format(record)
        text = _PLAIN.format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"

    def emit(self, record: logging.LogRecord) -> None:
        """Write it."""
        if not self.live:
            super().emit(record)
            return
        try:
            tqdm.write(self.format(record), file=self.stream)
            self.flush()
        except Exception:
            self.handleError(record)


_PLAIN = logging.Formatter("%(message)s")


def use_screen(folder: str, *, verbose: bool = False) -> None:
    """Set up Detectron2's and divdr's loggers; the files in ``folder`` get everything.

    To be called before ``detectron2.engine.default_setup``, which finds its loggers set up, and
    once more behind it.

    Args:
        folder: of the run.
        verbose: the main process shows everything, as Detectron2 does.
    """
    rank = comm.get_rank()
    # As default_setup calls it: handlers are added once for the same arguments.
    setup_logger(folder, distributed_rank=rank, name="fvcore")
    setup_logger(folder, distributed_rank=rank)
    setup_logger(folder, distributed_rank=rank, name="divdr")
    if rank:
        return
    for root in map(logging.getLogger, _ROOTS):
        shown = [h for h in root.handlers if _on_screen(h)]
        for handler in shown:
            root.removeHandler(handler)
        if shown:
            formatter = shown[-1].formatter
            handler = ScreenHandler(sys.stdout, formatter)
            if verbose:
                handler = logging.StreamHandler(sys.stdout)
                handler.setFormatter(formatter)
            root.addHandler(handler)


def _on_screen(handler: logging.Handler) -> bool:
    return isinstance(handler, ScreenHandler) or (
        type(handler) is logging.StreamHandler and handler.stream in (sys.stdout, sys.__stdout__)
    )


def screen() -> ScreenHandler | None:
    """The screen of this process; None where Detectron2's lines are shown, or nothing."""
    handlers = logging.getLogger("divdr").handlers
    return next((h for h in handlers if isinstance(h, ScreenHandler)), None)


def _terminal() -> TextIO | None:
    shown = screen()
    return shown.stream if shown is not None and shown.live else None


def show(text: str) -> None:
    """Show it on the screen, and note it in the log."""
    logger.info("%s", text)


def training_line(end: int) -> list[EventWriter]:
    """A writer that keeps one line of progress on a terminal, to be called every iteration.

    Args:
        end: the iteration behind the last.

    Returns:
        No writer where there is no terminal, or everything is shown.
    """
    terminal = _terminal()
    return [] if terminal is None else [ProgressLine(end, terminal)]


class ProgressLine(EventWriter):
    """A progress bar with the time left, the losses and the cost; it begins where it is first
    written.

    Args:
        end: the iteration behind the last.
        terminal: where it stands.
    """

    def __init__(self, end: int, terminal: TextIO) -> None:
        self.end = end
        self.terminal = terminal
        self.bar: tqdm | None = None
        self._drawn = -math.inf

    def write(self) -> None:
        """Bring the line to the current iteration; it stays when the training has ended."""
        storage = get_event_storage()
        if storage.iter >= self.end:  # once more, behind the last
            return
        if self.bar is None:
            self.bar = _bar(
                "training", self.end, self.terminal, initial=storage.iter, bar_format=_TRAINING
            )
            self.bar.mininterval = 0.0  # it is drawn when this says so
        last = storage.iter + 1 == self.end
        if time.monotonic() - self._drawn < _REDRAW and not last:
            return
        self.bar.set_postfix_str(_told(storage, self.end), refresh=False)
        self.bar.update(storage.iter + 1 - self.bar.n)
        self._drawn = time.monotonic()
        if last:
            self.close()

    def close(self) -> None:
        """End the line."""
        if self.bar is not None:
            self.bar.close()


def _told(storage: EventStorage, end: int) -> str:
    """Time left and figures, the main ones first: a narrow terminal cuts off the last."""
    # Figures that are still on a GPU come with a later iteration.
    values = {name: value for name, (value, _) in storage.latest().items()}
    times = storage.histories().get("time")
    parts = []
    if times is not None:  # evaluations and clusterings are not in it
        parts.append(f"{duration(times.median(_WINDOW) * (end - storage.iter - 1))} left")
    parts += [f"{name} {value}" for name, value in main_figures(values).items()]
    losses = (name for name in values if name.startswith("loss_"))
    parts += [f"{name.removeprefix('loss_')} {values[name]:.3g}" for name in losses]
    return ", ".join(parts)


def _bar(what: str, total: int, terminal: TextIO, **options: Any) -> tqdm:
    return tqdm(
        desc=what, total=total, file=terminal, dynamic_ncols=True, mininterval=_REDRAW, **options
    )


def with_progress(loader: Any, name: str) -> Any:
    """The loader, which shows on a terminal how far one is through it; elsewhere itself.

    Args:
        loader: of batches.
        name: of the data set.
    """
    terminal = _terminal()
    return loader if terminal is None else _Followed(loader, f"evaluating {name}", terminal)


class _Followed:
    def __init__(self, loader: Any, what: str, terminal: TextIO) -> None:
        self._loader = loader
        self._what = what
        self._terminal = terminal

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator:
        with _bar(self._what, len(self), self._terminal, unit="batch", leave=False) as bar:
            for batch in self._loader:
                yield batch
                bar.update()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loader"], name)


class ForecastHook(HookBase):
    """Says once, after some iterations, how long the training takes."""

    def __init__(self, iterations: int = 20) -> None:
        self.iterations = iterations

    def after_step(self) -> None:
        """Say it, if it is time and enough is left."""
        trainer = self.trainer
        done, left = trainer.iter + 1 - trainer.start_iter, trainer.max_iter - trainer.iter - 1
        if done != self.iterations or left < self.iterations:
            return
        times = trainer.storage.histories().get("time")
        if times is None:  # of somebody's own loop
            return
        seconds = float(times.median(self.iterations))
        show(f"{'time':<10}about {duration(seconds * left)} left, evaluations not counted")


def duration(seconds: float) -> str:
    """A time in words of one unit or two: "40 s", "12 min", "3 h 20 min", "4 days 2 h"."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"
