#!/usr/bin/env python
"""Compare the network with reference files of the published one; exit 1 beyond the bound.

python tools/check_reference.py tests/data/dynamic_routing_l16_c8_small_gate.npz
"""

import argparse
import sys

import _environment  # noqa: F401

from divdr.command_line import Command, Parser


def options(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE.npz")


def run(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from divdr.modeling.reference import BOUND, check_reference

    passed = True
    for path in args.files:
        check = check_reference(path)
        passed &= check.passed
        rows = [
            (c.name, c.on_route, c.free, c.exact, "ok" if c.passed else "BEYOND")
            for c in check.comparisons
        ]
        headers = ("quantity", "on its route", "free run", "free run, float64", "")
        print(f"{path}: {check.description}")
        print(tabulate(rows, headers=headers, floatfmt=".1e"))
        print("rounding alone changes its route; free runs are not held\n" if check.chaotic else "")
    print(f"errors relative to the largest reference value; bound on its route {BOUND:.0e}")
    return 0 if passed else 1


COMMAND = Command(
    summary="compare the network with reference files of the published one; exit 1 beyond a bound",
    example="tests/data/dynamic_routing_l16_c8_small_gate.npz",
    options=options,
    run=run,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
