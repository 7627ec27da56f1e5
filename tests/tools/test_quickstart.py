"""The notebook's cells run one after the other, and it comes without outputs."""

import json

import forked

# Notebooks have a "display" of their own.
SHOW = "shown = []\ndisplay = shown.append"


def test_the_notebook_runs(repository, tmp_path):
    notebook = json.loads((repository / "docs/guide/quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    code = "\n".join([SHOW, *("".join(cell["source"]) for cell in cells)])
    code += "\nprint(len(shown), 'shown')"
    code = f"import tempfile\ntempfile.tempdir = {str(tmp_path)!r}\n{code}"
    done = forked.run(["-c", code], repository / "docs")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 shown" in done.stdout
    costs = [float(line.split()[3]) for line in done.stdout.splitlines() if "dial at" in line]
    assert len(costs) == 3
    assert costs[0] < costs[2]
