import copy
import io
import pickle
import warnings

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import SemanticSegmentor, build_backbone
from planned import pictures, same_maps

from divdr import add_divdr_config, get_divdr_config
from divdr.errors import ConfigError
from divdr.inference import InferencePlan, Route
from divdr.modeling import DynamicRouting, DynamicRoutingDecoder, attach_routing
from divdr.settings import OpGateSettings

SMALL = {"layers": 3, "scales": 3, "channels": 4}


@pytest.fixture
def planned(monkeypatch):
    """Precisions of the plans that ran, in order."""
    calls = []
    run = InferencePlan.unless_changed

    def counted(plan, *args):
        calls.append(plan.dtype)
        return run(plan, *args)

    monkeypatch.setattr(InferencePlan, "unless_changed", counted)
    return calls


def backbone(**options) -> DynamicRouting:
    model = DynamicRouting(**SMALL, **options)
    for cell in model.network.cells():
        cell.gate.predict.weight.data.normal_(0, 2.0)
    return model.eval()


def agrees(model: DynamicRouting, x: torch.Tensor, bound: float = 1e-4) -> None:
    """What the backbone returns without gradients is what its network returns."""
    with torch.no_grad():
        features = model(x)
        wanted, routing = model.network(x)
    same_maps(features.values(), wanted, bound)
    assert torch.allclose(model.routing.activations, routing.activations, atol=1e-3)


def x() -> torch.Tensor:
    return pictures(2, 33, 47).float()


def test_evaluation_without_gradients_runs_a_plan(planned):
    model = backbone()
    agrees(model, x())
    with torch.inference_mode():
        model(x())
    assert planned == [torch.float32, torch.float32]


def test_training_and_gradients_run_the_network(planned):
    model = backbone()
    model.train()(x())
    features = model.eval()(x())
    features["res2"].sum().backward()
    assert model.network.stem.first[0].weight.grad is not None
    with torch.no_grad():
        model.train()(x())
    assert planned == []


def test_reference_is_a_setting(planned):
    model = backbone(inference="reference")
    with torch.no_grad():
        model(x())
    assert planned == []
    for options in ({"inference": "fast"}, {"inference_dtype": "int8"}):
        with pytest.raises(ValueError, match="known are"):
            DynamicRouting(**SMALL, **options)


def test_keys_of_the_configuration(planned):
    cfg = get_cfg()
    add_divdr_config(cfg)
    assert (cfg.MODEL.ROUTING.INFERENCE, cfg.MODEL.ROUTING.INFERENCE_DTYPE) == ("plan", "float32")
    cfg.MODEL.BACKBONE.NAME = "DynamicRouting"
    cfg.MODEL.DEVICE = "cpu"
    for key in ("LAYERS", "SCALES", "CHANNELS"):
        cfg.MODEL.ROUTING[key] = SMALL[key.lower()]
    cfg.MODEL.ROUTING.INFERENCE_DTYPE = "bfloat16"
    with torch.no_grad():
        features = build_backbone(cfg).eval()(x())
    assert planned == [torch.bfloat16]
    assert features["res2"].dtype == torch.float32
    cfg.MODEL.ROUTING.INFERENCE = "reference"
    with torch.no_grad():
        build_backbone(cfg).eval()(x())
    assert len(planned) == 1


def test_autocast_chooses_the_precision_of_the_plan(planned):
    model = backbone()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(x())
    assert planned == [torch.bfloat16]
    assert features["res2"].dtype == torch.float32
    assert model.routing.activations.dtype == torch.float32


def test_tracing_runs_the_network(planned):
    model = DynamicRouting(layers=1, scales=2, channels=4).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, x(), strict=False, check_trace=False)
        assert planned == []
        same_maps(traced(x()).values(), model(x()).values(), 1e-4)


def test_hooks_inside_the_network_are_still_called(planned):
    model = backbone()
    seen = []
    handle = model.network.layers[1][0].register_forward_hook(lambda *args: seen.append(1))
    with torch.no_grad():
        model(x())
        assert seen == [1]
        assert planned == []
        handle.remove()
        model(x())
    assert planned == [torch.float32]


def test_a_route_can_be_followed_in_evaluation(planned):
    model = backbone()
    route = Route.open(model.space, 0.5).closed(1, 8, "down")
    reference = backbone(inference="reference")
    reference.load_state_dict(model.state_dict())
    for one in (model, reference):
        one.follow(route)
        with torch.no_grad():
            one(x())
        assert one.routing.activations.equal(route.activations.expand(2, -1))
    assert len(planned) == 1
    for given in (route.activations, None):
        model.follow(given)
        reference.follow(given)
        with torch.no_grad():
            same_maps(model(x()).values(), reference(x()).values(), 1e-4)
    reference.follow(route)
    reference.train()(x())
    assert not reference.routing.activations.equal(route.activations.expand(2, -1))


