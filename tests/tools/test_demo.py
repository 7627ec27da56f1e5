"""The demo and the prediction tool, as the README calls them, in small."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def demo(repository, tmp_path_factory):
    """Folder of a demo with few scenes and iterations (one clustering), and how to run it again."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-W", "ignore", "tools/demo.py", "--output", str(folder / "out")]
    command += ["--data", str(folder / "data"), "--train", "8", "--val", "4", "--iterations", "24"]

    def run() -> subprocess.CompletedProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command, cwd=repository, env=environment, capture_output=True, text=True, check=False
        )

    first = run()
    assert first.returncode == 0, first.stdout + first.stderr
    return folder, first, run


def test_demo_ends_with_a_report_of_both_runs(demo):
    folder, first, _ = demo
    report = folder / "out" / "report.html"
    assert str(report) in first.stdout
    text = report.read_text()
    for name in ("dr", "divdr"):
        results = json.loads((folder / "out" / name / "inference" / "results.json").read_text())
        figures = results["cityscapes_fine_sem_seg_val"]
        assert figures["routing"]["images"] == 4
        assert f"{figures['routing']['inter_experts']:.2f}"[:3] in text
        assert f"{figures['routing']['inter_refit']:.2f}"[:3] in text
    modes = json.loads((folder / "out" / "divdr" / "experts" / "experts.json").read_text())["ways"]
    assert "Dynamic, static, all open" in text
    for mode in modes:
        assert mode["name"] in text
        assert f"{mode['milliseconds']:.1f}" in text
    assert text.count("data:image/png;base64") >= 8
    assert 'src="http' not in text
    with Image.open(folder / "out" / "demo.jpg") as sheet:
        assert sheet.width == 1000


def test_second_run_trains_nothing(demo):
    folder, _, run = demo
    files = [folder / "out" / name / "model_final.pth" for name in ("dr", "divdr")]
    before = [f.stat().st_mtime for f in files]
    again = run()
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("trained and evaluated already") == 2
    assert [f.stat().st_mtime for f in files] == before


def test_predict_saves_overlay_and_route(demo, repository, tmp_path):
    folder, _, _ = demo
    names = []
    for name, image in zip(("china", "flower"), load_sample_images().images, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.jpg")
        names.append(str(tmp_path / f"{name}.jpg"))
    command = [sys.executable, "-W", "ignore", "tools/predict.py", *names]
    command += ["--config-file", "configs/demo/divdr.yaml", "--output", str(tmp_path / "seen")]
    command += ["--weights", str(folder / "out" / "divdr" / "model_final.pth")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "GFLOPs" in done.stdout + done.stderr
    for name in ("china", "flower"):
        picture = np.asarray(Image.open(tmp_path / "seen" / f"{name}_prediction.png"))
        assert picture.shape[1] == 640
        assert picture.shape[0] > 427  # a legend of classes stands below
        assert np.asarray(Image.open(tmp_path / "seen" / f"{name}_route.png")).std() > 0

    command[4] = str(tmp_path / "nowhere.jpg")
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("nowhere.jpg does not exist")
