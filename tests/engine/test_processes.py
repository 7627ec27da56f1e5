"""What several processes of a run must do alike, and what each for itself."""

import os
import random
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.evaluation import CityscapesSemSegEvaluator
from detectron2.utils import comm
from PIL import Image
from two_processes import join, start_two

from divdr import get_divdr_config
from divdr.data import ClassFrequencies
from divdr.engine import (
    RoutingCheckpointer,
    SeedHook,
    Trainer,
    class_weights,
    launch,
    load_config,
    partition_hook,
)
from divdr.engine import partition_hook as box_partition
from divdr.engine import trainer as trainer_module
from divdr.engine.partition_hook import PartitionHook
from divdr.engine.setup import together
from divdr.errors import CheckpointError, ConfigError, DataError, DivdrError
from divdr.evaluation import build_task_evaluator, check_evaluators
from divdr.evaluation.checked_evaluators import CheckedSemSegEvaluator
from divdr.modeling import ImageClassifier, SegmentationLoss
from divdr.settings import SegmentationLossSettings


def test_in_two_processes(tmp_path):
    """All of these in the same two."""
    start_two(_process, str(tmp_path))


def _process(rank, folder):
    join(rank, folder)
    _a_checkpoint_missing_on_one_machine_stops_all(rank, folder)
    _what_fails_on_one_process_fails_on_all(rank)
    _data_missing_on_one_machine_stop_all(rank)
    _a_partition_that_one_process_cannot_make_stops_all(rank)
    _running_statistics_are_each_process_own(rank)
    _classes_are_counted_by_one_process_and_weigh_alike(rank)
    _detectron2_knows_which_processes_share_a_machine(rank)
    _no_thread_of_the_group_stays(rank)


def checkpointer(folder):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    return RoutingCheckpointer(trainer_module._distributed(model), folder)


def _a_checkpoint_missing_on_one_machine_stops_all(rank, folder):
    own = f"{folder}/{rank}"
    os.mkdir(own)
    saved = checkpointer(own)
    if rank == 0:
        saved.save("model_0000004")
    dist.barrier()
    with pytest.raises(CheckpointError, match=r"process 0 finds model_0000004.pth.*process 1 none"):
        checkpointer(own).resume_or_load("", resume=True)
    # Weights to start from, of which this machine has its own copy.
    path, there = f"{own}/weights.pth", f"{own}/model_0000004.pth"
    with pytest.raises(CheckpointError, match=r"weights\.pth does not exist$"):
        checkpointer("").load(path)
    words = r"model_0000004\.pth does not exist"
    end = "$" if rank == 1 else r" \(process 1 of 2\)$"
    with pytest.raises(CheckpointError, match=words + end):
        checkpointer("").load(there)
    # The file is there, but cut short on one machine.
    saved.save_to_disk = True
    saved.save("model_0000004")
    if rank == 0:
        with open(there, "r+b") as file:
            file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"damaged .*process 0" if rank else "damaged"):
        checkpointer("").load(there)
    # Both whole: the two go on.
    saved.save("model_0000004")
    dist.barrier()
    checkpointer(own).resume_or_load("", resume=True)


def _what_fails_on_one_process_fails_on_all(rank):
    def read(kind):
        if rank == 1:
            raise kind("file x is missing\nat length")
        return rank

    with pytest.raises(DataError, match=r"^file x is missing" + ("" if rank else " .process 1 of")):
        together(read, DataError)
    with pytest.raises(OSError if rank else DivdrError, match="file x is missing"):
        together(read, OSError)
    assert together(lambda value: value + rank, 3) == 3 + rank


def _classes_are_counted_by_one_process_and_weigh_alike(rank):
    def count(cfg, folder):
        assert rank == 0
        return ClassFrequencies(pixels=[3, 1], shown_in=[4, 2], labels="")

    settings = SegmentationLossSettings(balance="median")
    loss = SegmentationLoss(2, settings=settings)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(class_weights, "count_classes", count)
        cfg = get_divdr_config()
        cfg.DATASETS.TRAIN = ("some_set",)
        class_weights.balance_classes(cfg, loss)
    # Shares 3/4 and 1/2 have the median 5/8.
    assert loss.class_weights.tolist() == pytest.approx([5 / 6, 5 / 4])


def test_alone_an_error_stays_what_it_is():
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        together(fail)
    assert together(int, "3") == 3


