"""Mixtures made of finished segmentation models and classifiers by the tool's own program."""

import json
import runpy
import sys
from itertools import islice

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from divdr.data import build_train_loader
from divdr.engine import Trainer, load_config
from divdr.engine.execution_modes import load_trained
from divdr.engine.make_mixture import mixture_config
from divdr.engine.mixture_curve import MixturePoint

FEW = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "4"]


@pytest.fixture
def tool(repository, monkeypatch, training_log):
    """Runs tools/make_mixture.py with arguments."""
    monkeypatch.chdir(repository)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_mixture.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path("tools/make_mixture.py", run_name="__main__")
        if ended.value.code:
            raise ended.value

    return run


def train(config, opts):
    """A finished model: its checkpoint."""
    trainer = Trainer(load_config(config, opts))
    trainer.resume_or_load(resume=False)
    trainer.train()
    return f"{trainer.cfg.OUTPUT_DIR}/model_final.pth"


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def curve(folder):
    found = json.loads((folder / "curve.json").read_text())
    points = [MixturePoint(**point) for point in found["points"]]
    assert (folder / "curve.png").stat().st_size > 5000
    return MixturePoint(**found["finished"]), points


@pytest.fixture
def drawn_scenes(scenes, names_under):
    with names_under(scenes):
        yield


def test_of_a_segmentation_model(drawn_scenes, overrides, tool, tmp_path, capsys, training_log):
    config = "configs/demo/divdr.yaml"
    opts = [*overrides, *FEW]
    finished = train(config, [*opts, "OUTPUT_DIR", str(tmp_path / "finished")])
    folder = tmp_path / "mixture"
    key = "MODEL.SEM_SEG_HEAD.SINGLE_GATE"
    few = ["--experts", 2, "--iterations", 6, "--thresholds", "0,0.2,1", f"{key}.WINDOW", 2]
    given = ["--config-file", config, "--weights", finished, "--output", folder, *few]
    tool(*given, f"{key}.GATE_STAGE", 0.5, f"{key}.CLUSTER_BATCHES", 2, *opts, "SOLVER.MAX_ITER", 6)

    # Everything but gate and experts is the finished model's, bit by bit.
    before, after = weights(finished), weights(folder / "model_final.pth")
    own = {
        name for name in after if (".gate." in name and "sem_seg" in name) or ".experts." in name
    }
    kept = {name.replace("sem_seg_head.base.", "sem_seg_head."): name for name in {*after} - own}
    assert set(kept) == set(before)
    assert all(after[name].equal(before[old]) for old, name in kept.items())
    assert any("running_mean" in name for name in kept)
    start = weights(folder / "start.pth")
    moved = {name for name in own if not after[name].equal(start[name])}
    assert {"sem_seg_head.gate.linear.weight", "sem_seg_head.gate.centres"} <= moved
    assert all(f"sem_seg_head.experts.{k}.predictor.weight" in moved for k in range(2))
    base = "sem_seg_head.base."
    for k in range(2):
        for name in [n for n in start if n.startswith(base)]:
            expert = name.replace(base, f"sem_seg_head.experts.{k}.")
            assert start[expert].equal(start[name])

    for name, iteration in (("gate", 0), ("experts", 3)):
        told = f"Stage '{name}' of the training begins at iteration {iteration}"
        assert training_log.text.count(told) == 1

    # The curve: from all experts to none, where it is the finished model.
    point, points = curve(folder)
    assert [(p.exit, p.threshold) for p in points] == [
        (how, tau) for how in ("anytime", "confidence") for tau in (0.0, 0.2, 1.0)
    ]
    by = {(p.exit, p.threshold): p for p in points}
    for alone in (by["anytime", 1.0], by["confidence", 0.0]):
        assert alone.accuracy == pytest.approx(point.accuracy)
        assert alone.experts == 0
        assert alone.gflops == pytest.approx(point.gflops, rel=0.01)  # and the gate
        assert alone.gflops > point.gflops
    assert by["anytime", 0.0].experts == 2
    assert by["confidence", 1.0].experts == 1
    costs = [by["anytime", tau].gflops for tau in (0.0, 0.2, 1.0)]
    assert costs == sorted(costs, reverse=True)
    table = capsys.readouterr().out
    assert "finished model" in table
    assert table.count("anytime") == 3

    # What evaluation says of the mixture is that point of the curve.
    cfg = load_config(str(folder / "config.yaml"), ["OUTPUT_DIR", str(tmp_path / "again")])
    assert str(folder / "start.pth") == cfg.MODEL.WEIGHTS
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.MODEL.SEM_SEG_HEAD.SINGLE_GATE.THRESHOLD = 1.0
    model = load_trained(cfg)
    results = Trainer.test(cfg, model)
    same = by["confidence", 1.0]
    assert results["sem_seg"]["IoU"] == pytest.approx(same.accuracy["mIoU"])
    head, routing = results["sem_seg_head"], results["routing"]
    assert head["mean_experts"] == 1
    assert routing["real_gflops"] + head["gflops"] == pytest.approx(same.gflops)
    assert routing["real_gflops_with_head"] == pytest.approx(same.gflops)


