"""As in tools/: says in one sentence that this Python lacks what the scripts need."""

from pathlib import Path
from runpy import run_path

run_path(str(Path(__file__).resolve().parent.parent / "tools" / "_environment.py"))
