"""A stand-in for a GPU: what a program asks of the device that lets the host wait for it."""

import torch
from torch.overrides import TorchFunctionMode

# What only the host can know once the device has answered.
_ASKED = {"item", "tolist", "nonzero", "unique", "__bool__", "__float__", "__int__", "__index__"}


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


class HostWaits(TorchFunctionMode):
    """Tensors from outside are on a device; those that ``cpu()`` gave, new ones without a device
    and what is made of such alone are on the host.

    Attributes:
        waits: names of the functions that let the host wait, in their order.
    """

    def __init__(self):
        super().__init__()
        self.waits = []
        self._host = {}  # by id, and kept, so that no id comes twice

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        seen = list(_tensors([*args, *kwargs.values()]))
        on_host = bool(seen) and all(id(each) in self._host for each in seen)
        if func == torch.Tensor.device.__get__:
            return torch.device("cpu") if on_host else torch.device("cuda")
        if name == "to" and on_host and any(isinstance(a, torch.device) for a in args):
            return seen[0].clone()
        made_here = not seen and str(kwargs.get("device", "cpu")) == "cpu"
        kwargs = {k: v for k, v in kwargs.items() if k != "device"}
        masks = name == "__getitem__" and any(each.dtype == torch.bool for each in seen[1:])
        mixed = name == "__getitem__" and any(id(each) in self._host for each in seen)
        if not on_host and (name in _ASKED or name == "cpu" or masks or mixed):
            self.waits.append(name)
        output = func(*args, **kwargs)
        if name == "cpu" or on_host or made_here:
            same = isinstance(output, torch.Tensor) and output is args[0]
            output = output.clone() if same else output
            for each in _tensors([output]):
                self._host[id(each)] = each
        return output
