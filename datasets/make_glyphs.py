#!/usr/bin/env python3
"""Draws characters of twenty scripts in the layout of Omniglot; see datasets/README.md."""

from __future__ import annotations

import argparse
import logging
import sys

import _environment  # noqa: F401

from divdr.command_line import report_errors
from drawn.glyphs import make_glyphs


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="gets a folder 'glyphs'")
    parser.add_argument("--scripts", nargs="*", default=(), help="alphabets; all if not given")
    parser.add_argument("--letters", type=int, default=20, help="of an alphabet, at most")
    parser.add_argument("--drawings", type=int, default=20, help="of each letter")
    parser.add_argument(
        "--fonts", default="", metavar="FOLDER", help="instead of matplotlib's and the system's"
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the distortions")
    parser.add_argument("--workers", type=int, help="number of processes; all cores if not given")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    make_glyphs(
        options.output,
        scripts=options.scripts,
        letters=options.letters,
        drawings=options.drawings,
        fonts=options.fonts,
        seed=options.seed,
        workers=options.workers,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
