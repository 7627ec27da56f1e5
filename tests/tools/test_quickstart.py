"""The notebook's cells run one after the other, and it comes without outputs."""

import json
import os
import subprocess
import sys

# Notebooks have a "display" of their own.
SHOW = "shown = []\ndisplay = shown.append"


def test_the_notebook_runs(repository, tmp_path):
    notebook = json.loads((repository / "docs/guide/quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    code = "\n".join([SHOW, *("".join(cell["source"]) for cell in cells)])
    code += "\nprint(len(shown), 'shown')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=repository / "docs",
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(tmp_path),
            "PYTHONPATH": str(repository),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 shown" in done.stdout
    costs = [float(line.split()[3]) for line in done.stdout.splitlines() if "dial at" in line]
    assert len(costs) == 3
    assert costs[0] < costs[2]
