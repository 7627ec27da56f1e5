"""Weights that are not the model's: refused for evaluation, reported in training."""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from divdr import get_divdr_config
from divdr.engine import RoutingCheckpointer, load_for_evaluation
from divdr.engine.about import KEY, About, drawing_metadata
from divdr.errors import CheckpointError


class Small(nn.Module):
    """A backbone of 4 weights and statistics, a counter, and a head of 2 weights."""

    def __init__(self, classes=2):
        super().__init__()
        self.backbone = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, classes)
        nn.init.uniform_(self.backbone.weight)


def saved(folder, state, **more):
    torch.save({"model": state, **more}, folder / "weights.pth")
    return str(folder / "weights.pth")


def refused(path, model=None, **more):
    with pytest.raises(CheckpointError) as reported:
        load_for_evaluation(model or Small(), path, **more)
    assert "\n" not in str(reported.value)
    assert path in str(reported.value)
    return str(reported.value).replace(path, "FILE")


def part(state, start):
    return {name: value for name, value in state.items() if name.startswith(start)}


def test_missing_weights_are_counted_and_the_first_named(tmp_path):
    path = saved(tmp_path, part(Small().state_dict(), "head"))
    assert refused(path) == (
        "checkpoint FILE lacks 4 of this model's 6 weights: backbone.weight, backbone.bias, "
        "backbone.running_mean and 1 more"
    )
    one = dict(Small().state_dict())
    del one["head.bias"]
    assert refused(saved(tmp_path, one)).endswith("lacks 1 of this model's 6 weights: head.bias")


def test_nothing_that_fits_is_an_error_in_training_too(tmp_path):
    path = saved(tmp_path, {"encoder.weight": torch.ones(3), "encoder.bias": torch.ones(3)})
    sentence = (
        "checkpoint FILE holds none of this model's 6 weights: it has encoder.weight, "
        "encoder.bias; the model has backbone.weight, backbone.bias, backbone.running_mean and 3 "
        "more"
    )
    assert refused(path) == sentence
    with pytest.raises(CheckpointError, match="holds none of this model's 6 weights"):
        RoutingCheckpointer(Small()).resume_or_load(path, resume=False)


def test_a_backbone_alone_starts_a_training_and_one_line_says_what_is_new(tmp_path, caplog):
    trained, fresh = Small(), Small()
    path = saved(tmp_path, {**part(trained.state_dict(), "backbone"), "fc.weight": torch.ones(1)})
    with caplog.at_level(logging.WARNING, "divdr"):
        RoutingCheckpointer(fresh).resume_or_load(path, resume=False)
    assert fresh.backbone.weight.equal(trained.backbone.weight)
    assert [record.getMessage().replace(path, "FILE") for record in caplog.records] == [
        "checkpoint FILE lacks 2 of this model's 6 weights: head.weight, head.bias; they start "
        "anew",
        "Checkpoint FILE holds weights that this model has not: fc.weight",
    ]


def test_resuming_from_a_checkpoint_that_lacks_weights_is_an_error(tmp_path):
    RoutingCheckpointer(Small(), str(tmp_path)).save("model_1")
    state = part(Small().state_dict(), "head")
    torch.save({"model": state}, tmp_path / "model_1.pth")
    with pytest.raises(CheckpointError, match=r"model_1\.pth lacks 4 of this model's 6 weights"):
        RoutingCheckpointer(Small(), str(tmp_path)).resume_or_load("", resume=True)


def test_counters_and_flags_may_be_younger_than_a_checkpoint(tmp_path, caplog):
    class Flagged(Small):
        def __init__(self):
            super().__init__()
            self.register_buffer("known", torch.tensor(False))

    path = saved(tmp_path, Small().state_dict())
    with caplog.at_level(logging.WARNING, "divdr"):
        load_for_evaluation(Flagged(), path)
    assert caplog.messages == [
        f"Checkpoint {path} lacks counters and flags of this model, which stay as they start: known"
    ]


def test_a_weight_of_two_names_needs_one_of_them(tmp_path):
    class Tied(Small):
        def __init__(self):
            super().__init__()
            self.again = self.head

    trained, loaded = Small(), Tied()
    load_for_evaluation(loaded, saved(tmp_path, trained.state_dict()))
    assert loaded.again.weight.equal(trained.head.weight)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    for value in (float("nan"), float("inf")):
        state = Small().state_dict()
        state["head.weight"][1, 2] = value
        assert "weight 'head.weight' of checkpoint FILE is not finite" in refused(
            saved(tmp_path, state)
        )
    masked = Small()
    masked.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    load_for_evaluation(masked, saved(tmp_path, masked.state_dict()))


