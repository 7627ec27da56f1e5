"""Class weights from label files, counted by hand."""

import itertools
import json
import math

import numpy as np
import pytest
from detectron2.data.samplers import RepeatFactorTrainingSampler
from PIL import Image

from divdr.config import get_divdr_config
from divdr.data import (
    build_train_loader,
    class_frequencies,
    count_classes,
    register_segmentation_folder,
    training_dicts,
)
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


def test_images_are_repeated_by_their_rarest_class(cfg):
    shown = class_frequencies.shown_classes(cfg, training_dicts(cfg))
    assert shown == [{0, 1}, {0}, {0, 2}]
    # Class 0 is in all of three images, 1 and 2 in one each: √(0.9 · 3) = 1.643.
    found = class_frequencies.repeat_factors(shown, 0.9)
    assert found == pytest.approx([math.sqrt(2.7), 1.0, math.sqrt(2.7)])
    assert class_frequencies.repeat_factors(shown, 0.9, False) == pytest.approx([2.7, 1.0, 2.7])
    boxes = [{"annotations": [{"category_id": n} for n in classes]} for classes in shown]
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(boxes, 0.9)
    assert found == pytest.approx(theirs.tolist())
    assert class_frequencies.repeat_factors([frozenset(), frozenset({4})], 1.0) == [
        1.0,
        pytest.approx(math.sqrt(2)),
    ]


def test_label_files_draw_rare_classes_more_often_and_exactly_again(cfg, monkeypatch):
    loader = cfg.DATALOADER
    loader.SAMPLER_TRAIN, loader.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 3.0
    loader.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = 0, 1, 2

    def drawn(count, start=0):
        train = build_train_loader(cfg, lambda item: item["file_name"][-5])
        train.batch_sampler.start = start
        return [name for (name,) in itertools.islice(train, count)]

    whole = drawn(700)
    # Factors √3, for class 0 alone, and 3: shares 1.732 / 7.732 and twice 3 / 7.732.
    assert [whole.count(name) / 700 for name in "012"] == pytest.approx(
        [0.388, 0.224, 0.388], abs=0.015
    )
    monkeypatch.setattr(class_frequencies, "read_labels", None)  # they were read
    assert drawn(60, start=40) == whole[40:100]
