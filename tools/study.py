#!/usr/bin/env python
"""Run a study of configs/studies/: trainings over seeds, tables, pictures (docs/guide/studies.md).

    python tools/study.py miniature
    python tools/study.py --list

Finished runs are skipped when it is run again; an interrupted one goes on.
"""

import sys
from pathlib import Path

import _environment  # noqa: F401

from divdr.engine import report_errors
from divdr.studies import main

if __name__ == "__main__":
    sys.exit(report_errors(main)(Path(__file__).resolve().parent.parent))