def _data_missing_on_one_machine_stop_all(rank):
    def missing(*args):
        if rank == 1:
            raise DataError("no such file")

    class Small(Trainer):
        build_model = classmethod(lambda cls, cfg: torch.nn.Linear(1, 1))
        build_train_loader = classmethod(missing)

    cfg = get_divdr_config()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
    for checked in (missing, lambda cfg: None):
        trainer_module.check_run_data = checked
        with pytest.raises(DataError, match="no such file"):
            Small(cfg)


def _a_partition_that_one_process_cannot_make_stops_all(rank):
    def fails_on(number):
        def fail(*args):
            if rank == number:
                raise DataError("image x cannot be used")
            return torch.zeros(2, 3), torch.ones(2)

        return fail

    model = ImageClassifier.__new__(ImageClassifier)
    hook = PartitionHook(get_divdr_config(), torch.nn.Identity())
    hook.model = model
    partition_hook.hydra_of = lambda model: SimpleNamespace(has_partition=False)
    partition_hook.find_partition = fails_on(0)  # the first process alone looks for it
    with pytest.raises(DataError, match="image x cannot be used"):
        hook.before_train()
    box_partition._own_sums = fails_on(1)
    with pytest.raises(DataError, match="image x cannot be used"):
        box_partition.roi_class_means(get_divdr_config(), torch.nn.Identity(), ["a", "b"])
    box_partition._own_sums = fails_on(None)
    means = box_partition.roi_class_means(get_divdr_config(), torch.nn.Identity(), ["a", "b"])
    assert means.tolist() == [[0.0] * 3] * 2


def _no_thread_of_the_group_stays(rank):
    def threads():
        tasks = Path("/proc/self/task").iterdir()
        return sum("gloo" in (task / "comm").read_text() for task in tasks)

    model = trainer_module._distributed(torch.nn.Linear(1, 1))
    model(torch.ones(1, 1)).sum().backward()
    model.itself = [model]  # as a trainer and its hooks know each other
    del model
    assert threads() > 0
    launch._leave()
    assert threads() == 0


def _running_statistics_are_each_process_own(rank):
    # Broadcast with every forward, they would be those of process 0's batches alone.
    layer = torch.nn.BatchNorm1d(1)
    wrapped = trainer_module._distributed(torch.nn.Sequential(layer))
    mean = 0.0
    for step in range(3):
        value = 10.0 * rank + step
        wrapped(torch.tensor([[value - 1], [value + 1]]))
        mean = 0.9 * mean + 0.1 * value
    assert float(layer.running_mean) == pytest.approx(mean)


def test_processes_draw_different_numbers_and_a_resumed_run_the_same(monkeypatch):
    class At:
        iter = 0

    def drawn(rank, iteration, seed=5):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        hook = SeedHook(seed)
        hook.trainer = At()
        hook.trainer.iter = iteration
        hook.before_step()
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    first = drawn(0, 3)
    assert drawn(0, 3) == first
    for other in (drawn(1, 3), drawn(0, 4), drawn(0, 3, seed=6)):
        assert all(a != b for a, b in zip(first, other, strict=True))


