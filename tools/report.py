#!/usr/bin/env python
"""``divdr report``: write the HTML report of one or more runs, finished or not.

python tools/report.py --output report.html DR=output/demo/dr DivDR=output/demo/divdr
"""

import sys

import _environment  # noqa: F401

from divdr.verbs import REPORT

if __name__ == "__main__":
    sys.exit(REPORT.main())
