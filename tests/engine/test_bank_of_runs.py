"""The activation bank over interrupted, moved and old runs."""

import shutil

import pytest
import torch
from bank_worker import train
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from two_processes import start_two

from divdr.engine import Trainer, load_config
from divdr.errors import ConfigError
from divdr.modeling import attached_routing


def scenes_under(root, name="bank_scenes"):
    """Register the training scenes below a folder, in place of those of before."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    images, labels = (str(root / "cityscapes" / d / "train") for d in ("leftImg8bit", "gtFine"))
    DatasetCatalog.register(name, lambda: load_cityscapes_semantic(images, labels))
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", ignore_label=255, image_dir=images)
    return name


@pytest.fixture
def cfg(scenes, overrides, repository, tmp_path):
    """Config of a tiny network on the scenes' 8 training images, batches of 4."""
    name = scenes_under(scenes)
    words = [*overrides, "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()"]
    words += ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.IMS_PER_BATCH", "4"]
    words += ["TEST.PRECISE_BN.ENABLED", "False"]
    yield load_config(str(repository / "configs/demo/divdr.yaml"), words)
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


def run(cfg, iterations):
    """A trainer that has gone on with the run in OUTPUT_DIR until that iteration."""
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STOP_ITER = 10, iterations
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer


def experts_of(trainer):
    return attached_routing(trainer.model).experts


def test_a_run_that_moves_keeps_its_images(cfg, scenes, tmp_path):
    before = experts_of(run(cfg, 4)).bank
    assert len(before) == 8
    moved = tmp_path / "elsewhere" / "scenes"
    shutil.copytree(scenes, moved)
    scenes_under(moved)
    after = experts_of(run(cfg, 6)).bank
    assert after.keys == before.keys
    assert after.steps.min() >= 2  # an epoch is two iterations
    assert all(key.startswith("bank_scenes/") and "elsewhere" not in key for key in after.keys)


def test_images_that_left_the_training_set_leave_the_bank(cfg, scenes, tmp_path, training_log):
    had = experts_of(run(cfg, 4)).bank.keys
    fewer = tmp_path / "fewer"
    shutil.copytree(scenes, fewer)
    gone = [*fewer.glob("cityscapes/leftImg8bit/train/*/*.png")][:2]
    for file in gone:
        file.unlink()
    scenes_under(fewer)
    kept = experts_of(run(cfg, 6))
    names = {file.name for file in gone}
    assert kept.bank.keys == [key for key in had if key.rsplit("/", 1)[1] not in names]
    assert len(kept.bank) == 6
    assert (
        "Of the checkpoint's 8 activations 2 are of no image of the training set"
        in training_log.text
    )


def test_a_checkpoint_of_before_is_taken_over(cfg, scenes, tmp_path):
    run(cfg, 4)
    file = tmp_path / "run" / "model_final.pth"
    content = torch.load(file, weights_only=True)
    experts = content["routing"]["experts"]
    bank, members = experts["bank"], experts["members"]
    own = dict(zip(members["keys"], members["experts"].tolist(), strict=True))
    rows = dict(zip(bank["keys"], bank["rows"], strict=True))
    # As it was: paths under another folder, full precision, and fewer entries.
    names = {key: key.replace("bank_scenes", "/old/train") for key in rows}
    del bank["former_keys"], experts["agreement"], experts["since_search"]
    for part in (bank, members):
        part["keys"] = [names[key] for key in part["keys"]]
    bank["keys"].append("/old/train/zurich/gone.png")
    bank["rows"] = torch.cat([bank["rows"], bank["rows"][:1]]).float()
    bank["steps"] = torch.cat([bank["steps"], torch.tensor([3])])
    torch.save(content, file)

    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STOP_ITER = 10, 6
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    taken = experts_of(trainer)
    assert taken.bank.keys == sorted(rows)
    assert taken.bank.rows.equal(torch.stack([rows[key] for key in sorted(rows)]).float())
    assert taken.members.of(sorted(own)).tolist() == [own[key] for key in sorted(own)]
    trainer.train()
    assert len(taken.bank) == 8


def test_runs_that_measure_save_no_bank_and_go_on(cfg, tmp_path):
    cfg.MODEL.ROUTING.CLUSTERING.WEIGHT = 0.0

    def saved(folder):
        content = torch.load(folder / "model_final.pth", weights_only=True)
        return content["routing"]["experts"]

    trunk = run(cfg, 4)  # to be continued: its bank is handed on
    assert len(saved(tmp_path / "run")["bank"]["keys"]) == 8
    assert experts_of(trunk).ready
    run(cfg, 0)
    assert saved(tmp_path / "run")["bank"] is None
    assert saved(tmp_path / "run")["centres"] is not None
    # A killed run of that kind: weights and optimiser go on, figures once images are seen again.
    for name in ("model_final.pth", "model_0000008.pth"):
        (tmp_path / "run" / name).unlink()
    weights = {k: v.clone() for k, v in trunk.model.state_dict().items()}
    again = run(cfg, 0)
    assert again.start_iter == 6
    assert len(experts_of(again).bank) == 8
    assert again.storage.history("clustering/inter_experts").values()
    assert any(not v.equal(weights[k]) for k, v in again.model.state_dict().items())


