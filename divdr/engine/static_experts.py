"""Static experts of a trained DivDR model, from its routes on the training set, and their files."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.optim.lr_scheduler import PolynomialLR
from tqdm import tqdm

from ..checkpoint import read_weights, write_atomically
from ..data import build_train_loader
from ..errors import CheckpointError, ConfigError
from ..inference import Dispatcher, DispatchPlan, Route, StaticNetwork, check_dispatched, vote
from ..modeling import RoutingSupervision, attached_routing, image_keys, static_model
from ..routing import DynamicRoutingNetwork
from ..settings import SolverSettings
from .hooks import routing_records
from .precise_bn import precise_bn_layers, update_precise_bn
from .solver import build_optimizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertSettings:
    """How static experts are made.

    Attributes:
        threshold: share of a cluster's images that must open a gate for it to stay.
        dispatch_layers: layers that all experts share, whose gates tell the expert of an image.
        bn_batches: training batches, of the cluster's images alone, over which BatchNorm statistics
            behind the shared layers are estimated anew; 0 keeps those of the model, in fine-tuning
            too. On the demo that is better by a point of mIoU: the decoder, which all experts
            share, was trained on statistics of all images.
        fine_tune: iterations of training behind the shared layers, on the cluster's images.
        lr_factor: learning rate of that, as a multiple of ``SOLVER.BASE_LR``; it falls to 0.
    """

    threshold: float = 0.5
    dispatch_layers: int = 2
    bn_batches: int = 0
    fine_tune: int = 0
    lr_factor: float = 0.1


@dataclass(frozen=True)
class Gathered:
    """What a trained model's gates do on M images, in evaluation.

    Attributes:
        keys: of the images, as in the activation bank.
        activations: (M, D) gate activations.
        initial: (M, 3) gates of the initial cell.
        values: (M, D) what is clustered: activations, or their logits.
        expert: (M,) ids of the nearest centres.
    """

    keys: list[str]
    activations: Tensor
    initial: Tensor
    values: Tensor
    expert: Tensor


@dataclass(frozen=True)
class StaticExperts:
    """K static sub-networks and who picks one.

    Attributes:
        networks: in evaluation; the first ``dispatcher.layers`` layers are shared by all.
        dispatcher: picks by the gates of these layers.
        images: training images of each.
    """

    networks: list[StaticNetwork]
    dispatcher: Dispatcher
    images: list[int]

    def plan(self, routing: RoutingSupervision, dtype: torch.dtype | None = None) -> DispatchPlan:
        """What the model's backbone can ``run_with``.

        Args:
            routing: attached to the model.
            dtype: precision of the plan.
        """
        return DispatchPlan(
            routing.backbone.network,
            self.networks,
            self.dispatcher,
            gates=routing.clustering.gates,
            dtype=dtype,
        )


def gather(model: nn.Module, loader: Iterable[list[dict]]) -> Gathered:
    """Run a trained model over images and note their routes.

    Args:
        model: with routing attached and experts; its mode is restored.
        loader: batches of dataset dicts.

    Raises:
        ConfigError: the model has no experts, they have no centres, or one early look decides.
    """
    routing = _with_experts(model)
    keys: list[str] = []
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    followed = tqdm(loader, desc="routes", leave=False, disable=None)
    for inputs, record in routing_records(model, routing.backbone, followed):
        values = routing.clustered_values(record)
        keys += image_keys(inputs)
        rows.append((record.activations.cpu(), record.initial.cpu(), values.cpu()))
    activations, initial, values = (torch.cat(part) for part in zip(*rows, strict=True))
    assert routing.experts is not None
    expert = routing.experts.assign(values).cpu()
    return Gathered(keys, activations, initial, values, expert)


def build_static_experts(
    cfg: CfgNode, model: nn.Module, train: Gathered, settings: ExpertSettings
) -> StaticExperts:
    """Make the static experts of a trained model, on its training set.

    Args:
        cfg: the model's configuration.
        model: trained, with routing attached and experts; it is not changed.
        train: its routes on ``cfg.DATASETS.TRAIN``, in evaluation.
        settings: how.

    Raises:
        ConfigError: a setting is out of its range, the model has no experts, or one early look
            decides.
        DataError: the training set cannot be used.
    """
    routing = _with_experts(model)
    assert routing.experts is not None
    count, space = routing.experts.num_experts, routing.backbone.space
    dispatcher = Dispatcher.fit(space, train.values, train.expert, count, settings.dispatch_layers)
    networks, images = [], []
    for number in range(count):
        members = train.expert == number
        images.append(int(members.sum()))
        if not images[-1]:
            logger.warning("Expert %d has no training image: it votes with all", number)
            members = torch.ones_like(members)
        route = vote(space, train.activations[members], train.initial[members], settings.threshold)
        network = StaticNetwork(routing.backbone.network, route)
        names = {k for k, m in zip(train.keys, members.tolist(), strict=True) if m}
        _adapt(cfg, model, network, names, settings)
        networks.append(network.eval())
    return StaticExperts(networks, dispatcher, images)


def _adapt(
    cfg: CfgNode,
    model: nn.Module,
    network: StaticNetwork,
    names: set[str],
    settings: ExpertSettings,
) -> None:
    """Fit what lies behind the shared layers to an expert's own images."""
    own = [
        module
        for cell in network.cells()
        if cell.node.layer >= settings.dispatch_layers
        for module in cell.modules()
    ]
    if not own or not (settings.fine_tune or settings.bn_batches):
        return
    copy = static_model(model, network)
    trained = {id(p) for module in own for p in module.parameters()}
    for parameter in copy.parameters():
        parameter.requires_grad_(id(parameter) in trained)

    def loader(seed: int):
        return build_train_loader(cfg, seed=seed, select=lambda d: image_keys([d])[0] in names)

    if settings.fine_tune:
        optimizer = build_optimizer(cfg, copy)
        for group in optimizer.param_groups:
            group["lr"] *= settings.lr_factor
        trainer = SimpleTrainer(copy, loader(max(0, cfg.SEED) + 2), optimizer)
        schedule = PolynomialLR(optimizer, settings.fine_tune, power=SolverSettings.poly_lr_power)
        _train_only(own, copy, statistics=settings.bn_batches > 0)
        trainer.register_hooks([hooks.LRScheduler(optimizer, schedule)])
        trainer.train(0, settings.fine_tune)
    if settings.bn_batches:
        _train_only(own, copy, statistics=True)
        with EventStorage():  # the passes are no training; nothing of them is logged
            update_precise_bn(copy, loader(max(0, cfg.SEED) + 1), settings.bn_batches)


