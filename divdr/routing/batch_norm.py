"""Batch normalisation of maps that only some images, on only some processes, come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def tie(outputs: Sequence[Tensor], left_out: Sequence[Tensor] = ()) -> list[Tensor]:
    """Outputs of which each leads back to all, and to what was left out, with weight zero.

    Where several processes train, a head may ignore some of the maps; their parameters still get
    a gradient, of zero.

    Args:
        outputs: maps of any shapes, (N, C, H, W) each.
        left_out: numbers without dimensions that are zero already.
    """
    anchors = list(left_out)
    if several_processes() and any(output.requires_grad for output in outputs):
        anchors.extend(output.flatten()[0] * 0.0 for output in outputs)
    if not anchors:
        return list(outputs)
    nothing = torch.stack([anchor.float() for anchor in anchors]).sum()
    return [output + nothing.to(output.dtype) for output in outputs]


def process_count() -> int:
    """Number of processes that train together; 1 without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def several_processes() -> bool:
    """Whether this process trains together with others."""
    return process_count() > 1


def from_all_processes(own: Tensor) -> Tensor:
    """(D,) of this process → (P, D) those of all P, by rank; a collective call of equal lengths."""
    if not several_processes():
        return own[None]
    parts = own.new_empty(process_count(), len(own))
    dist.all_gather(list(parts.unbind()), own)
    return parts


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that also trains where a batch has a single value per channel.

    A cell may be reached by one image of a batch alone, and its coarsest map may be one pixel: a
    variance does not exist there, so that the running statistics serve.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


class SynchronisedBatchNorm(BatchNorm):
    """:class:`BatchNorm` over the images of all processes, any of which may have none.

    ``nn.SyncBatchNorm`` does the same where every process has images. Where none has any it pulls
    the running statistics towards zero, a single value over all processes makes them NaN, and in
    half precision a process with an empty map sends numbers of another size than the others. Here
    the result, its gradients and the running statistics are those of one process with all images,
    whatever the processes' shares: statistics travel in float32 (float64 for such maps), a batch
    without a variance is normalised by the running statistics, and leaves them as they are. It
    runs on any device, and the host waits for nothing.

    In training every process of the group has to call it, with (0, C, H, W) if need be.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape; in training a collective call."""
        if not (self.training and several_processes()):
            return super().forward(x)
        self._check_input_dim(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        y, mean, var, count = _Synchronised.apply(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.eps
        )
        with torch.no_grad():
            usable = count > 1
            # Running variances are unbiased, as those of nn.BatchNorm2d.
            unbiased = torch.where(usable, var * count / (count - 1).clamp_min(1), var)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += usable
            rate: float | Tensor | None = self.momentum
            if rate is None:  # the mean over all batches, each counting alike
                rate = 1.0 / self.num_batches_tracked.clamp_min(1).to(mean.dtype)
            # Where the batch has no variance both ends are the running statistics themselves.
            self.running_mean += (mean.to(self.running_mean.dtype) - self.running_mean) * rate
            self.running_var += (unbiased.to(self.running_var.dtype) - self.running_var) * rate
        return y


class _Synchronised(torch.autograd.Function):
    """Normalises by the moments of all processes' maps; see :class:`SynchronisedBatchNorm`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The normalised map, and the mean (C,), biased variance (C,) and count that it took."""
        mean, var, count = merge_moments(from_all_processes(moments(x)))
        usable = count > 1
        mean = torch.where(usable, mean, running_mean.to(mean.dtype))
        var = torch.where(usable, var, running_var.to(var.dtype))
        # PyTorch's operators take maps in half precision beside statistics in float32.
        y = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps) if x.numel() else x.clone()
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of map, scale and shift; those of scale and shift of this process's maps."""
        x, weight, mean, var, count = ctx.saved_tensors
        dy = gradients[0]
        if x.numel():
            # As if the statistics were constants: w/σ·dy, Σ dy·x̂ and Σ dy over this process.
            dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            dx, dweight, dbias = dy, torch.zeros_like(weight), torch.zeros_like(weight)
        sums = torch.stack([dbias, dweight]).to(mean.dtype)
        dist.all_reduce(sums)
        if x.numel():
            # The statistics move with the map: − w/σ·(Σ dy + x̂·Σ dy·x̂) / count, as a + b·x. Without
            # a variance the running statistics served, which do not.
            inverse = (var + ctx.eps).rsqrt()
            share = torch.where(count > 1, weight * inverse / count.clamp_min(1), 0.0)
            slope = share * inverse * sums[1]
            offset = share * sums[0] - slope * mean
            shape = (1, -1, 1, 1)
            dx = dx - torch.addcmul(offset.view(shape), x, slope.view(shape)).to(dx.dtype)
        return dx, dweight, dbias, None, None, None


def moments(x: Tensor) -> Tensor:
    """Mean, biased variance and count of a map's values by channel.

    Args:
        x: (N, C, …), N may be 0.

    Returns:
        (2·C + 1,) in float32, in float64 for a map in float64; zeros for an empty map.
    """
    channels = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    result = torch.zeros(2 * channels + 1, dtype=dtype, device=x.device)
    if x.numel():
        var, mean = torch.var_mean(x.to(dtype), dim=(0, *range(2, x.dim())), correction=0)
        result[:channels], result[channels:-1] = mean, var
        result[-1:].fill_(x.numel() // channels)
    return result


def merge_moments(parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of several maps together.

    Args:
        parts: (P, 2·C + 1), each row as of :func:`moments`.

    Returns:
        Mean (C,), biased variance (C,), both 0 without any value, and count, without dimensions.
    """
    channels = parts.shape[1] // 2
    means, variances, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    count = counts.sum()
    shares = counts / count.clamp_min(1)
    mean = (shares * means).sum(dim=0)
    # Of deviations from the common mean; a difference of squares would cancel.
    var = (shares * (variances + (means - mean).square())).sum(dim=0)
    return mean, var, count


def is_synchronised(module: nn.Module) -> bool:
    """Whether a normalisation below waits for other processes, which must then all run it."""
    return any(
        isinstance(m, SynchronisedBatchNorm) or "SyncBatchNorm" in type(m).__name__
        for m in module.modules()
    )
