"""The command ``divdr``: a verb for each thing that it does.

    divdr train --config-file divdr_cityscapes --output output/mine
    divdr predict --weights output/mine/model_final.pth PHOTO.jpg

A verb is a :class:`~divdr.command_line.Command`; to add one, name it in ``VERBS``. Modules of this
room import neither torch nor Detectron2 before a verb runs.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from ..command_line import Command
from .calibrating import CALIBRATE
from .finished import ANALYSE, CONVERT, EXPORT, PREDICT, REPORT
from .measuring import BENCHMARK
from .running import CHECK, EVALUATE, TRAIN
from .surveying import CONFIGS, STUDY

__all__ = [
    "ANALYSE",
    "BENCHMARK",
    "CALIBRATE",
    "CHECK",
    "CONFIGS",
    "CONVERT",
    "EVALUATE",
    "EXPORT",
    "PREDICT",
    "REPORT",
    "STUDY",
    "TRAIN",
    "VERBS",
    "main",
]

VERBS: dict[str, Command] = {
    "configs": CONFIGS,
    "check": CHECK,
    "train": TRAIN,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "report": REPORT,
    "calibrate": CALIBRATE,
    "export": EXPORT,
    "convert": CONVERT,
    "analyse": ANALYSE,
    "benchmark": BENCHMARK,
    "study": STUDY,
}

_HEAD = """\
usage: divdr VERB [options] [KEY VALUE ...]

Dynamic routing with local experts, on Detectron2.

verbs:
{verbs}

`divdr VERB --help` tells a verb's options, with an example.
"""


def _help() -> str:
    width = max(map(len, VERBS))
    return _HEAD.format(verbs="\n".join(f"  {n:{width}}  {v.summary}" for n, v in VERBS.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``divdr``; its exit status.

    Args:
        arguments: None: this process's.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = words.pop(0) if words else ""
    if verb in VERBS:
        return VERBS[verb].main(words, f"divdr {verb}")
    if verb in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    if verb == "--version":
        from .. import __version__

        print(f"divdr {__version__}")
        return 0
    if not verb:
        print(_help(), end="", file=sys.stderr)
        return 2
    close = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(VERBS)}"
    what = "option" if verb.startswith("-") else "verb"
    print(f"divdr: error: unknown {what} {verb!r}; {hint}", file=sys.stderr)
    return 2
