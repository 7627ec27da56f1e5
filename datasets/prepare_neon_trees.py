#!/usr/bin/env python3
"""Makes a COCO-format data set of trees in airborne photographs; see datasets/README.md."""

from __future__ import annotations

import argparse
import logging
import sys

import _environment  # noqa: F401
from prepared.neon_trees import prepare_neon_trees

from divdr.command_line import report_errors


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="gets a folder 'neon_trees'")
    parser.add_argument("--tile", type=int, default=400, help="size of the tiles in pixels")
    parser.add_argument(
        "--overlap", type=int, default=100, help="least overlap of training tiles in pixels"
    )
    parser.add_argument("--wheel", metavar="FILE", help="DeepForest's wheel, if you have it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_neon_trees(
        options.output, tile=options.tile, overlap=options.overlap, wheel=options.wheel
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
