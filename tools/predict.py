#!/usr/bin/env python
"""``divdr predict``: run a trained model on image files.

    python tools/predict.py --config-file output/demo/divdr/config.yaml \\
        --weights output/demo/divdr --output output/predictions PHOTO.jpg FOLDER ...
"""

import sys

import _environment  # noqa: F401

from divdr.verbs import PREDICT

if __name__ == "__main__":
    sys.exit(PREDICT.main())
