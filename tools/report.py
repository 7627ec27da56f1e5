#!/usr/bin/env python
"""Write the HTML report of one or more runs, finished or not.

python tools/report.py --output report.html DR=output/demo/dr DivDR=output/demo/divdr
"""

import argparse
import sys

import _environment  # noqa: F401

from divdr.engine import report_errors
from divdr.errors import ConfigError
from divdr.visualization.report import report_from_runs


@report_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", default="output/report.html")
    parser.add_argument("--title", default="Dynamic routing runs")
    parser.add_argument("--data-root", default="", help="folder of drawn street scenes, if any")
    args = parser.parse_args()
    runs = dict(run.partition("=")[::2] for run in args.runs)
    if not all(runs.values()):
        raise ConfigError("each run is given as NAME=FOLDER")
    print(report_from_runs(args.output, runs, title=args.title, data_root=args.data_root))
    return 0


if __name__ == "__main__":
    sys.exit(main())
