"""A stand-in for a GPU: what a program asks of the device that lets the host wait for it."""

import os
import sys

import torch
from torch.overrides import TorchFunctionMode

# What only the host can know once the device has answered.
_ASKED = {
    *("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__format__"),
    *("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount"),
    *("equal", "allclose", "is_nonzero", "__contains__", "repeat_interleave", "new_tensor"),
}
# Functions of a list of numbers, which they bring to the device.
_MADE_OF_NUMBERS = {"tensor", "as_tensor", "new_tensor"}
_CUDA = torch.device("cuda")


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _device_of(value):
    """The device that an argument names, None if it names none."""
    if isinstance(value, torch.device):
        return value.type
    named = isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda")
    return value.split(":")[0] if named else None


class HostWaits(TorchFunctionMode):
    """Tensors from outside are on a device; those that ``cpu()`` gave, new ones without a device
    and what is made of such alone are on the host.

    Copies to the device wait too, unless they are of pinned memory and do not block.

    Attributes:
        waits: names of the functions that let the host wait, in their order.
        places: for each of them, the line of the program that asked, "FILE:LINE".
    """

    def __init__(self):
        super().__init__()
        self.waits = []
        self.places = []
        self._host = {}  # by id, and kept, so that no id comes twice
        self._pinned = {}

    def on_host(self, *tensors):
        """Say that tensors from outside are on the host, as those of a loader are."""
        self._host.update({id(each): each for each in tensors})
        return tensors[0] if len(tensors) == 1 else tensors

    def _wait(self, name):
        self.waits.append(name)
        frame = sys._getframe(2)
        while frame is not None and f"{os.sep}divdr{os.sep}" not in frame.f_code.co_filename:
            frame = frame.f_back
        place = "elsewhere"
        if frame is not None:
            name = frame.f_code.co_filename.rsplit(f"{os.sep}divdr{os.sep}", 1)[1]
            place = f"{name}:{frame.f_lineno}"
        self.places.append(place)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        seen = list(_tensors([*args, *kwargs.values()]))
        on_host = bool(seen) and all(id(each) in self._host for each in seen)
        if func == torch.Tensor.device.__get__:
            return torch.device("cpu") if on_host else _CUDA
        if func == torch.Tensor.is_cuda.__get__:
            return not on_host
        if func == torch.Tensor.is_cpu.__get__:
            return on_host
        if name == "is_pinned":
            return id(args[0]) in self._pinned
        if name == "pin_memory":
            output = args[0].clone()
            self._host[id(output)] = self._pinned[id(output)] = output
            return output
        devices = [_device_of(value) for value in (*args, *kwargs.values())]
        device = next((each for each in devices if each is not None), None)
        if name in ("to", "type_as", "copy_", "cuda") and seen:
            return self._copy(name, args, kwargs, device)
        there = args and isinstance(args[0], torch.Tensor) and not on_host
        brings = name in _MADE_OF_NUMBERS and device == "cuda" and not there
        if brings or (not on_host and self._asks(name, args, seen)):
            self._wait(name)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        args = tuple("cpu" if _device_of(value) == "cuda" else value for value in args)
        output = func(*args, **kwargs)
        made_here = not seen and device in (None, "cpu")
        if name == "cpu" or (on_host and device != "cuda") or made_here:
            output = output.clone() if args and output is args[0] and name == "cpu" else output
            for each in _tensors([output]):
                self._host[id(each)] = each
        return output

    def _asks(self, name, args, seen):
        if name in _ASKED or name == "cpu" or (name == "where" and len(args) == 1):
            return True
        if name not in ("__getitem__", "__setitem__"):
            return False
        key = args[1] if isinstance(args[1], tuple) else (args[1],)
        inside = list(_tensors(key))
        masked = any(each.dtype == torch.bool for each in inside)
        if name == "__setitem__" and masked:
            masked = isinstance(args[2], torch.Tensor) and args[2].numel() != 1
        brought = any(isinstance(each, list) for each in key)
        return masked or brought or any(id(each) in self._host for each in seen)

    def _copy(self, name, args, kwargs, device):
        """Copies, which may cross between host and device."""
        first = args[0]
        source = args[1] if name == "copy_" else first
        from_host = id(source) in self._host
        if name == "copy_":
            to_host = id(first) in self._host
        elif name == "cuda":
            to_host = False
        elif len(args) > 1 and isinstance(args[1], torch.Tensor):
            to_host = id(args[1]) in self._host
        else:
            to_host = from_host if device is None else device == "cpu"
        host_memory = source if from_host else first
        free = (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))) and (
            id(host_memory) in self._pinned
        )
        # PyTorch's own Python has devices of tensors from C++, which knows nothing of this.
        inside = os.path.dirname(torch.__file__) in sys._getframe(2).f_code.co_filename
        if inside and to_host and not from_host:
            return first
        if from_host != to_host and not free:
            self._wait(f"{name} from the {'host' if from_host else 'device'}")
        if name == "copy_":
            return torch.Tensor.copy_(*args, **kwargs)
        if name == "cuda":
            output = first
        else:
            kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
            kept = tuple(value for value in args[1:] if _device_of(value) is None)
            output = (
                getattr(torch.Tensor, name)(first, *kept, **kwargs) if kept or kwargs else first
            )
        if from_host != to_host and output is first:
            output = first.clone()
        if to_host:
            self._host[id(output)] = output
        return output