def test_usual_prefixes_are_taken_off_and_said(tmp_path, caplog):
    trained, loaded = Small(), Small()
    state = {f"module._orig_mod.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "compiled.pth")
    with caplog.at_level(logging.INFO, "divdr"):
        load_for_evaluation(loaded, str(tmp_path / "compiled.pth"))
    assert loaded.head.weight.equal(trained.head.weight)
    said = " ".join(caplog.messages)
    assert "compiled.pth are those under state_dict" in said
    assert said.endswith("compiled.pth: module._orig_mod.")


def test_a_runs_state_that_does_not_fit_is_a_sentence(tmp_path):
    path = saved(tmp_path, Small().state_dict(), optimizer={"state": {}})
    optimizer = torch.optim.SGD(Small().parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match=r"holds as 'optimizer' does not fit this run"):
        RoutingCheckpointer(Small(), optimizer=optimizer).load(path)


def test_an_address_that_does_not_answer_is_a_sentence():
    with pytest.raises(CheckpointError, match=r"https://zoo\.invalid/R-50\.pkl \(MODEL\.WEIGHTS\)"):
        RoutingCheckpointer(Small()).load("https://zoo.invalid/R-50.pkl")


@pytest.fixture
def sets():
    """Names of data sets of two semantic classes: "road" and "rest", and the other way round."""
    names = {"about_train": ["road", "rest"], "about_other": ["road", "sky"]}
    for name, classes in names.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            stuff_classes=classes, stuff_colors=((1, 2, 3), (4, 5, 6)), ignore_label=255
        )
    yield list(names)
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(**more):
    cfg = get_divdr_config()
    pairs = {"MODEL__META_ARCHITECTURE": "SemanticSegmentor", **more}
    cfg.merge_from_list([p for k, v in pairs.items() for p in (k.replace("__", "."), v)])
    return cfg


def test_a_checkpoint_keeps_classes_colours_and_how_images_come_in(tmp_path, sets):
    trained = About.of(config(INPUT__FORMAT="RGB"), sets[0])
    RoutingCheckpointer(Small(), str(tmp_path), about=[trained]).save("model_final")
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)[KEY]
    assert content["metadata"] == {
        "stuff_classes": ["road", "rest"],
        "stuff_colors": [[1, 2, 3], [4, 5, 6]],
        "ignore_label": 255,
    }
    assert (content["task"], content["image_format"]) == ("semantic segmentation", "RGB")
    there = load_for_evaluation(Small(), str(tmp_path / "model_final.pth"))
    assert there == trained
    metadata = drawing_metadata(config(DATASETS__TEST="('not_there',)"), there)
    assert metadata.stuff_classes == ["road", "rest"]


def test_evaluation_on_other_classes_or_images_is_refused(tmp_path, sets, caplog):
    folder = str(tmp_path)
    RoutingCheckpointer(Small(), folder, about=[About.of(config(), sets[0])]).save("model_final")
    path = str(tmp_path / "model_final.pth")
    load_for_evaluation(Small(), path, about=[About.of(config(), sets[0])])
    load_for_evaluation(Small(), path, about=[About.of(config(), "not_there")])
    other = [About.of(config(), sets[1])]
    assert refused(path, about=other) == (
        "checkpoint FILE was trained on data set 'about_train', whose class 1 is 'rest'; in "
        "'about_other' it is 'sky'"
    )
    for change, words in (
        ({"INPUT__FORMAT": "RGB"}, "was trained with INPUT.FORMAT BGR, and this config has RGB"),
        (
            {"MODEL__PIXEL_STD": [2.0, 1.0, 1.0]},
            "was trained with MODEL.PIXEL_STD [1.0, 1.0, 1.0], and this config has [2.0, 1.0, 1.0]",
        ),
        (
            {"MODEL__META_ARCHITECTURE": "ImageClassifier"},
            "is of a model for semantic segmentation, and this config's model is for image "
            "classification",
        ),
    ):
        reported = refused(path, about=[About.of(config(**change), sets[0])])
        assert reported == f"checkpoint FILE {words}"
    with caplog.at_level(logging.WARNING, "divdr"):
        RoutingCheckpointer(Small(), about=other).resume_or_load(path, resume=False)
    assert "class 1 is 'rest'" in caplog.text


def test_classes_of_another_number_are_counted(sets):
    MetadataCatalog.get("about_more").set(stuff_classes=["road", "rest", "sky"])
    DatasetCatalog.register("about_more", list)
    try:
        reported = About.of(config(), sets[0]).other_classes(About.of(config(), "about_more"))
    finally:
        DatasetCatalog.remove("about_more")
        MetadataCatalog.remove("about_more")
    assert reported.endswith("which has 2 classes; 'about_more' has 3")


def test_without_names_classes_are_numbers_and_foreign_descriptions_count_for_nothing():
    cfg = config(MODEL__SEM_SEG_HEAD__NUM_CLASSES=3, DATASETS__TEST="('not_there',)")
    assert drawing_metadata(cfg, None).stuff_classes == ["0", "1", "2"]
    for content in (None, 3, {}, {"task": 3}, {**About.of(cfg).as_dict(), "metadata": []}):
        assert About.from_dict(content) is None
