"""Taking over the delegator of a collaboration that was trained before."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...checkpoint import find_weights, read_weights
from ...errors import CheckpointError
from ...moe import Collaboration

_PREFIX = "system.delegator."


def read_delegator(path: str, system: Collaboration) -> None:
    """Take extractor and task predictor from a checkpoint, and fix them.

    With subtasks, the expert selector of that collaboration becomes the subtask selector
    (Appendix A.2); the system's own expert selector starts anew.

    Args:
        path: checkpoint of a collaboration without subtasks.
        system: takes the delegator.

    Raises:
        CheckpointError: the file is missing or damaged, holds no delegator, or one that does not
            fit: of other classes, of another size, or of another number of experts than subtasks.
    """
    content = find_weights(read_weights(path))
    weights = {} if content is None else content.weights
    found = {
        name.removeprefix(_PREFIX): value
        for name, value in weights.items()
        if name.startswith(_PREFIX)
    }
    if not found:
        raise CheckpointError(f"checkpoint {path} holds no delegator")
    if any(name.startswith("subtask_selector.") for name in found):
        raise CheckpointError(f"checkpoint {path} is of a collaboration with subtasks itself")
    delegator = system.delegator
    _fill(delegator.extractor, found, "extractor.", path)
    _fill(delegator.task_predictor, found, "task_predictor.", path)
    if delegator.subtask_selector is not None:
        _fill(delegator.subtask_selector, found, "expert_selector.", path)
    system.has_delegator.fill_(True)


def _fill(module: nn.Module, found: Mapping[str, Tensor], prefix: str, path: str) -> None:
    weights = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    own = module.state_dict()
    for name in sorted({*weights, *own}):
        if name not in weights or name not in own or weights[name].shape != own[name].shape:
            theirs = tuple(weights[name].shape) if name in weights else "missing"
            ours = tuple(own[name].shape) if name in own else "missing"
            raise CheckpointError(
                f"the delegator of {path} does not fit this model: {prefix}{name} is {theirs} "
                f"there and {ours} here"
            )
    module.load_state_dict(weights)
