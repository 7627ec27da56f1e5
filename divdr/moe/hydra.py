"""HydraRes and DynK-Hydra: a shared stem, branches for clusters of classes, and a gater.

DynK-Hydra: "Dynamic top-K ensemble", Complex & Intelligent Systems 2023, Sections 3 and 4. HydraRes
is the same with a fixed K (τ = 0) and without the branches' own loss (α3 = 0).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..routing import BatchNorm, HostFact, no_negative
from ..settings import GatingSettings, HydraSettings
from .choice import above, check_selection, one_hot_choice
from .class_partition import given_partition
from .embedding import check_labels, common_divisors
from .expert_dispatch import Dispatch, Group, restrict, run_groups, scatter_sum
from .gates import PooledGate
from .multiply_adds import each_macs, part_macs
from .resnet import initialise
from .system import Cost, Prediction, loaded_numbers


def chosen_branches(
    settings: GatingSettings, gate_logits: Tensor, threshold: float, *, training: bool
) -> Tensor:
    """(N, nb) bool, the branches that run by the gater's logits (N, nb) (Algorithm 1).

    Args:
        settings: K, and τ of training.
        gate_logits: (N, nb).
        threshold: τ of evaluation.
        training: which τ counts.
    """
    threshold = settings.train_threshold if training else threshold
    return above(gate_logits.float().softmax(1), settings.top_k, threshold).chosen


def check_gating(settings: GatingSettings, branches: int) -> None:
    """See that K and both τ suit the number of branches.

    Raises:
        ConfigError: see :func:`check_selection`.
    """
    check_selection(settings.top_k, settings.threshold, branches)
    check_selection(settings.top_k, settings.train_threshold, branches)


class NeededGroups(NamedTuple):
    """What branches made of the samples of a training batch that need them.

    Attributes:
        chosen: of the samples for which the gater chose them.
        own: of the samples that they learn from for themselves.
    """

    chosen: list[Group]
    own: list[Group]

    @classmethod
    def of(
        cls, branches: Iterable[nn.Module], maps: Tensor, chosen: Tensor, own: Tensor | None
    ) -> NeededGroups:
        """Run every branch once, on the samples that need it for either.

        Args:
            branches: nb modules.
            maps: (N, ...) of the stem.
            chosen: (N, nb) bool, by the gater.
            own: (N, nb) bool, each sample's own branch; None: branches have no loss of their own.
        """
        if own is None:
            return cls(list(run_groups(branches, maps, chosen)), [])
        both = torch.stack([chosen, own]).cpu()  # the only wait for the device
        groups = list(run_groups(branches, maps, chosen | own, both.any(0)))
        return cls(restrict(groups, both[0]), restrict(groups, both[1]))


def own_loss(
    heads: nn.ModuleList, groups: Sequence[Group], labels: Tensor, own: Tensor, nothing: Tensor
) -> Tensor:
    """Eq. 5, summed over the branches: cross-entropy of each one's extra head over all classes.

    The mean of a branch is over its samples in the batch of all processes together.

    Args:
        heads: nb extra heads, vectors to logits.
        groups: of the samples ``own``; of maps the heads see the mean.
        labels: (N,) int64.
        own: (N, nb) bool.
        nothing: 0 with a graph, where no branch has a sample.
    """
    divisors = common_divisors(own.sum(0))
    total = nothing
    for group in groups:
        output = group.output.mean(dim=(2, 3)) if group.output.dim() == 4 else group.output
        logits = heads[group.expert](output).float()
        own_sum = F.cross_entropy(logits, labels[group.rows], reduction="sum")
        total = total + own_sum / divisors[group.expert]
    return total


class Hydra(nn.Module):
    """Runs the stem, asks the gater, runs the branches that it chose, combines and classifies.

    Args:
        stem: inputs to maps; ``nn.Identity()`` where the input is maps already.
        branches: nb modules from the stem's maps to projections of one shape.
        gater: from the stem's maps to logits over the branches.
        channels: of the projections.
        num_classes: C.
        settings: K, τ, loss weights; how many branches there are, ``branches`` says.
        in_channels: of the images.

    Attributes:
        threshold: τ in evaluation; it can be changed at any time.

    Raises:
        ConfigError: K or τ is out of range, or there are more branches than classes.
    """

    partition: Tensor

    def __init__(
        self,
        stem: nn.Module,
        branches: Sequence[nn.Module],
        gater: PooledGate,
        channels: int,
        num_classes: int,
        settings: HydraSettings,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_gating(settings, len(branches))
        if len(branches) > num_classes:
            raise ConfigError(
                f"{len(branches)} branches cannot share {num_classes} classes; every branch needs "
                "one"
            )
        self.stem = stem
        self.branches = nn.ModuleList(branches)
        self.gater = gater
        self.combiner = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            BatchNorm(channels),
            nn.ReLU(inplace=True),
        )
        self.classify = nn.Linear(channels, num_classes)
        specialised = len(branches) if settings.branch_weight > 0 else 0
        self.branch_heads = nn.ModuleList(
            nn.Linear(channels, num_classes) for _ in range(specialised)
        )
        self.settings = settings
        self.threshold = settings.threshold
        #: How branches run in evaluation.
        self.dispatch: Dispatch = run_groups
        self.num_classes = num_classes
        self.in_channels = in_channels
        # -1: no partition has been set yet.
        self.register_buffer("partition", torch.full((num_classes,), -1, dtype=torch.int64))
        self._known = HostFact(no_negative)
        initialise(self)

    def set_partition(self, partition: Tensor) -> None:
        """Say which branch each class (C,) belongs to; checkpoints keep it.

        Raises:
            ConfigError: it does not suit the branches or the classes.
        """
        checked = given_partition(partition.tolist(), len(self.branches))
        if len(checked) != self.num_classes:
            raise ConfigError(
                f"the partition is of {len(checked)} classes; the model has {self.num_classes}"
            )
        self.partition.copy_(checked)

    def check_threshold(self, threshold: float) -> None:
        """See that a τ is one.

        Raises:
            ConfigError: it is not within 0 and 1.
        """
        check_selection(self.settings.top_k, threshold, len(self.branches))

    @property
    def has_partition(self) -> bool:
        """Whether one was set or loaded."""
        return self._known.of(self.partition)

    def forward(self, images: Tensor) -> Prediction:
        """(N, C, H, W) to logits (Eq. 2) and the branches that ran."""
        maps = self.stem(images)
        chosen = self._choose(self.gater(maps), self.threshold)
        groups = list(self.dispatch(self.branches, maps, chosen))
        return Prediction(self.combine(groups, len(images)), chosen)

    def at_thresholds(self, images: Tensor, thresholds: Sequence[float]) -> list[Prediction]:
        """What :meth:`forward` gives at every τ; stem, gater and each branch run once for all."""
        maps = self.stem(images)
        gate_logits = self.gater(maps)
        chosen = [self._choose(gate_logits, threshold) for threshold in thresholds]
        every = torch.stack(chosen)
        groups = list(self.dispatch(self.branches, maps, every.any(0)))
        return [
            Prediction(self.combine(restrict(groups, host), len(images)), own)
            for own, host in zip(chosen, every.cpu(), strict=True)
        ]

    def combine(self, groups: Sequence[Group], count: int) -> Tensor:
        """(count, C) logits from the branches' projections: sum, combiner, pooling, classifier."""
        if not groups:  # an empty batch
            return self.classify.weight.new_zeros((count, self.num_classes))
        combined = self.combiner(scatter_sum(groups, count))
        return self.classify(combined.mean(dim=(2, 3)))

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Eq. 7, term by term, weighted.

        The ensemble's loss reaches the chosen branches and the stem; the choice is hard and the sum
        unweighted, so that it never reaches the gater's own layers. The gater's loss reaches gater
        and stem. A branch's own loss is over the images of its classes, chosen or not, and reaches
        that branch, its extra head and the stem; the mean is over its images in the batch of all
        processes together. A branch that no image needs is not run.

        Args:
            images: (N, C, H, W).
            labels: (N,) int64.

        Raises:
            DataError: a label is no class.
            ConfigError: no partition has been set.
        """
        check_labels(labels, self.num_classes)
        if not self.has_partition:
            raise ConfigError("the model has no class partition yet: call set_partition first")
        settings = self.settings
        branch_of = self.partition[labels]
        maps = self.stem(images)
        gate_logits = self.gater(maps)
        chosen = self._choose(gate_logits, self.threshold)
        own = one_hot_choice(branch_of, len(self.branches))
        groups = NeededGroups.of(self.branches, maps, chosen, own if self.branch_heads else None)
        logits = self.combine(groups.chosen, len(images))
        ensemble = F.cross_entropy(logits.float(), labels)
        losses = {
            "loss_ensemble": settings.ensemble_weight * ensemble,
            "loss_gater": settings.gater_weight * F.cross_entropy(gate_logits.float(), branch_of),
        }
        if self.branch_heads:
            nothing = maps[:0].float().sum()
            found = own_loss(self.branch_heads, groups.own, labels, own, nothing)
            losses["loss_branch"] = settings.branch_weight * found
        return losses

    def _choose(self, gate_logits: Tensor, threshold: float) -> Tensor:
        return chosen_branches(self.settings, gate_logits, threshold, training=self.training)

    def loads(self) -> Cost:
        """Numbers that are loaded for an image; the extra heads are not."""
        return loaded_numbers(self, list(self.branches), self.branch_heads)

    def cost(self, height: int, width: int) -> Cost:
        """Multiply-adds at an image size: stem, gater, combiner and classifier, and each branch.

        The extra heads do not run in evaluation and count nothing.
        """
        stem, shape = part_macs(self.stem, (self.in_channels, height, width))
        gater, _ = part_macs(self.gater, shape)
        _, projection = part_macs(self.branches[0], shape)
        combiner, _ = part_macs(self.combiner, projection)
        shared = stem + gater + combiner + self.classify.in_features * self.num_classes
        return Cost(shared, each_macs(self.branches, shape))
