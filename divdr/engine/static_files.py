"""Static experts in a file that evaluation takes them from."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..checkpoint import read_weights, write_atomically
from ..errors import CheckpointError, ConfigError
from ..inference import Dispatcher, Route, StaticNetwork
from ..modeling import attached_routing
from ..routing import DynamicRoutingNetwork
from .static_experts import StaticExperts


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
