#!/usr/bin/env python
"""``divdr analyse``: look at a trained classifier, without training anew.

python tools/analyse_classifier.py --config-file ... --thresholds 0,0.02,0.08 MODEL.WEIGHTS ...
python tools/analyse_classifier.py --config-file ... --latency 1,64 MODEL.WEIGHTS ...
python tools/analyse_classifier.py --config-file ... --choices FILE.png MODEL.WEIGHTS ...
"""

import sys

import _environment  # noqa: F401

from divdr.verbs import ANALYSE

if __name__ == "__main__":
    sys.exit(ANALYSE.main())
