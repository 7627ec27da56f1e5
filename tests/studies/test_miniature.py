"""The miniature study from its command line: real trainings, tables and pictures."""

import csv
import json

import pytest
import torch
from PIL import Image

from divdr.verbs import STUDY

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def miniature(repository, tmp_path_factory):
    """The study's folder after two calls; the table after the first, which left DivDR out, and when
    DR was trained."""
    output = tmp_path_factory.mktemp("studies")
    arguments = ["miniature", "--seeds", "0", "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        assert STUDY.main([*arguments, "--only", "DR"]) == 0
        folder = output / "miniature"
        before = (folder / "table.md").read_text(), when(folder, "dr")
        assert STUDY.main(arguments) == 0
    return folder, before


def when(folder, variant):
    return (folder / "runs" / variant / "seed_0" / "model_final.pth").stat().st_mtime_ns


def weights(folder, variant):
    return torch.load(folder / "runs" / variant / "seed_0" / "model_final.pth")["model"]


def test_numbers_and_tables_of_all_variants(miniature):
    folder, _ = miniature
    rows = list(csv.DictReader((folder / "table.csv").open(encoding="utf-8")))
    assert [row["variant"] for row in rows] == ["DR", "DivDR"]
    content = json.loads((folder / "results.json").read_text())
    for run, row in zip(content["runs"], rows, strict=True):
        assert run["variant"] == row["variant"]
        assert run["numbers"]["sem_seg.IoU"] == float(row["mIoU [%] mean"])
        # Two clusters of the same activations: the score's and the evaluator's.
        assert run["numbers"]["spread.inter_refit_2"] == pytest.approx(
            run["numbers"]["routing.inter_refit"]
        )
    by_metric = {pair["metric"]: pair for pair in content["pairs"]}
    dr, divdr = (run["numbers"]["spread.inter_refit_2"] for run in content["runs"])
    assert by_metric["spread.inter_refit_2"]["mean"] == pytest.approx(divdr - dr)
    for row in rows:
        assert f"{float(row['mIoU [%] mean']):.2f}" in (folder / "table.md").read_text()


def test_pictures_are_there(miniature):
    folder, _ = miniature
    for name in ("embedding", "nearest_divdr", "sweep", "tradeoff", "progress", "need"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.convert("L").getextrema() != (255, 255), name
    ious = json.loads((folder / "runs" / "divdr" / "seed_0" / "image_ious.json").read_text())
    assert len(ious) == 6
    assert all(0.0 <= iou <= 1.0 for iou in ious.values())
    assert "choosing by image among DR, DivDR" in (folder / "oracle.md").read_text()


def test_runs_share_the_start_and_part_after_the_fork(miniature):
    folder, _ = miniature
    lines = {}
    for variant in ("dr", "divdr"):
        text = (folder / "runs" / variant / "seed_0" / "metrics.json").read_text()
        lines[variant] = {
            json.loads(line)["iteration"]: json.loads(line) for line in text.splitlines()
        }
    dr, divdr = lines["dr"], lines["divdr"]
    assert min(dr) == min(divdr) == 11  # the trunk's last iteration
    assert dr[11] == divdr[11]
    assert "loss_clustering" not in dr[23]
    assert "loss_clustering" in divdr[23]
    ours, theirs = weights(folder, "divdr"), weights(folder, "dr")
    assert any(not torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_study_goes_on_with_what_is_missing(miniature):
    folder, (table, trained) = miniature
    assert "| DR " in table
    assert "| DivDR " not in table
    assert "| DivDR " in (folder / "table.md").read_text()
    assert when(folder, "dr") == trained
