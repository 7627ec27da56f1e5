import pytest
import torch

from divdr.engine import build_lr_scheduler, build_optimizer, load_config
from divdr.errors import ConfigError
from divdr.modeling import DynamicRouting


def small():
    return torch.nn.ModuleDict({"backbone": DynamicRouting(layers=2, scales=2, channels=4)})


def test_gates_have_their_own_learning_rate():
    cfg = load_config("", ["SOLVER.BASE_LR", "0.02", "SOLVER.GATE_LR_FACTOR", "2.5"])
    model = small()
    optimizer = build_optimizer(cfg, model)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rate) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        wanted = 0.05 if ".gate." in name else 0.02
        assert rate[id(parameter)] == pytest.approx(wanted), name


def test_normalisation_decays_as_its_own_key_says():
    cfg = load_config("", ["SOLVER.WEIGHT_DECAY", "0.3", "SOLVER.WEIGHT_DECAY_NORM", "0.02"])
    model = small()
    optimizer = build_optimizer(cfg, model)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    of_norms = {id(p) for m in norms for p in m.parameters()}
    assert len(of_norms) == 2 * len(norms) > 10
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.02 if id(parameter) in of_norms else 0.3), name


def test_the_norm_of_all_gradients_is_clipped():
    cfg = load_config()
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.MOMENTUM = cfg.SOLVER.WEIGHT_DECAY = cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 5.0
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(cfg, model)
    before = [p.detach().clone() for p in model.parameters()]
    model.weight.grad = torch.full((2, 3), 30.0)
    model.bias.grad = torch.full((2,), -40.0)
    optimizer.step()
    moved = torch.cat([(b - p).flatten() for b, p in zip(before, model.parameters(), strict=True)])
    # The step is the gradient, scaled to length 5: √(6·30² + 2·40²) = √8600.
    wanted = torch.tensor([30.0] * 6 + [-40.0] * 2) * 5 / 8600**0.5
    assert moved.allclose(wanted, atol=1e-4)


def test_poly_schedule_by_hand():
    cfg = load_config(
        "",
        [
            "SOLVER.LR_SCHEDULER_NAME",
            "WarmupPolyLR",
            "SOLVER.MAX_ITER",
            "100",
            "SOLVER.WARMUP_ITERS",
            "0",
            "SOLVER.BASE_LR",
            "0.05",
        ],
    )
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.05)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    for iteration in (0, 1, 50, 99):
        assert rates[iteration] == pytest.approx(0.05 * (1 - iteration / 100) ** 0.9)


def test_unknown_schedule():
    cfg = load_config("", ["SOLVER.LR_SCHEDULER_NAME", "Random"])
    with pytest.raises(ConfigError, match="Random"):
        build_lr_scheduler(cfg, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))


def test_adam_by_name():
    cfg = load_config("", ["SOLVER.OPTIMIZER", "ADAM", "SOLVER.BASE_LR", "0.003"])
    optimizer = build_optimizer(cfg, small())
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["lr"] == 0.003
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ConfigError, match="LION"):
        build_optimizer(cfg, small())