def test_torchrun_waits_as_long_as_detectron2s_launch(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **o: asked.update(o, backend=backend)
    )
    monkeypatch.setattr(launch, "_make_local_groups", lambda size: asked.update(size=size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    launch._join_torchrun("cuda")
    assert asked == {"backend": "gloo", "timeout": timedelta(minutes=30), "size": 4}


@pytest.mark.parametrize(("device", "backend"), [("cuda", "nccl"), ("cpu", "gloo")])
def test_processes_talk_by_what_the_model_runs_on(monkeypatch, tmp_path, device, backend):
    """On a machine with GPUs."""
    asked = []
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **options: asked.append(backend)
    )
    monkeypatch.setattr(launch, "_make_local_groups", lambda size: None)
    monkeypatch.setattr(launch, "main", lambda *args: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda rank: None)
    for name, value in (
        ("LOCAL_RANK", "0"),
        ("LOCAL_WORLD_SIZE", "1"),
        ("TORCHELASTIC_RUN_ID", "a"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    args = default_argument_parser().parse_args(["--num-gpus", "2", "MODEL.DEVICE", device])
    launch.run(args)
    assert asked == [backend]
    # Detectron2's launch asks for no device: its processes see none.
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setattr(
        launch, "launch", lambda *a, **k: asked.append(os.environ["CUDA_VISIBLE_DEVICES"])
    )
    launch.run(args)
    assert asked[1:] == ["" if device == "cpu" else "0,1"]


def _detectron2_knows_which_processes_share_a_machine(rank):
    if hasattr(comm, "create_local_process_group"):
        del comm.create_local_process_group  # which Detectron2 0.6 has not
    launch._make_local_groups(1)
    assert (comm.get_local_size(), comm.get_local_rank()) == (1, 0)
    comm._LOCAL_PROCESS_GROUP = None
    launch._make_local_groups(2)
    assert (comm.get_local_size(), comm.get_local_rank()) == (2, rank)


KINDS = ("sem_seg", "instance", "panoptic_seg")


@pytest.fixture
def cityscapes(tmp_path, request):
    """Three labelled images by the names of Cityscapes; class 2 is in no label."""
    generator = np.random.default_rng(0)
    dicts = []
    for number in range(3):
        trained = generator.choice([0, 1, 255], (8, 16)).astype(np.uint8)
        name = tmp_path / f"town_{number}"
        Image.fromarray(trained).save(f"{name}_gtFine_labelTrainIds.png")
        dicts.append(
            {"file_name": f"{name}_leftImg8bit.png", "height": 8, "width": 16}
            | {"sem_seg_file_name": f"{name}_gtFine_labelTrainIds.png"}
        )
    names = {kind: f"town_{kind}_{request.node.name}" for kind in KINDS}
    for kind, name in names.items():
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(
            evaluator_type=f"cityscapes_{kind}",
            stuff_classes=["road", "sidewalk", "building"],
            thing_classes=["person"],
            ignore_label=255,
            gt_dir=str(tmp_path),
        )
    yield names, dicts
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def test_several_machines_evaluate_cityscapes_classes(cityscapes, tmp_path, monkeypatch):
    names, dicts = cityscapes
    semantic = names["sem_seg"]
    assert [type(e) for e in build_task_evaluator(semantic, str(tmp_path))._evaluators] == [
        CityscapesSemSegEvaluator
    ]
    check_evaluators(names.values())

    with monkeypatch.context() as patch:
        patch.setattr(comm, "get_world_size", lambda: 4)
        patch.setattr(comm, "get_local_size", lambda: 2)
        check_evaluators([semantic])
        evaluator = build_task_evaluator(semantic, str(tmp_path))
        assert [type(e) for e in evaluator._evaluators] == [CheckedSemSegEvaluator]
        for kind in ("instance", "panoptic_seg"):
            with pytest.raises(ConfigError, match=r"on one machine alone: train .* --eval-only"):
                check_evaluators([semantic, names[kind]])
            with pytest.raises(ConfigError, match="on one machine alone"):
                build_task_evaluator(names[kind], str(tmp_path))
        patch.setattr(comm, "get_local_size", lambda: 4)
        check_evaluators(names.values())
    # Counted by hand: intersection and union over pixels that have a label.
    generator = np.random.default_rng(1)
    hits, either = np.zeros(2), np.zeros(2)
    evaluator.reset()
    for item in dicts:
        predicted = generator.integers(0, 3, (8, 16))
        labels = np.asarray(Image.open(item["sem_seg_file_name"]))
        for k in (0, 1):
            hits[k] += ((predicted == k) & (labels == k)).sum()
            either[k] += (((predicted == k) & (labels != 255)) | (labels == k)).sum()
        scores = torch.nn.functional.one_hot(torch.from_numpy(predicted), 3).permute(2, 0, 1)
        evaluator.process([item], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100 * (hits / either).mean())


def test_an_instance_data_set_is_refused_before_anything_is_trained(
    cityscapes, monkeypatch, overrides, repository, names_under, scenes, tmp_path
):
    with names_under(scenes):
        options = [*overrides, "OUTPUT_DIR", str(tmp_path)]
        cfg = load_config(str(repository / "configs/demo/divdr.yaml"), options)
        cfg.DATASETS.TEST = ("cityscapes_fine_instance_seg_val",)
        asked = []
        monkeypatch.setattr(trainer_module, "check_data", lambda cfg, training: asked.append(cfg))
        monkeypatch.setattr("divdr.evaluation.evaluators._on_one_machine", lambda: False)
        with pytest.raises(ConfigError, match="cityscapes_fine_instance_seg_val"):
            Trainer(cfg)
    assert asked == [cfg]
