"""Numbers between host and device: there without waiting for it, and back in one go.

Every number that the host asks for makes it wait until the device has done all that came before,
and the device then waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """Values of the host on a device; work that is queued there goes on meanwhile.

    From ordinary memory the copy itself would wait until the device has done all that came before;
    from pinned memory it takes its place in the queue. The allocator keeps that memory until then.

    Args:
        values: on the host.
        device: where they are needed.
    """
    if torch.device(device).type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of any shapes and types on the host, bit by bit, with one wait for the device.

    Those that are on the host already are returned as they are.
    """
    away = [each for each in tensors if each.device.type != "cpu"]
    if not away:
        return list(tensors)
    parts = [each.detach().contiguous().flatten().view(torch.uint8) for each in away]
    packed = torch.cat(parts).cpu().split([len(part) for part in parts])
    # Copied once more, as numbers must lie at multiples of their size.
    found = iter(
        each.clone().view(given.dtype).view(given.shape)
        for each, given in zip(packed, away, strict=True)
    )
    return [each if each.device.type == "cpu" else next(found) for each in tensors]


class HostFact:
    """A fact about a buffer, for which the device is asked again only if the buffer has changed.

    Args:
        ask: the fact, by the buffer; a function of a module, as models are copied and pickled.
    """

    def __init__(self, ask: Callable[[Tensor], bool]) -> None:
        self._ask = ask
        self._seen: tuple[Tensor, int, int] | None = None
        self._fact = False

    def of(self, buffer: Tensor) -> bool:
        """What holds for the buffer now."""
        if buffer.is_inference():  # counts no versions
            return self._ask(buffer)
        address, version = buffer.data_ptr(), buffer._version
        seen = self._seen
        if seen is None or seen[0] is not buffer or seen[1:] != (address, version):
            self._fact = self._ask(buffer)
            self._seen = (buffer, address, version)
        return self._fact


def no_negative(buffer: Tensor) -> bool:
    """Whether no entry is below 0, which stands for what has not been set yet."""
    return bool((buffer >= 0).all())
