"""What makes an expert stronger: PWLU activations (Zhou et al., 2021) and CondConv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .embedding import add_up

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish)


class PWLU(nn.Module):
    """N intervals of equal length between two bounds, and a slope to either side, all learned.

    It is ReLU, and notes the mean and the deviation of what it sees in training, until
    :func:`align` puts the bounds at three deviations around the mean and the function on ReLU
    (the paper's statistic-based realignment); from then on it learns.

    Args:
        channels: C of the maps (N, C, H, W).
        intervals: N.
    """

    aligned: Tensor
    sums: Tensor

    def __init__(self, channels: int, intervals: int = 16) -> None:
        super().__init__()
        self.intervals = intervals
        self.left = nn.Parameter(torch.full((channels,), -3.0))
        self.right = nn.Parameter(torch.full((channels,), 3.0))
        self.values = nn.Parameter(torch.zeros(channels, intervals + 1))
        self.left_slope = nn.Parameter(torch.zeros(channels))
        self.right_slope = nn.Parameter(torch.ones(channels))
        self.register_buffer("aligned", torch.tensor(False))
        # Number, sum and sum of squares of every channel's inputs.
        self.register_buffer("sums", torch.zeros(3, channels, dtype=torch.float64))
        # The same as ``aligned``, so that no forward has to wait for a GPU.
        self._learns = False
        self.register_load_state_dict_post_hook(_restore)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), the same shape."""
        if not self._learns:
            if self.training:
                self._note(x)
            return F.relu(x)
        channels = x.shape[1]
        left, right = self.left[:, None, None], self.right[:, None, None]
        place = (x - left) / (right - left).clamp_min(1e-6) * self.intervals
        index = place.detach().floor().clamp(0, self.intervals - 1).long()
        first = torch.arange(channels, device=x.device)[:, None, None] * (self.intervals + 1)
        values = self.values.flatten()
        low, high = values[first + index], values[first + index + 1]
        inside = low + (place - index) * (high - low)
        below = self.values[:, 0, None, None] + (x - left) * self.left_slope[:, None, None]
        above = self.values[:, -1, None, None] + (x - right) * self.right_slope[:, None, None]
        return torch.where(x < left, below, torch.where(x > right, above, inside))

    @torch.no_grad()
    def _note(self, x: Tensor) -> None:
        seen = x.double()
        self.sums[0] += x.numel() / x.shape[1]
        self.sums[1] += seen.sum((0, 2, 3))
        self.sums[2] += seen.square().sum((0, 2, 3))

    @torch.no_grad()
    def place_bounds(self) -> None:
        """Put bounds and values by the statistics; where nothing was seen, bounds stay at ±3."""
        number = self.sums[0]
        if bool((number > 0).all()):
            mean = self.sums[1] / number
            deviation = (self.sums[2] / number - mean.square()).clamp_min(0).sqrt().clamp_min(1e-3)
            self.left.copy_(mean - 3 * deviation)
            self.right.copy_(mean + 3 * deviation)
        steps = torch.linspace(0, 1, self.intervals + 1, device=self.left.device)
        grid = self.left[:, None] + (self.right - self.left)[:, None] * steps
        self.values.copy_(F.relu(grid))
        self.aligned.fill_(True)
        self._learns = True


def _restore(function: PWLU, incompatible_keys: object) -> None:
    function._learns = bool(function.aligned)


def align(functions: Iterable[PWLU]) -> None:
    """Realign by what all processes have seen; a collective call."""
    for function in functions:
        add_up(function.sums)
        function.place_bounds()


def with_pwlu(model: nn.Module, intervals: int, shape: Sequence[int]) -> nn.Module:
    """Replace a network's activations by PWLUs, in place.

    Those of maps of one pixel stay (squeeze and excitation, or after pooling), and those that see
    maps of several numbers of channels.

    Args:
        model: any network.
        intervals: N.
        shape: (C, H, W) of an image.

    Raises:
        ConfigError: N is below 1, or the network has no such activation.
    """
    if intervals < 1:
        raise ConfigError(f"PWLU must be at least 1 interval, not {intervals}")
    seen: dict[str, set[tuple[int, ...]]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, _ACTIVATIONS):
            shapes = seen.setdefault(name, set())

            def note(module: nn.Module, args: tuple, shapes: set = shapes) -> None:
                shapes.add(tuple(args[0].shape))

            handles.append(module.register_forward_pre_hook(note))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    replaced = 0
    for name, shapes in seen.items():
        channels = {s[1] for s in shapes if len(s) == 4 and s[2] * s[3] > 1}
        if len(channels) != 1 or not all(len(s) == 4 and s[2] * s[3] > 1 for s in shapes):
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PWLU(channels.pop(), intervals))
        replaced += 1
    if not replaced:
        raise ConfigError(f"{type(model).__name__} has no activation that PWLU could replace")
    return model


class CondConv2d(nn.Module):
    """Σ r_k W_k, with r = sigmoid(linear(pooled input)) for each image, then one convolution.

    Args:
        like: the convolution whose sizes it takes; it has no bias and pads with zeros.
        kernels: K.
    """

    def __init__(self, like: nn.Conv2d, kernels: int) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = like.stride, like.padding, like.dilation
        self.groups = like.groups
        self.shape = like.weight.shape
        self.weight = nn.Parameter(torch.empty(kernels, *self.shape))
        for kernel in self.weight:
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")
        self.route = nn.Linear(like.in_channels, kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        count = len(x)
        mixed = self.route(x.mean(dim=(2, 3))).sigmoid() @ self.weight.flatten(1)
        # All images in one call, each as groups of its own.
        output = F.conv2d(
            x.flatten(0, 1)[None],
            mixed.view(count * self.shape[0], *self.shape[1:]),
            None,
            self.stride,
            self.padding,
            self.dilation,
            count * self.groups,
        )
        return output[0].unflatten(0, (count, self.shape[0]))


def with_condconv(model: nn.Module, kernels: int) -> nn.Module:
    """Replace a network's convolutions by mixtures of K kernels, in place.

    The first, which sees the image, stays, and so do convolutions with a bias: those of squeeze and
    excitation.

    Args:
        model: any network.
        kernels: K; 4 in Collaboration of Experts.

    Raises:
        ConfigError: K is below 1, or the network has no such convolution.
    """
    if kernels < 1:
        raise ConfigError(f"CONDCONV must be at least 1 kernel, not {kernels}")
    found = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)][1:]
    replaced = 0
    for name in found:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        old = getattr(owner, child)
        if old.bias is None and old.padding_mode == "zeros":
            setattr(owner, child, CondConv2d(old, kernels))
            replaced += 1
    if not replaced:
        raise ConfigError(f"{type(model).__name__} has no convolution that CondConv could replace")
    return model
