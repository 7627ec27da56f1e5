"""What command lines of all programs share: how configurations, weights, folders and settings are
named, numbers as options, commands, and errors in one sentence.

Nothing here imports torch or Detectron2: ``--help`` and what is wrong with the options are answered
at once, and a command imports what it runs when it runs.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError, DataError, DivdrError
from .known_warnings import leave_out_known_warnings
from .packaged_configs import config_beside, find_config, find_weights

INTERRUPTED = 130
"""Exit code of a program that was stopped by Ctrl-C."""
UNREAD = 141
"""Exit code of a program whose reader went away, as of one that SIGPIPE ends."""


def report_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a tool's ``main``: a user's errors are reported in one sentence, exit code 2.

    Likewise those of the file system, which name the file. Ctrl-C ends it with exit code 130 and
    what the interrupted part says of itself; a reader that goes away (``| head``) with 141.
    """

    @functools.wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()  # here rather than at exit, where no error can be met
            return result
        except DivdrError as error:
            sentence = one_sentence(error)
        except BrokenPipeError:
            if not _nobody_reads():  # a pipe to another process
                raise
            sys.exit(UNREAD)
        except OSError as error:
            if error.filename is None or error.strerror is None:
                raise
            sentence = f"{os.fspath(error.filename)}: {error.strerror}"
        except ImportError as error:
            if error.name != "detectron2":
                raise
            sentence = str(error)
        except KeyboardInterrupt as stop:
            print(str(stop) or "stopped", file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(2)

    return guarded


def _nobody_reads() -> bool:
    """Whether standard output is a pipe without a reader; what is written goes nowhere then."""
    try:
        place = sys.stdout.fileno()
    except OSError:  # not a file at all
        return False
    poll = select.poll()
    poll.register(place, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return True


def one_sentence(error: BaseException) -> str:
    """An error's own words; a data loader's worker puts its whole traceback before them.

    Of several problems with the data every one is reported, on a line of its own.
    """
    text = str(error).strip()
    marker = f"{type(error).__name__}: "
    if "Original Traceback" in text and marker in text:
        return text.rsplit(marker, 1)[1].strip().splitlines()[0]
    if isinstance(error, DataError) and len(error.problems) > 1:
        return text
    return text.splitlines()[0] if text else type(error).__name__


def at_least(low: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """A number of at least ``low``; ``kind`` makes it of the text, ``int`` or ``float``."""

    def number(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not value >= low:
            raise argparse.ArgumentTypeError(f"must be at least {low:g}, not {text}")
        return value

    return number


def above(low: float) -> Callable[[str], float]:
    """A number above ``low``."""

    def number(text: str) -> float:
        value = at_least(low, float)(text)
        if value == low:
            raise argparse.ArgumentTypeError(f"must be above {low:g}, not {text}")
        return value

    return number


def listed(number: Callable[[str], Any], count: int | None = None) -> Callable[[str], list]:
    """Numbers with commas between them; ``count`` of them, or any number from one on."""

    def numbers(text: str) -> list:
        parts = text.split(",")
        if count is not None and len(parts) != count:
            raise argparse.ArgumentTypeError(f"{count} numbers are wanted, not {text!r}")
        return [number(part) for part in parts]

    return numbers


def device(text: str) -> str:
    """The name of a device that is there; only a GPU's makes this import torch."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is unknown; it is cuda or cpu")
    if text != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise argparse.ArgumentTypeError(f"{text} needs a GPU, and there is none here")
    return text


def available_device() -> str:
    """What runs where ``--device`` is left out: "cuda" with a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# Groups and keys at the top of a Detectron2 configuration. One that is not there yet would be taken
# for a file only by commands that also take files.
_GROUPS = "MODEL|SOLVER|INPUT|DATASETS|DATALOADER|TEST|GLOBAL"
_KEY = re.compile(
    rf"(?:{_GROUPS})\.[\w.]+|OUTPUT_DIR|SEED|VERSION|VIS_PERIOD|CUDNN_BENCHMARK|FLOAT32_PRECISION"
)


def _is_key(word: str) -> bool:
    return bool(_KEY.fullmatch(word)) and not os.path.exists(word)


def _is_option(word: str) -> bool:
    return bool(re.match("--[a-z]", word))


def split_pairs(words: Sequence[str], *, files: bool = False) -> tuple[list[str], list[str]]:
    """Part ``KEY VALUE`` pairs from options and files.

    Pairs begin with a key of the configuration, or with ``--opts``, and go on to the next option.
    A value may begin with a minus.

    Args:
        words: of a command line.
        files: whether words that are neither an option nor a key are files, also behind pairs;
            else what stands behind a pair is the next one, also if its key is misspelt.

    Returns:
        Options and files; keys and values in turn.
    """
    rest: list[str] = []
    pairs: list[str] = []
    named = False  # behind --opts everything is a pair
    within = False
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--opts":
            named = within = True
        elif _is_option(word):
            named = within = False
            rest.append(word)
        elif _is_key(word) or named or (within and not files):
            within = True
            pairs.append(word)
            if position < len(words) and not _is_option(words[position]):
                pairs.append(words[position])
                position += 1
        else:
            rest.append(word)
    return rest, pairs


class Parser(argparse.ArgumentParser):
    """Of a command that takes a configuration: what it parses has the pairs in ``opts``.

    Without :func:`add_config_options` it is an ordinary parser.
    """

    def __init__(self, program: str | None = None, description: str = "") -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=program, description=description, formatter_class=raw)
        self.takes_pairs = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; ``opts`` are keys and values in turn."""
        if not self.takes_pairs:
            return super().parse_known_args(args, namespace)
        files = any(not a.option_strings and a.dest != "opts" for a in self._actions)
        words, pairs = split_pairs(sys.argv[1:] if args is None else args, files=files)
        found, unknown = super().parse_known_args(words, namespace)
        found.opts = [*(getattr(found, "opts", None) or ()), *pairs]
        return found, unknown


def add_config_options(
    parser: Parser,
    *,
    weights: str = "",
    output: str = "",
    output_default: str = "",
    files: bool = False,
    beside: bool = True,
) -> None:
    """``--config-file``, ``--weights``, ``--output`` and ``KEY VALUE`` pairs.

    Args:
        parser: takes them.
        weights: help of ``--weights``; "": the command has no such option.
        output: help of ``--output``; likewise.
        output_default: of ``--output``.
        files: whether the command takes files or folders, whose argument is added elsewhere.
        beside: whether a configuration beside the weights will do.
    """
    parser.takes_pairs = True
    place = "; left out: config.yaml beside the weights" if weights and beside else ""
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help=f"configuration: a file, or the name of one that divdr brings along{place}",
    )
    if weights:
        parser.add_argument("--weights", default="", metavar="FILE", help=weights)
    if output:
        default = f"; default: {output_default}" if output_default else ""
        parser.add_argument(
            "--output", default=output_default, metavar="DIR", help=f"{output}{default}"
        )
    parser.add_argument(
        "--verbose", action="store_true", help="show every line and warning, as Detectron2 does"
    )
    if not files:
        parser.add_argument("opts", nargs="*", help=argparse.SUPPRESS)
    group = parser.add_argument_group("settings")
    group.add_argument(
        "--opts",
        dest="_opts",
        nargs="*",
        metavar="KEY VALUE",
        help="pairs of settings, behind everything else; the word --opts may be left out",
    )


def use_config_file(args: argparse.Namespace, *, required: bool = True) -> None:
    """Find the configuration that the options mean, and put its path into ``config_file``.

    Args:
        args: parsed; where one is needed, ``weights`` may say where it lies.
        required: whether one is needed.

    Raises:
        ConfigError: there is no such file, or none is named.
    """
    if getattr(args, "weights", ""):
        args.weights = str(find_weights(args.weights))
    if args.config_file:
        args.config_file = str(find_config(args.config_file))
    elif not required:
        return
    elif getattr(args, "weights", ""):
        args.config_file = str(config_beside(args.weights))
    else:
        either = "--weights or --config-file" if hasattr(args, "weights") else "--config-file"
        raise ConfigError(f"name the model by {either}")


def config_pairs(args: argparse.Namespace) -> list[str]:
    """Keys and values that the options set: the pairs, then ``--weights``."""
    weights = getattr(args, "weights", "")
    return [*args.opts, *(["MODEL.WEIGHTS", weights] if weights else [])]


@dataclass(frozen=True)
class Command:
    """A program: a verb of ``divdr``, or a script of ``tools``.

    Attributes:
        summary: a line that says what it does.
        example: a command line, without the program's name.
        options: adds its options to a parser.
        run: does it, with the parsed options, and returns the exit status; imports what it needs.
        about: more about it, behind the summary.
        check: sees whether options go together; it calls the parser's ``error`` if not.
    """

    summary: str
    example: str
    options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int | None]
    about: str = ""
    check: Callable[[Parser, argparse.Namespace], None] | None = None

    def parser(self, program: str | None = None) -> Parser:
        """Its parser; ``program`` is what a user calls it by."""
        parser = Parser(program, "\n\n".join(filter(None, [self.summary, self.about.strip()])))
        parser.epilog = f"example:\n  {parser.prog} {self.example}"
        self.options(parser)
        return parser

    def main(self, arguments: Sequence[str] | None = None, program: str | None = None) -> int:
        """Run the command line; the exit status.

        Args:
            arguments: None: this process's.
            program: see :meth:`parser`.
        """
        return report_errors(self._main)(arguments, program)

    def _main(self, arguments: Sequence[str] | None, program: str | None) -> int:
        parser = self.parser(program)
        args = parser.parse_args(arguments)
        if self.check is not None:
            self.check(parser, args)
        if getattr(args, "verbose", False):
            _show_everything()
        else:
            leave_out_known_warnings()
        return self.run(args) or 0


def _show_everything() -> None:
    """Show what loggers say also where no training sets them up."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s]: %(message)s"))
    for name in ("detectron2", "fvcore", "divdr"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(handler)
