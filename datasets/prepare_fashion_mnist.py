#!/usr/bin/env python3
"""Gets the real Fashion-MNIST; see datasets/README.md."""

from __future__ import annotations

import argparse
import logging
import sys

import _environment  # noqa: F401
from prepared.fashion_mnist import prepare_fashion_mnist

from divdr.command_line import report_errors


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="gets a folder 'fashion_mnist'"
    )
    parser.add_argument(
        "--source",
        choices=("auto", "torchvision", "debian"),
        default="auto",
        help="where to get it; auto tries them in this order",
    )
    parser.add_argument("--deb", default="", metavar="FILE", help="Debian's package, if there")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_fashion_mnist(options.output, options.source, options.deb)
    return 0


if __name__ == "__main__":
    sys.exit(main())
