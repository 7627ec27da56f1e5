"""Predictors as folders to hand on; nothing here asks the network."""

import json
import re

import forked
import numpy as np
import pytest
import torch
import yaml

import divdr
from divdr.checkpoint import read_weights, write_atomically
from divdr.engine.execution_modes import load_trained
from divdr.errors import CheckpointError, ConfigError
from divdr.inference import Route
from divdr.modeling import DialSetting, attached_routing
from divdr.modeling.cost_dial import CostDial

PICTURE = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def dialled(halves_run, tmp_path_factory):
    """A copy of the run's folder whose checkpoint has a dial."""
    folder = tmp_path_factory.mktemp("dialled")
    content = read_weights(halves_run.MODEL.WEIGHTS)
    settings = [DialSetting(8.0, 0.2, 0.01), DialSetting(0.0, 0.9, 0.04)]
    content["routing"] = {**content["routing"], "dial": CostDial(settings).state_dict()}
    write_atomically(folder / "model_final.pth", content)
    (folder / "config.yaml").write_text(halves_run.dump())
    (folder / "inference").mkdir()
    results = {"halves": {"sem_seg": {"mIoU": 61.25}, "routing": {"real_gflops": 0.0321}}}
    (folder / "inference" / "results.json").write_text(json.dumps(results))
    return folder


def same(one, other):
    a, b = one(PICTURE), other(PICTURE)
    assert a["sem_seg"].equal(b["sem_seg"])
    assert a["routing"].activations.equal(b["routing"].activations)
    assert one.expert(a) == other.expert(b)


def test_a_folder_predicts_as_the_run_does(dialled, tmp_path):
    before = divdr.HubPredictor.from_files(dialled)
    folder = tmp_path / "given"
    assert before.save_pretrained(folder) is None
    names = {"README.md", "config.json", "config.yaml", "model.safetensors"}
    assert {file.name for file in folder.iterdir()} == names
    content = read_weights(folder / "model.safetensors")
    assert "trainer" not in content
    assert content["routing"]["experts"]["bank"] is None
    text = (folder / "config.yaml").read_text()
    assert str(dialled) not in text
    assert yaml.safe_load(text)["MODEL"]["WEIGHTS"] == "model.safetensors"
    folder.rename(tmp_path / "moved")
    after = divdr.HubPredictor.from_pretrained(tmp_path / "moved")
    same(before, after)
    same(divdr.Predictor.from_files(tmp_path / "moved" / "model.safetensors"), after)
    # The dial goes along, and the position that it stands at.
    wide = after(PICTURE)["routing"].activations
    for position in (1.0, 0.0):
        before.turn_dial(position)
        after.turn_dial(position)
        same(before, after)
    assert not after(PICTURE)["routing"].activations.equal(wide)
    after.save_pretrained(tmp_path / "turned")
    same(after, divdr.HubPredictor.from_pretrained(str(tmp_path / "turned")))
    assert after.metadata.stuff_classes == ["dark", "bright"]


def test_the_card_says_what_it_is(dialled, tmp_path):
    predictor = divdr.HubPredictor.from_files(dialled)
    predictor.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "divdr"
    assert head["pipeline_tag"] == "image-segmentation"
    assert {"divdr", "detectron2"} <= set(head["tags"])
    assert "# A divdr model for semantic segmentation" in card
    assert "dark, bright" in card
    assert "8 of" not in card
    assert "8 cells run for it: 3 layers, 4 channels" in card
    assert "2 local experts" in card
    assert "61.25 % mIoU" in card
    assert "0.0321 GFLOPs" in card
    assert re.search(r"0 \(0\.01 GFLOPs.* 1 \(0\.04\)", card)
    # One that somebody wrote stays.
    (tmp_path / "README.md").write_text("mine")
    predictor.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_files_that_the_configuration_names_go_along(halves_run, tmp_path):
    cfg = halves_run.clone()
    model = load_trained(cfg)
    route = Route.open(attached_routing(model).backbone.space).closed(1, 8)
    route.write(tmp_path / "some.json")
    cfg.MODEL.ROUTING.ROUTE = str(tmp_path / "some.json")
    cfg.MODEL.ROUTING.CLUSTERING.ENABLED = False
    made = divdr.engine.Trainer.build_model(cfg)
    torch.save({"model": made.state_dict()}, tmp_path / "w.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "w.pth")
    before = divdr.HubPredictor(cfg)
    before.save_pretrained(tmp_path / "given")
    (tmp_path / "some.json").unlink()
    assert (tmp_path / "given" / "route.json").is_file()
    after = divdr.HubPredictor.from_pretrained(tmp_path / "given", overrides={"SEED": 3})
    assert after.cfg.SEED == 3
    a, b = before(PICTURE), after(PICTURE)
    assert a["sem_seg"].equal(b["sem_seg"])
    # The initial layer has two cells, the next three; the second of these only passes on.
    assert b["routing"].activations[0, 3 * 3 : 3 * 4].tolist() == [0, 0, 0]
    assert (b["routing"].activations[0, 3 * 2 : 3 * 3] > 0).any()


def test_what_it_uploads_is_the_folder(dialled, monkeypatch):
    import huggingface_hub

    seen = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **rest):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **rest):
            seen[repo_id] = sorted(file.name for file in folder_path.iterdir())
            return "address"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    assert divdr.HubPredictor.from_files(dialled).push_to_hub("me/halves") == "address"
    names = ["README.md", "config.json", "config.yaml", "model.safetensors"]
    assert seen == {"me/halves": names}


def test_mistakes_end_in_a_sentence(dialled, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.yaml"):
        divdr.HubPredictor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no folder here"):
        divdr.HubPredictor.from_pretrained(tmp_path / "none" / "at" / "all")
    with pytest.raises(CheckpointError, match="no folder here"):
        divdr.HubPredictor.from_pretrained("me/none", local_files_only=True, cache_dir=tmp_path)
    divdr.HubPredictor.from_files(dialled).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="knows no overide"):
        divdr.HubPredictor.from_pretrained(tmp_path, overide={})
    code = """
import sys
sys.modules["huggingface_hub"] = None
sys.modules.pop("divdr.engine.hub", None)
import divdr
vars(divdr).pop("HubPredictor", None)
divdr.engine.Predictor
try:
    divdr.HubPredictor
except divdr.errors.DivdrError as error:
    print(error)
"""
    done = forked.run(["-c", code], tmp_path)
    assert "pip install huggingface_hub" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
