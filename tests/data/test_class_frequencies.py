"""Class weights from label files, counted by hand."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from divdr.config import get_divdr_config
from divdr.data import class_frequencies, count_classes, register_segmentation_folder
from divdr.errors import DataError

# Three label files: 12 pixels of classes 0 to 2, 2 ignored ones; class 3 has none.
LABELS = ([[0, 0, 1], [0, 1, 255]], [[0, 0, 0], [0, 0, 255]], [[2, 0]])
PIXELS = [9, 2, 1, 0]
SHOWN_IN = [12, 5, 2, 0]  # of the files with 5, 5 and 2 labelled pixels


@pytest.fixture
def cfg(tmp_path, names_under):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number, labels in enumerate(LABELS):
        array = np.array(labels, np.uint8)
        Image.fromarray(array).save(tmp_path / "labels" / f"{number}.png")
        Image.fromarray(np.stack([array] * 3, -1)).save(tmp_path / "images" / f"{number}.png")
    with names_under(tmp_path):
        register_segmentation_folder(
            "own", str(tmp_path / "images"), str(tmp_path / "labels"), list("abcd")
        )
        cfg = get_divdr_config()
        cfg.DATASETS.TRAIN, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = ("own",), 4
        cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
        yield cfg


def test_counts_and_weights_are_those_by_hand(cfg):
    found = count_classes(cfg)
    assert (found.pixels, found.shown_in) == (PIXELS, SHOWN_IN)
    # Shares 9/12, 2/5, 1/2: their median is 1/2.
    assert found.weights("median") == pytest.approx([2 / 3, 5 / 4, 1.0, 1.0])
    log = [1 / math.log(1.02 + n / 12) for n in PIXELS[:3]]
    assert found.weights("log") == pytest.approx([*log, 1.0])


def test_counts_once_for_the_same_files(cfg, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    found = count_classes(cfg, str(run))
    with monkeypatch.context() as patched:
        patched.setattr(class_frequencies, "read_labels", None)
        assert count_classes(cfg, str(run)) == found
    kept = run / class_frequencies.FREQUENCIES_FILE
    kept.write_text(kept.read_text()[:20])  # as a run that was killed leaves it
    assert count_classes(cfg, str(run)) == found
    assert json.loads(kept.read_text())["pixels"] == PIXELS
    Image.fromarray(np.full((40, 50), 3, np.uint8)).save(tmp_path / "labels" / "1.png")
    assert count_classes(cfg, str(run)).pixels == [4, 2, 1, 2000]


def test_a_label_that_is_no_class_is_told(cfg, tmp_path):
    Image.fromarray(np.full((2, 3), 9, np.uint8)).save(tmp_path / "labels" / "2.png")
    with pytest.raises(DataError, match=r"2\.png holds 9; classes are 0 to 3"):
        count_classes(cfg)
