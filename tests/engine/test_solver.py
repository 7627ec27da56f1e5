import pytest
import torch

from divdr.engine import build_lr_scheduler, build_optimizer, load_config
from divdr.engine.solver import is_gate_parameter
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


@pytest.mark.parametrize(("device", "period", "fused"), [("cpu", 0, True), ("cuda", 1, None)])
def test_steps_of_sgd_by_hand(device, period, fused):
    cfg = load_config("", ["SOLVER.BASE_LR", "0.1", "SOLVER.MOMENTUM", "0.5"])
    cfg.MODEL.DEVICE, cfg.SOLVER.LOSS_CHECK_PERIOD = device, period
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.01, 0.2
    cfg.SOLVER.BIAS_LR_FACTOR = 3.0
    for nesterov in (False, True):
        cfg.SOLVER.NESTEROV = nesterov
        model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(model.weight, 2.0)
        torch.nn.init.constant_(model.bias, 1.0)
        optimizer = build_optimizer(cfg, model)
        assert optimizer.defaults["fused"] is fused
        wanted = []
        for value, rate, decay in ((2.0, 0.1, 0.01), (1.0, 0.3, 0.2)):
            speed = 0.0
            for slope in (4.0, -1.0):
                pull = slope + decay * value
                speed = 0.5 * speed + pull
                value -= rate * (pull + 0.5 * speed if nesterov else speed)
            wanted.append(value)
        for slope in (4.0, -1.0):
            model.weight.grad, model.bias.grad = torch.tensor([[slope]]), torch.tensor([slope])
            optimizer.step()
        assert [float(p.detach()) for p in model.parameters()] == pytest.approx(wanted)


def rates(cfg, count):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warm_up_and_steps_by_hand():
    cfg = load_config("", ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepFactorsLR"])
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 2.0, 10
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 4, 0.2
    # The last step would come after the end.
    cfg.SOLVER.STEPS, cfg.SOLVER.STEP_FACTORS = (6, 8, 12), [0.5, 0.25, 9.0]
    warm = [2.0 * (0.2 + 0.8 * i / 4) for i in range(4)]
    assert rates(cfg, 10) == pytest.approx([*warm, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5])


def test_gates_are_those_of_a_routed_network():
    assert is_gate_parameter("backbone.network.layers.0.1.gate.predict.bias")
    assert is_gate_parameter("backbone.bottom_up.network.initial.gate.reduce.0.weight")
    # A squeeze-and-excitation gate of somebody's head is none.
    assert not is_gate_parameter("roi_heads.gate.fc.weight")
    assert not is_gate_parameter("backbone.network.layers.0.1.ops.skip.weight")


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


def test_other_clipping_is_detectron2s():
    cfg = load_config("", ["SOLVER.BASE_LR", "1.0", "SOLVER.MOMENTUM", "0.0"])
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "value", 2.0
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[7.0, -1.0]])
    build_optimizer(cfg, model).step()
    assert (before - model.weight).detach().flatten().tolist() == pytest.approx([2.0, -1.0])


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
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    assert type(build_optimizer(cfg, small())) is torch.optim.AdamW
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ConfigError, match="LION"):
        build_optimizer(cfg, small())


def test_weights_whose_first_gradient_comes_late_join_the_others():
    cfg = load_config(
        "", ["SOLVER.BASE_LR", "0.1", "SOLVER.MOMENTUM", "0.5", "MODEL.DEVICE", "cpu"]
    )
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    model = torch.nn.ModuleList(torch.nn.Linear(1, 1, bias=False) for _ in range(2))
    for layer in model:
        torch.nn.init.constant_(layer.weight, 2.0)
    optimizer = build_optimizer(cfg, model)
    model[0].weight.grad = torch.tensor([[1.0]])
    optimizer.step()
    model[1].weight.grad = torch.tensor([[3.0]])
    optimizer.step()
    # Steps of 0.1 · 1 and 0.1 · (0.5 · 1 + 1) for the first; one of 0.1 · 3 for the second.
    assert [float(p.detach()) for p in model.parameters()] == pytest.approx([1.75, 1.7])
