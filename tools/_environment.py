"""Imported first by every script: says in one sentence that this Python lacks what they need."""

import sys
from importlib.util import find_spec

missing = [name for name in ("torch", "detectron2", "divdr") if find_spec(name) is None]
if missing:
    print(
        f"error: {sys.executable} has no {' and no '.join(missing)}; run scripts by "
        ".venv/bin/python, which `make setup` makes",
        file=sys.stderr,
    )
    sys.exit(2)
