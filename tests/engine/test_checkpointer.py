import os
import pickle
import time

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from divdr import get_divdr_config
from divdr.checkpoint import is_whole, read_weights
from divdr.engine import RoutingCheckpointer, load_for_evaluation
from divdr.errors import CheckpointError


def model(classes=4, layers=3, stem=64):
    cfg = get_divdr_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "DynamicRouting"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "DynamicRoutingDecoder"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3"]
    cfg.MODEL.ROUTING.LAYERS = layers
    cfg.MODEL.ROUTING.SCALES = 2
    cfg.MODEL.ROUTING.CHANNELS = 4
    cfg.MODEL.ROUTING.STEM_CHANNELS = stem
    return build_model(cfg)


class State:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_what_is_saved_comes_back(tmp_path):
    saved = model()
    RoutingCheckpointer(saved, str(tmp_path), extra=State(7)).save("model_a", iteration=3)
    loaded, extra = model(), State(0)
    rest = RoutingCheckpointer(loaded, str(tmp_path), extra=extra).resume_or_load("", resume=True)
    assert rest["iteration"] == 3
    assert extra.value == 7
    for a, b in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert a.equal(b)


def test_what_gates_are_set_to_comes_back_and_is_no_other_space(tmp_path):
    saved = model()
    network = saved.backbone.network
    saved.backbone.set_gate_threshold(0.25)
    opened = torch.zeros(network.space.num_cells, 3, dtype=torch.bool)
    for node in network.space.cells:
        opened[node.index, 1] = 1 in node.gated
    saved.backbone.fix_route(
        opened, torch.tensor([t in network.space.initial.gated for t in range(3)])
    )
    RoutingCheckpointer(saved, str(tmp_path)).save("model_set")
    other = model()
    load_for_evaluation(other, str(tmp_path / "model_set.pth"))
    assert other.backbone.network.gate_threshold == 0.25
    assert other.backbone.network.fixed_route[0].equal(opened)
    # And a model that is set takes weights that are not.
    RoutingCheckpointer(model(), str(tmp_path)).save("model_plain")
    load_for_evaluation(other, str(tmp_path / "model_plain.pth"))
    assert other.backbone.network.fixed_route is None


def test_a_cut_checkpoint_is_never_resumed_from(tmp_path):
    checkpointer = RoutingCheckpointer(model(), str(tmp_path))
    checkpointer.save("model_1")
    time.sleep(0.02)
    checkpointer.save("model_2")
    whole = (tmp_path / "model_2.pth").read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model_2.pth").write_bytes(whole[:length])
        assert not is_whole(tmp_path / "model_2.pth")
        assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_1.pth")
    (tmp_path / "model_1.pth").write_bytes(b"")
    assert not checkpointer.has_checkpoint()


def test_the_newest_whole_checkpoint_takes_the_place_of_a_cut_one(tmp_path):
    checkpointer = RoutingCheckpointer(model(), str(tmp_path))
    for number, age in ((3, 30), (1, 10), (2, 20)):
        checkpointer.save(f"model_{number}")
        moment = time.time() - age
        os.utime(tmp_path / f"model_{number}.pth", (moment, moment))
    (tmp_path / "last_checkpoint").write_text("model_4.pth")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_1.pth")
    (tmp_path / "last_checkpoint").write_text("model_3.pth\n")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_3.pth")


def test_files_of_weights_alone_and_of_detectron_are_read(tmp_path):
    saved, bare = model(), model()
    torch.save(saved.state_dict(), tmp_path / "bare.pth")
    RoutingCheckpointer(bare).load(str(tmp_path / "bare.pth"))
    for a, b in zip(saved.state_dict().values(), bare.state_dict().values(), strict=True):
        assert a.equal(b)
    with (tmp_path / "zoo.pkl").open("wb") as file:
        pickle.dump({"blobs": {"conv1_w": np.ones(2), "conv1_w_momentum": np.ones(2)}}, file)
    content = RoutingCheckpointer(model())._load_file(str(tmp_path / "zoo.pkl"))
    assert list(content["model"]) == ["conv1_w"]
    assert content["__author__"] == "Caffe2"
    assert content["matching_heuristics"]


def test_an_interrupted_write_leaves_the_file_before(tmp_path, monkeypatch):
    checkpointer = RoutingCheckpointer(model(), str(tmp_path))
    checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def interrupted(content, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    broken = model()
    checkpointer = RoutingCheckpointer(broken, str(tmp_path))
    checkpointer.save("model_good")
    broken.sem_seg_head.predictor.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"predictor\.bias.*last good one stays"):
        checkpointer.save("model_bad")
    assert checkpointer.get_checkpoint_file().endswith("model_good.pth")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"classes": 6}, r"trained for 6 classes, this model has 4"),
        ({"layers": 4}, r"another routing space: only the checkpoint has .*layers\.2\.0\.changes"),
        ({"layers": 2}, r"another routing space: only this model has .*layers\.1\.0\.changes"),
        ({"stem": 8}, r"has 8 channels inside its stem and this model 64: set .*CHANNELS to 8 "),
    ],
)
def test_weights_of_another_model_are_refused_in_a_sentence(tmp_path, other, message):
    RoutingCheckpointer(model(**other), str(tmp_path)).save("model_final")
    with pytest.raises(CheckpointError, match=message):
        load_for_evaluation(model(), str(tmp_path / "model_final.pth"))
    with pytest.raises(CheckpointError, match=message):
        RoutingCheckpointer(model(), str(tmp_path)).resume_or_load("", resume=True)


def test_fine_tuning_on_other_classes_starts_the_predictor_anew(tmp_path):
    saved = model(classes=6)
    RoutingCheckpointer(saved, str(tmp_path)).save("model_final")
    tuned = model()
    fresh = tuned.sem_seg_head.predictor.weight.clone()
    RoutingCheckpointer(tuned).resume_or_load(str(tmp_path / "model_final.pth"), resume=False)
    assert tuned.sem_seg_head.predictor.weight.equal(fresh)
    assert tuned.backbone.network.stem.first[0].weight.equal(
        saved.backbone.network.stem.first[0].weight
    )


def test_files_with_more_than_numbers_are_refused(tmp_path):
    torch.save({"model": State(1)}, tmp_path / "object.pth")
    with pytest.raises(CheckpointError, match="damaged or holds more than weights"):
        read_weights(tmp_path / "object.pth")
    with (tmp_path / "object.pkl").open("wb") as file:
        pickle.dump({"model": State(1)}, file)
    with pytest.raises(CheckpointError, match="State"):
        read_weights(tmp_path / "object.pkl")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match=r"set MODEL\.WEIGHTS"):
        load_for_evaluation(model(), "")


def test_model_zoo_pickles_of_arrays_are_read(tmp_path):
    with (tmp_path / "zoo.pkl").open("wb") as file:
        pickle.dump({"model": {"w": np.arange(3.0)}, "__author__": "someone"}, file)
    assert read_weights(tmp_path / "zoo.pkl")["model"]["w"].tolist() == [0, 1, 2]
