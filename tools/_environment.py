"""Imported first by every script: what goes wrong before its own code runs, in one sentence.

This Python may lack what the scripts need, and Ctrl-C may come while all of it is imported.
"""

import sys
from importlib.util import find_spec


def _tell(kind, error, traceback):
    if kind is KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _tell
missing = [name for name in ("torch", "detectron2", "divdr") if find_spec(name) is None]
if missing:
    print(
        f"error: {sys.executable} has no {' and no '.join(missing)}; run scripts by "
        ".venv/bin/python, which `make setup` makes",
        file=sys.stderr,
    )
    sys.exit(2)
