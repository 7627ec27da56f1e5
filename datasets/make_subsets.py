#!/usr/bin/env python3
"""Generates scenes of known subsets for controlled studies; see datasets/README.md."""

from __future__ import annotations

import argparse
import sys

import _environment  # noqa: F401

from divdr.command_line import report_errors
from drawn.files import available_cores
from drawn.subsets import KINDS, make_subsets


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="gets a folder 'subsets'")
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0], help="what is drawn")
    parser.add_argument(
        "--dial", type=float, default=0.5, help="how hard subsets are to tell apart, 0 to 1"
    )
    parser.add_argument(
        "--nuisance", type=float, default=0.0, help="how much images differ otherwise, 0 to 1"
    )
    parser.add_argument("--subsets", type=int, default=3, help="number of subsets, 2 to 4")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[], help="of the subsets; equal if left out"
    )
    parser.add_argument("--train", type=int, default=600, help="number of training images")
    parser.add_argument("--val", type=int, default=300, help="number of validation images")
    parser.add_argument("--size", type=int, default=64, help="rows and columns in pixels")
    parser.add_argument("--seed", type=int, default=0, help="chooses the scenes")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="number of processes"
    )
    options = parser.parse_args(arguments)
    make_subsets(**{("root" if k == "output" else k): v for k, v in vars(options).items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
