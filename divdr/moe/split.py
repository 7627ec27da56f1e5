"""A network cut in two at a named node: the layers before, which experts share, and the rest.

The graph is traced by ``torch.fx``, so that any network whose forward does not branch by its values
can be cut: divdr's own, torchvision's, most of timm's.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError


class _Tracer(fx.Tracer):
    """Notes which value every module returned; modules without children are not looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.returned: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # timm's normalisations have children, and train otherwise than they evaluate.
        whole = isinstance(m, _BatchNorm) or not any(True for _ in m.children())
        return whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        value = super().call_module(m, forward, args, kwargs)
        if isinstance(value, fx.Proxy):
            self.returned[path] = value.node
        return value


def split_at(network: nn.Module, node: str) -> tuple[nn.Module, nn.Module]:
    """The layers of a network up to a module, that one included, and those after it.

    Args:
        network: one input, one output; both parts share its weights.
        node: name of a module, as ``named_modules`` has it ("layer2" of a ResNet).

    Returns:
        Two modules whose composition is the network; their parameters are called as in it.

    Raises:
        ConfigError: there is no such module, the network cannot be traced, trains otherwise than by
            its modules, or needs more after the module than what that returned.
    """
    graph, returned = _trace(network, node)
    cut = returned[node]
    before, after = fx.Graph(), fx.Graph()
    upstream = _upstream(cut)
    first: dict[fx.Node, fx.Node] = {}
    second: dict[fx.Node, fx.Node] = {cut: after.placeholder("maps")}
    for each in graph.nodes:
        if each in upstream:
            first[each] = before.node_copy(each, lambda n: first[n])
        if each in upstream and each.op != "get_attr":
            continue
        missing = [n for n in each.all_input_nodes if n not in second]
        if missing:
            raise ConfigError(
                f"the network cannot be split at {node!r}: what follows also needs "
                f"{missing[0].name}"
            )
        second[each] = after.node_copy(each, lambda n: second[n])
    before.output(first[cut])
    return _module(network, before), _module(network, after)


def with_embedding(network: nn.Module) -> tuple[nn.Module, int]:
    """A classifier that also returns what its last linear layer sees (its pre-logits).

    Args:
        network: inputs to logits (N, C); weights are shared with it.

    Returns:
        A module from inputs to (embeddings (N, D), logits (N, C)), and D.

    Raises:
        ConfigError: it has no linear layer, or cannot be traced.
    """
    tracer = _Tracer()
    graph = _traced(tracer, network)
    modules = dict(network.named_modules())
    linear = [
        n for n in graph.nodes if n.op == "call_module" and isinstance(modules[n.target], nn.Linear)
    ]
    if not linear:
        raise ConfigError(f"{type(network).__name__} has no linear layer to embed images by")
    layer = modules[linear[-1].target]
    output = next(n for n in graph.nodes if n.op == "output")
    answer = output.args[0]
    graph.erase_node(output)
    graph.output((linear[-1].args[0], answer))
    return _module(network, graph), layer.in_features


def take_common_weights(expert: nn.Module, base: nn.Module) -> int:
    """Start an expert from a base's weights, wherever name and shape are the same.

    An expert of another depth so takes the blocks that exist in both.

    Returns:
        How many tensors were taken.
    """
    own, theirs = expert.state_dict(), base.state_dict()
    taken = 0
    with torch.no_grad():
        for name, value in own.items():
            if name in theirs and theirs[name].shape == value.shape:
                value.copy_(theirs[name])
                taken += 1
    return taken


def _trace(network: nn.Module, node: str) -> tuple[fx.Graph, dict[str, fx.Node]]:
    names = [name for name, _ in network.named_modules() if name]
    if node not in names:
        near = difflib.get_close_matches(node, names, 3, 0.3) or names[:3]
        raise ConfigError(
            f"the network has no module {node!r} to split at; near are {', '.join(near)}"
        )
    tracer = _Tracer()
    graph = _traced(tracer, network)
    if node not in tracer.returned:
        raise ConfigError(f"the network cannot be split at {node!r}: its forward never calls it")
    return graph, tracer.returned


def _traced(tracer: _Tracer, network: nn.Module) -> fx.Graph:
    """The graph of evaluation, once it is sure that training has the same."""
    training = network.training
    codes = []
    try:
        for mode in (True, False):
            graph = tracer.trace(network.train(mode))
            codes.append([(n.op, str(n.target), str(n.args), str(n.kwargs)) for n in graph.nodes])
    except (TypeError, ValueError, fx.proxy.TraceError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ConfigError(f"{type(network).__name__} cannot be traced ({reason})") from None
    finally:
        network.train(training)
    if codes[0] != codes[1]:
        raise ConfigError(
            f"{type(network).__name__} cannot be split: it trains otherwise than by its modules"
        )
    return graph


def _upstream(node: fx.Node) -> set[fx.Node]:
    """A node, and all that it depends on."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            waiting += each.all_input_nodes
    return found


def _module(network: nn.Module, graph: fx.Graph) -> nn.Module:
    """A graph with the modules that it calls."""
    module = fx.GraphModule(network, graph)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module
