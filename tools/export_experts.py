#!/usr/bin/env python
"""``divdr export``: make K static sub-networks of a trained DivDR model.

    python tools/export_experts.py --config-file configs/demo/divdr.yaml \\
        --weights output/demo/divdr/model_final.pth --output output/demo/experts
"""

import sys

import _environment  # noqa: F401

from divdr.verbs import EXPORT

if __name__ == "__main__":
    sys.exit(EXPORT.main())