def _train_only(own: list[nn.Module], model: nn.Module, statistics: bool) -> None:
    """Training mode, but for layers that all experts share and for statistics to be kept."""
    model.train()
    kept = () if statistics else precise_bn_layers(model)
    for module in model.modules():
        if not list(module.children()) and (module not in own or module in kept):
            module.eval()


def _with_experts(model: nn.Module) -> RoutingSupervision:
    routing = attached_routing(model)
    if routing is None or routing.experts is None or not routing.experts.ready:
        raise ConfigError(
            "static experts need a model with local experts: one that was trained with "
            "MODEL.ROUTING.CLUSTERING.ENABLED, and its checkpoint"
        )
    check_dispatched(routing.backbone.network)
    return routing


def save_static_experts(path: str | Path, experts: StaticExperts) -> None:
    """Write static experts and their dispatcher; ``MODEL.ROUTING.STATIC_EXPERTS`` names the file.

    It holds tensors, numbers and strings alone.
    """
    dispatcher = experts.dispatcher
    state = {
        "scales_per_layer": list(experts.networks[0].space.scales_per_layer),
        "dispatch_layers": dispatcher.layers,
        "weight": dispatcher.weight,
        "bias": dispatcher.bias,
        "images": experts.images,
        "experts": [
            {
                "gates": network.route.gates,
                "initial": network.route.initial,
                "weights": network.state_dict(),
            }
            for network in experts.networks
        ],
    }
    write_atomically(path, state)


def load_static_experts(path: str | Path, network: DynamicRoutingNetwork) -> StaticExperts:
    """Read what :func:`save_static_experts` wrote.

    Args:
        path: the file.
        network: the network that the experts were made from.

    Raises:
        CheckpointError: the file is missing, damaged, or belongs to another routing space.
    """
    state = read_weights(path)
    try:
        if tuple(state["scales_per_layer"]) != network.space.scales_per_layer:
            raise CheckpointError(f"{path} belongs to another routing space")
        dispatcher = Dispatcher(state["dispatch_layers"], state["weight"], state["bias"])
        networks = []
        for part in state["experts"]:
            static = StaticNetwork(network, Route(network.space, part["gates"], part["initial"]))
            static.load_state_dict(part["weights"])
            networks.append(static.to(next(network.parameters()).device).eval())
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} holds no static experts of this model ({reason})") from None
    return StaticExperts(networks, dispatcher, state["images"])


def use_static_experts(model: nn.Module, path: str | Path) -> None:
    """Let a trained model run its static experts in evaluation.

    Args:
        model: with routing attached.
        path: file of :func:`save_static_experts`.

    Raises:
        CheckpointError: the file does not fit.
        ConfigError: the model has no routed backbone.
    """
    routing = attached_routing(model)
    if routing is None:
        raise ConfigError("MODEL.ROUTING.STATIC_EXPERTS needs a model with a routed backbone")
    model.eval()
    experts = load_static_experts(path, routing.backbone.network)
    routing.backbone.run_with(experts.plan(routing))
