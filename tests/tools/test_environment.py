"""Scripts started with a Python that lacks what they need."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [p for folder in ("tools", "datasets") for p in (ROOT / folder).glob("[a-z]*.py")]
SCRIPTS = sorted(str(p.relative_to(ROOT)) for p in FILES)


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_sentence_says_which_python_to_use(repository, script):
    # Without site packages and without PYTHONPATH.
    command = [sys.executable, "-S", "-E", "-s", script, "--help"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {sys.executable} has no torch and no detectron2 and no divdr; run scripts by "
        ".venv/bin/python, which `make setup` makes\n"
    )
