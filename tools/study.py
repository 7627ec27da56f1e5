#!/usr/bin/env python
"""``divdr study``: run a study of configs/studies/ (docs/guide/studies.md).

python tools/study.py miniature
python tools/study.py --list
"""

import sys

import _environment  # noqa: F401

from divdr.verbs import STUDY

if __name__ == "__main__":
    sys.exit(STUDY.main())
