#!/usr/bin/env python3
"""Gets English and German sentences from Debian's package index; see datasets/README.md."""

from __future__ import annotations

import argparse
import logging
import sys

import _environment  # noqa: F401
from prepared.debian_en_de import prepare_debian_en_de

from divdr.command_line import report_errors


@report_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="gets a folder 'debian_en_de'"
    )
    parser.add_argument(
        "--lists",
        default="",
        metavar="DIR",
        help="folder with Translation-en and Translation-de of the index, if you have them",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    prepare_debian_en_de(options.output, options.lists)
    return 0


if __name__ == "__main__":
    sys.exit(main())
