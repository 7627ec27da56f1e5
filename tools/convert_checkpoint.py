#!/usr/bin/env python
"""``divdr convert``: convert a checkpoint of the published Dynamic Routing code.

    python tools/convert_checkpoint.py published.pth converted.pth \\
        --config-file configs/dr_raw_cityscapes.yaml
"""

import sys

import _environment  # noqa: F401

from divdr.verbs import CONVERT

if __name__ == "__main__":
    sys.exit(CONVERT.main())
