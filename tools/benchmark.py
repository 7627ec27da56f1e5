#!/usr/bin/env python
"""``divdr benchmark``: time ways to run a network beside the published one.

python tools/benchmark.py --json output/benchmark.json --picture output/benchmark.png
python tools/benchmark.py --against MODULE:FUNCTION --closed 0 0.8
python tools/benchmark.py --train --case 4 256 512 --closed 0 0.8
"""

import sys

import _environment  # noqa: F401

from divdr.verbs import BENCHMARK

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