def test_recent_rows_alone(cfg):
    clustering = cfg.MODEL.ROUTING.CLUSTERING
    clustering.BANK, clustering.BANK_ITERATIONS, clustering.PERIOD = "recent", 1, 3
    experts = experts_of(run(cfg, 9))
    # What the last clustering, of iteration 8, left: a batch, all of that iteration.
    assert experts.bank.steps.tolist() == [8] * 4
    assert experts.members.keys == experts.bank.keys


def test_the_latest_rows_of_all_images_stay_however_old(cfg):
    clustering = cfg.MODEL.ROUTING.CLUSTERING
    clustering.BANK, clustering.BANK_ITERATIONS = "latest", 1
    steps = experts_of(run(cfg, 4)).bank.steps
    assert sorted(steps.tolist()) == [2] * 4 + [3] * 4


def test_recent_rows_may_be_as_many_as_experts(cfg):
    clustering = cfg.MODEL.ROUTING.CLUSTERING
    clustering.BANK, clustering.BANK_ITERATIONS, clustering.NUM_EXPERTS = "recent", 1, 4
    assert experts_of(run(cfg, 4)).ready  # batches of four


@pytest.mark.parametrize("bank", ["subset", "exact"])
def test_images_are_evaluated_anew_by_the_backbone_alone(cfg, bank):
    cfg.MODEL.ROUTING.CLUSTERING.BANK = bank
    cfg.MODEL.ROUTING.CLUSTERING.BANK_IMAGES = 3
    trainer = Trainer(cfg)
    modes = []
    head = trainer.model.sem_seg_head
    head.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    trainer.max_iter = 6
    trainer.train()
    experts = experts_of(trainer)
    assert len(experts.bank) == (3 if bank == "subset" else 8)
    assert experts.bank.steps.tolist() == [5] * len(experts.bank)
    assert modes == [True] * 6
    drawn = experts.bank.keys
    trainer._refill_bank()
    assert experts.bank.keys == drawn
    trainer.model.eval()
    with torch.no_grad():
        for inputs in trainer._bank_loader:
            record = trainer.model(inputs)[0]["routing"]
            row = experts.bank.rows[drawn.index(inputs[0]["image_key"])]
            torch.testing.assert_close(row, record.activations[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"BANK": "newest"}, "BANK must be one of latest, recent, subset, exact, not 'newest'"),
        ({"BANK": "recent", "BANK_ITERATIONS": 0}, "BANK_ITERATIONS must be at least 1, not 0"),
        ({"BANK": "recent", "BANK_ITERATIONS": -3}, "BANK_ITERATIONS must be at least 1, not -3"),
        ({"BANK": "recent", "BANK_ITERATIONS": 1, "NUM_EXPERTS": 5}, "1 iterations see 4"),
        ({"BANK": "subset", "BANK_IMAGES": 1}, "at least the number of experts, 2, not 1"),
        ({"BANK": "subset", "BANK_IMAGES": 9, "NUM_EXPERTS": 9}, "holds 8 images"),
    ],
)
def test_settings_that_cannot_be(cfg, words, message):
    for name, value in words.items():
        setattr(cfg.MODEL.ROUTING.CLUSTERING, name, value)
    with pytest.raises(ConfigError, match=message):
        Trainer(cfg)


def test_a_checkpoint_between_clusterings_holds_the_rows_of_all_processes(
    scenes, names_under, overrides, repository, tmp_path, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))  # of processes that do not fork
    words = [*overrides, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "7"]
    words += ["MODEL.ROUTING.CLUSTERING.PERIOD", "4", "TEST.PRECISE_BN.ENABLED", "False"]
    config = str(repository / "configs/demo/divdr.yaml")
    with names_under(scenes):
        start_two(train, str(tmp_path), config, words)

    def saved(name):
        content = torch.load(tmp_path / name, weights_only=True)
        return content["routing"]["experts"], content["model"]

    # Three iterations of one image on each of two processes.
    first = saved("whole/model_0000002.pth")[0]["bank"]
    assert len(first["keys"]) == 6
    for name in ("model_0000005.pth", "model_final.pth"):
        (one, weights), (other, again) = saved(f"whole/{name}"), saved(f"resumed/{name}")
        assert one["bank"]["keys"] == other["bank"]["keys"]
        assert one["bank"]["rows"].equal(other["bank"]["rows"])
        assert one["bank"]["steps"].equal(other["bank"]["steps"])
        assert one["centres"].equal(other["centres"])
        assert all(weights[k].equal(again[k]) for k in weights)
