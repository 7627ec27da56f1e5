#!/usr/bin/env python
"""``divdr convert``: make a checkpoint small to hand on, or convert one of the published code.

    python tools/convert_checkpoint.py output/mine/model_final.pth small.pth --slim
    python tools/convert_checkpoint.py published.pth converted.pth \\
        --config-file configs/dr_raw_cityscapes.yaml
"""

import sys

import _environment  # noqa: F401

from divdr.verbs import CONVERT

if __name__ == "__main__":
    sys.exit(CONVERT.main())
