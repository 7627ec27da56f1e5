"""Two processes that train different tasks in the same step."""

from functools import partial
from itertools import chain

import pytest
import torch
from detectron2.utils import comm
from test_two_tasks import BRIEFLY
from two_processes import in_two_processes

from divdr.data import build_train_loader
from divdr.engine import Trainer, load_config
from divdr.modeling import unwrap

CONFIG = "configs/small/routed_two_tasks.yaml"
# Of each process, step by step: both tasks, one alone, both the other way round.
TASKS = ((0, 1, 1), (1, 1, 0))
KEYS = {
    **BRIEFLY,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 3,
    "SOLVER.WEIGHT_DECAY": 0.0,
    "DATASETS.TEST": (),
    # Nothing by chance in the segmentation's loss.
    "MODEL.ROUTED_RESNET.NOISE": 0.0,
    "MODEL.ROUTED_RESNET.BALANCE_WEIGHT": [0.5, 0.5],
}


def configuration(folder):
    pairs = {**KEYS, "OUTPUT_DIR": str(folder)}
    return load_config(CONFIG, [part for pair in pairs.items() for part in pair])


class InTurn(Trainer):
    """Gives this process the tasks that stand above."""

    @classmethod
    def build_train_loader(cls, cfg):
        first = {}
        for batch in build_train_loader(cfg):
            first.setdefault(batch[0]["task"], batch)
            if len(first) == 2:
                break
        return [first[task] for task in TASKS[comm.get_rank()]]


def train(folder, rank):
    trainer = InTurn(configuration(folder))
    before = {name: value.clone() for name, value in weights(trainer).items()}
    batch = trainer.data_loader[0] if rank == 0 else None
    steps = []
    step = trainer.run_step
    trainer.run_step = lambda: (step(), steps.append({**weights(trainer)}))
    trainer.train()
    values = {
        name: [value for value, _ in history.values()]
        for name, history in trainer.storage.histories().items()
        if "loss" in name
    }
    return {"before": before, "steps": steps, "losses": values, "batch": batch}


def weights(trainer):
    return {n: v.detach().clone() for n, v in unwrap(trainer.model).state_dict().items()}


@pytest.fixture(scope="module")
def found(drawn, repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        patch.setenv("DETECTRON2_DATASETS", str(drawn))  # of another process that does not fork
        return in_two_processes(partial(train, str(folder)), folder)


def test_both_processes_have_the_same_weights_after_every_step(found):
    one, other = found
    for mine, theirs in zip(one["steps"], other["steps"], strict=True):
        assert all(value.equal(theirs[name]) for name, value in mine.items())
    after = [one["before"], *one["steps"]]
    for task, learned in ((0, (True, False, True)), (1, (True, True, True))):
        names = [name for name in after[0] if name.startswith(f"tasks.{task}.")]
        for step in range(3):
            moved = any(not after[step + 1][n].equal(after[step][n]) for n in names)
            assert moved == learned[step], (task, step)


def test_a_step_s_gradient_is_the_mean_over_the_processes(found, repository, monkeypatch, tmp_path):
    monkeypatch.chdir(repository)
    one, _ = found
    cfg = configuration(tmp_path)
    model = Trainer.build_model(cfg).train()
    model.load_state_dict(one["before"])
    head = dict(model.tasks[0].sem_seg_head.named_parameters())
    loss = model(one["batch"])["loss_sem_seg"] / 2  # the other process has another task
    gradients = torch.autograd.grad(loss, list(head.values()))
    for name, gradient in zip(head, gradients, strict=True):
        key = f"tasks.0.sem_seg_head.{name}"
        moved = one["before"][key] - one["steps"][0][key]
        torch.testing.assert_close(
            moved, cfg.SOLVER.BASE_LR * gradient, rtol=1e-3, atol=1e-6, msg=name
        )


def test_losses_are_logged_as_means_over_those_that_have_them(found):
    losses = found[0]["losses"]
    assert len(losses["loss_sem_seg"]) == 2  # of three steps
    assert len(losses["loss_cls"]) == len(losses["total_loss"]) == 3
    boxes = ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc")
    balance = ("loss_importance", "loss_load")
    both = sum(losses[name][0] for name in balance)
    first = sum(losses[name][0] for name in chain(boxes, ["loss_sem_seg"]))
    assert losses["total_loss"][0] == pytest.approx(first / 2 + both)
    second = sum(losses[name][1] for name in chain(boxes, balance))
    assert losses["total_loss"][1] == pytest.approx(second)
