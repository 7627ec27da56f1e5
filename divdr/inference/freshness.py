"""Whether a module is still as it was: cheap to ask in every forward."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

_Holder = Mapping[str, Tensor | None]


class Fingerprint:
    """What a module looked like at one moment: its layers, their modes and their tensors.

    A change of a tensor is seen by the tensor's identity, version and memory: steps of optimisers,
    ``load_state_dict``, ``to``, edits in place and assignment of ``.data``. One edit leaves no
    trace in PyTorch: in place through ``.data`` (``p.data.mul_(2)``).

    Args:
        module: what to look at.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = [(m, m.training) for m in module.modules()]
        self._children = [
            (m._modules, tuple(m._modules.values())) for m, _ in self._modules if m._modules
        ]
        self._tensors: list[tuple[_Holder, str, Tensor, Tensor, int]] = []
        self._versions: list[tuple[Tensor, int]] = []
        self._sums: list[tuple[Tensor, float]] = []
        for m, _ in self._modules:
            for holder in (m._parameters, m._buffers):
                for name, tensor in holder.items():
                    if tensor is not None:
                        self._note(holder, name, tensor)

    def _note(self, holder: _Holder, name: str, tensor: Tensor) -> None:
        # The alias keeps the memory, so that no other tensor gets its address.
        alias = tensor.detach()
        self._tensors.append((holder, name, tensor, alias, alias.data_ptr()))
        if tensor.is_inference():
            # Tensors made in inference mode count no versions; sums tell most changes.
            self._sums.append((tensor, float(tensor.double().sum())))
        else:
            self._versions.append((tensor, tensor._version))

    def matches(self) -> bool:
        """Whether nothing that can be seen has changed since."""
        return (
            all(m.training == training for m, training in self._modules)
            and all(tuple(now.values()) == then for now, then in self._children)
            and all(
                holder.get(name) is tensor and tensor.data_ptr() == address
                for holder, name, tensor, _, address in self._tensors
            )
            and all(tensor._version == version for tensor, version in self._versions)
            and all(float(tensor.double().sum()) == total for tensor, total in self._sums)
        )

    def is_watched(self) -> bool:
        """Whether somebody's hooks wait for forwards of a layer."""
        return any(m._forward_hooks or m._forward_pre_hooks for m, _ in self._modules)
