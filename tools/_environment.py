"""Imported first by every script: what goes wrong before its own code runs, in one sentence.

This Python may lack what the scripts need, and Ctrl-C may come while all of it is imported.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

# What needs the method alone runs without Detectron2.
OF_THE_METHOD = {"train_translation.py", "prepare_debian_en_de.py"}


def _tell(kind, error, traceback):
    if kind is KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _tell
needed = ["torch", "detectron2", "divdr"]
if Path(getattr(sys.modules["__main__"], "__file__", None) or "").name in OF_THE_METHOD:
    needed.remove("detectron2")
missing = [name for name in needed if find_spec(name) is None]
if missing:
    print(
        f"error: {sys.executable} has no {' and no '.join(missing)}; run scripts by "
        ".venv/bin/python, which `make setup` makes",
        file=sys.stderr,
    )
    sys.exit(2)