def test_calling_eval_again_keeps_the_plan():
    model = backbone()
    with torch.no_grad():
        model(x())
        held = model._plan._held
        model.eval()(x())
        assert model._plan._held is held
        model.train()
        assert model._plan._held is None


def _train_step(model):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sum(m.mean() for m in model(x()).values()).backward()
    optimizer.step()
    model.eval()


def _statistics(model):
    model.train()
    with torch.no_grad():
        model(x())
    model.eval()


def _edit(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def _edit_data_between_modes(model):
    model.train()
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    model.eval()


def _assign(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


CHANGES = [
    _train_step,
    _statistics,
    _edit,
    _edit_data_between_modes,
    _assign,
    lambda model: model.load_state_dict(backbone().state_dict()),
]


@pytest.mark.parametrize("change", CHANGES)
def test_stale_weights_are_never_used(change):
    model = backbone()
    agrees(model, x())
    with torch.no_grad():
        before = model(x())["res2"].clone()
    change(model)
    agrees(model, x())
    with torch.no_grad():
        assert not model(x())["res2"].allclose(before)


def test_another_precision_is_followed(planned):
    model = backbone()
    agrees(model, x())
    model.double()
    agrees(model, x().double(), 1e-9)
    assert planned == [torch.float32, torch.float64]


def test_a_copied_or_saved_model_has_no_plan_and_the_same_state():
    model = backbone()
    names = set(model.state_dict())
    with torch.no_grad():
        model(x())
    assert set(model.state_dict()) == names == set(DynamicRouting(**SMALL).state_dict())
    assert model._plan._held is not None
    twin = copy.deepcopy(model)
    assert twin._plan is not model._plan
    assert twin._plan._held is None
    file = io.BytesIO()
    torch.save(model, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert loaded._plan._held is None
    assert pickle.loads(pickle.dumps(model))._plan._held is None
    with torch.no_grad():
        twin.network.stem.first[0].weight.mul_(2)
    agrees(twin, x())
    agrees(model, x())
    agrees(loaded, x())


def segmentor() -> SemanticSegmentor:
    features = backbone()
    head = DynamicRoutingDecoder(input_shape=features.output_shape(), num_classes=3)
    return SemanticSegmentor(
        backbone=features,
        sem_seg_head=head,
        pixel_mean=[0.0, 0.0, 0.0],
        pixel_std=[1.0, 1.0, 1.0],
    ).eval()


class _Collect(DatasetEvaluator):
    def reset(self):
        self.found = []

    def process(self, inputs, outputs):
        self.found += [(o["sem_seg"].clone(), o["routing"].real_cost) for o in outputs]

    def evaluate(self):
        return {"found": self.found}


def test_evaluation_of_a_data_set_equals_the_network(planned):
    model = segmentor()
    attach_routing(model, num_experts=2)
    loader = [
        [{"image": image, "height": 40, "width": 50} for image in pictures(2, 40, 50, seed).float()]
        for seed in range(3)
    ]
    model.train()
    found = inference_on_dataset(model, loader, _Collect())["found"]
    assert len(planned) == 3
    assert model.training
    model.backbone._inference = "reference"
    wanted = inference_on_dataset(model, loader, _Collect())["found"]
    assert len(planned) == 3
    for (one, cost), (other, other_cost) in zip(found, wanted, strict=True):
        same_maps([one], [other], 1e-4)
        assert cost.equal(other_cost)


def test_a_config_of_the_package_builds_with_the_keys():
    cfg = get_divdr_config()
    assert cfg.MODEL.ROUTING.INFERENCE == "plan"


def test_a_specialised_plan_by_a_key(planned):
    model = backbone(inference="specialised", inference_images=3)
    for _ in range(2):
        agrees(model, x())
    assert len(planned) == 2
    for images in (x(), pictures(2, 33, 47, 7).float(), pictures(1, 40, 40, 3).float()):
        agrees(model, images)
    assert len(planned) == 2
    model.train().eval()
    agrees(model, x())
    assert len(planned) == 3
    with pytest.raises(ConfigError, match="OP_GATE"):
        backbone(inference="specialised", op_gate=OpGateSettings(name="noisy_top_k"))