def test_one_expert_on_all_data_of_a_segmentation_model(drawn_scenes, overrides, tool, tmp_path):
    config = "configs/demo/divdr.yaml"
    cfg = load_config(config, overrides)
    path = tmp_path / "finished.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, path)
    folder, key = tmp_path / "mixture", "MODEL.SEM_SEG_HEAD.SINGLE_GATE"
    given = ["--config-file", config, "--weights", path, "--output", folder, "--experts", 1]
    few = ["--iterations", 4, "--thresholds", "0,1", f"{key}.CLUSTER_BATCHES", 2]
    tool(*given, *few, f"{key}.GATE_STAGE", 1, *overrides, "SOLVER.MAX_ITER", 4)
    _one_expert_answers_every_row(folder)
    start, after = weights(folder / "start.pth"), weights(folder / "model_final.pth")
    name = "sem_seg_head.experts.0.predictor.weight"
    assert not after[name].equal(start[name])
    # The one centre is the mean of all rows, and everything is its own.
    assert after["sem_seg_head.gate.centres"].shape[0] == 1
    assert after["sem_seg_head.gate.fitted"]


def _one_expert_answers_every_row(folder):
    point, points = curve(folder)
    by = {(p.exit, p.threshold): p for p in points}
    assert by["anytime", 0.0].experts == by["confidence", 1.0].experts == 1
    assert by["anytime", 0.0].accuracy == by["confidence", 1.0].accuracy
    assert by["anytime", 0.0].gflops == by["confidence", 1.0].gflops > point.gflops
    assert by["anytime", 1.0].accuracy == pytest.approx(point.accuracy)


def test_of_a_classifier(few_digits, tool, tmp_path, capsys):
    config = "configs/classification/digits_single.yaml"
    data = ["DATASETS.TRAIN", f"('{few_digits[0]}',)", "DATASETS.TEST", f"('{few_digits[1]}',)"]
    opts = [*data, "SOLVER.MAX_ITER", "60", "SOLVER.CHECKPOINT_PERIOD", "60"]
    finished = train(config, [*opts, "OUTPUT_DIR", str(tmp_path / "finished")])
    folder = tmp_path / "mixture"
    given = ["--config-file", config, "--weights", finished, "--output", folder]
    tool(*given, "--experts", 2, "--iterations", 12, "--thresholds", "0,1", *opts[:4])
    point, points = curve(folder)
    by = {(p.exit, p.threshold): p for p in points}
    assert by["anytime", 1.0].accuracy == point.accuracy
    assert point.accuracy["top-1"] > 30
    assert by["anytime", 0.0].experts == 2
    assert by["confidence", 1.0].experts == 1
    assert by["anytime", 0.0].gflops > by["confidence", 1.0].gflops > point.gflops
    folder = tmp_path / "one"
    given[-1] = folder
    tool(*given, "--experts", 1, "--iterations", 12, "--thresholds", "0,1", *opts[:4])
    _one_expert_answers_every_row(folder)


@pytest.mark.parametrize(
    ("finished", "mixture"),
    [
        ("demo/divdr", "demo/single_gate"),
        ("small/divdr_coco_faster_rcnn", "small/single_gate_coco_faster_rcnn"),
    ],
)
def test_configs_are_what_the_tool_writes(finished, mixture, repository):
    kept, made = (
        load_config(str(repository / f"configs/{name}.yaml")) for name in (finished, mixture)
    )
    before = kept.dump()
    assert mixture_config(kept, 5, made.OUTPUT_DIR).dump() == made.dump()
    assert kept.dump() == before


def described(batch):
    """What tells a batch from others: files, and augmentation by a sum of pixels."""
    return [(item["file_name"], int(item["image"].sum())) for item in batch]


def test_start_weights_train_by_train_net(drawn_scenes, overrides, tool, tmp_path, capsys):
    cfg = load_config("configs/demo/divdr.yaml", overrides)
    path = tmp_path / "finished.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, path)
    folder = tmp_path / "mixture"
    given = ["--config-file", "configs/demo/divdr.yaml", "--weights", path, "--output", folder]
    tool(*given, "--start-only", *overrides)
    assert f"tools/train_net.py --config-file {folder}/config.yaml" in capsys.readouterr().out
    few = ["SOLVER.MAX_ITER", "2", "MODEL.SEM_SEG_HEAD.SINGLE_GATE.CLUSTER_BATCHES", "4"]
    written = load_config(str(folder / "config.yaml"), few)
    named = [
        *overrides,
        *few,
        "MODEL.WEIGHTS",
        str(folder / "start.pth"),
        "OUTPUT_DIR",
        str(folder),
    ]
    given = load_config("configs/demo/single_gate.yaml", named)
    seen = {True: [], False: []}

    def note(model, args):
        if model.training:
            seen[torch.is_grad_enabled()].append(described(args[0]))

    for cfg in (written, given):
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        handle = trainer.model.register_forward_pre_hook(note)
        trainer.train()
        handle.remove()
    # Clusters come of a stream of their own, and leave that of training where it was.
    own, other = (build_train_loader(given, seed=given.SEED + more) for more in (0, 1))
    assert seen[True] == 2 * [described(batch) for batch in islice(own, 2)]
    assert seen[False] == 2 * [described(batch) for batch in islice(other, 4)]
    assert seen[True][:2] != seen[False][:2]
    assert (folder / "inference" / "results.json").is_file()


@pytest.fixture
def refused(tool, tmp_path, capsys):
    """The sentence by which the tool refuses."""

    def run(config, path, *pairs):
        given = ["--config-file", config, "--weights", path, "--output", tmp_path / "out"]
        with pytest.raises(SystemExit) as exit_info:
            tool(*given, *pairs)
        assert exit_info.value.code == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ")
        return last

    return run


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("drop_in/retinanet", "no mixture can be made of MODEL.META_ARCHITECTURE RetinaNet"),
        ("drop_in/panoptic_deeplab", "of MODEL.META_ARCHITECTURE PanopticDeepLab"),
        ("drop_in/cascade_mask_rcnn", "not of MODEL.ROI_HEADS.NAME CascadeROIHeads"),
        ("small/coe_coco_faster_rcnn", "not of MODEL.ROI_HEADS.NAME MixtureROIHeads"),
        ("classification/digits_coe", "not of MODEL.CLASSIFIER.NAME build_coe_classifier"),
    ],
)
def test_models_that_cannot_be_made_mixtures(config, told, refused):
    assert told in refused(f"configs/{config}.yaml", "nothing.pth")


def test_weights_that_are_not_the_models(drawn_scenes, overrides, refused, tmp_path):
    config = "configs/demo/divdr.yaml"
    assert "nothing.pth" in refused(config, "nothing.pth", *overrides)
    cfg = load_config(config, [*overrides, "OUTPUT_DIR", str(tmp_path)])
    other = cfg.clone()
    other.MODEL.ROUTING.CHANNELS = 8
    path = tmp_path / "other.pth"
    torch.save({"model": Trainer.build_model(other).state_dict()}, path)
    assert "other.pth" in refused(config, path, *overrides)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, path)
    head = "MODEL.SEM_SEG_HEAD.SINGLE_GATE"
    assert "EXPERTS must be at least 1" in refused(config, path, *overrides, f"{head}.EXPERTS", 0)
    told = refused(config, path, *overrides, "DATASETS.TEST", "()")
    assert "DATASETS.TEST, which names no data set" in told


def test_names_of_the_data_set_are_left_as_they_were(few_digits):
    assert set(few_digits) <= set(DatasetCatalog.list())
    assert MetadataCatalog.get(few_digits[0]).classes[0] == "0"
