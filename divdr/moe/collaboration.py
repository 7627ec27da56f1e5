"""Collaboration of Experts: a delegator answers easy samples itself and sends the others on.

"Collaboration of Experts: Achieving 80% Top-1 Accuracy on ImageNet with 100M FLOPs". Samples are
tensors (N, ...) of any kind that delegator and experts take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..routing import HostFact
from ..settings import CollaborationSettings
from .choice import confident, delegated
from .class_partition import cluster_partition, given_partition, random_partition
from .embedding import check_labels, class_means, process_count
from .expert_dispatch import Dispatch, Group, overwrite, run_groups
from .multiply_adds import each_macs, part_macs
from .soft_targets import Distillation
from .system import Cost, Prediction, Stage, check_probability, loaded_numbers
from .teaching import (
    DelegatorFirst,
    Lesson,
    common_lesson,
    common_portions,
    true_class_probability,
)


class Delegation(NamedTuple):
    """What the delegator says of N samples.

    Attributes:
        rough: (N, C) logits of the rough prediction.
        selection: (N, E) logits of the experts.
        subtask: (N, S) logits of the subtasks, each of which has E / S experts one after the other.
    """

    rough: Tensor
    selection: Tensor
    subtask: Tensor

    def subtasks(self) -> Tensor:
        """(N,) int64, the most probable subtask."""
        return self.subtask.argmax(1)

    def visible(self) -> Tensor:
        """(N, E / S) logits of the experts of each sample's subtask; the others are not seen."""
        groups = self.selection.unflatten(1, (self.subtask.shape[1], -1))
        return groups[torch.arange(len(groups), device=groups.device), self.subtasks()]

    def experts(self) -> Tensor:
        """(N,) int64, the expert that is chosen."""
        visible = self.visible()
        return self.subtasks() * visible.shape[1] + visible.argmax(1)


class Delegator(nn.Module):
    """Feature extractor, task predictor and expert selector; with subtasks a subtask selector too.

    Args:
        extractor: samples (N, ...) to features (N, D).
        width: D.
        num_classes: C.
        experts: E.
        subtasks: S; 1 has no selector of its own.

    Raises:
        ConfigError: there is no expert, or they do not divide among the subtasks.
    """

    def __init__(
        self, extractor: nn.Module, width: int, num_classes: int, experts: int, subtasks: int = 1
    ) -> None:
        super().__init__()
        if experts < 1 or subtasks < 1 or experts % subtasks:
            raise ConfigError(f"{experts} experts do not divide among {subtasks} subtasks")
        self.extractor = extractor
        self.task_predictor = nn.Linear(width, num_classes)
        self.expert_selector = nn.Linear(width, experts)
        self.subtask_selector = nn.Linear(width, subtasks) if subtasks > 1 else None

    def forward(self, x: Tensor) -> Delegation:
        """Look at samples (N, ...)."""
        return self.delegate(self.extractor(x))

    def rough(self, x: Tensor) -> Tensor:
        """(N, C) logits of the rough prediction alone."""
        return self.task_predictor(self.extractor(x))

    def delegate(self, features: Tensor) -> Delegation:
        """Everything that features (N, D) say."""
        rough, subtask = self._fixed_heads(features)
        return Delegation(rough, self.expert_selector(features), subtask)

    def fixed(self, x: Tensor) -> Delegation:
        """Look at samples while the experts train: only the expert selector learns.

        Extractor, task predictor and subtask selector are fixed (Section 3.5, Appendix A.2), their
        BatchNorm and dropout included.
        """
        with torch.no_grad():
            features = self.extractor.eval()(x)
            rough, subtask = self._fixed_heads(features)
        # It must not run under no_grad before: autocast of PyTorch 2.9 and older then keeps its
        # weights in half precision without a graph, takes them again here, and nothing learns.
        return Delegation(rough, self.expert_selector(features), subtask)

    def _fixed_heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of classes and of subtasks."""
        if self.subtask_selector is None:
            subtask = features.new_zeros((len(features), 1))
        else:
            subtask = self.subtask_selector(features)
        return self.task_predictor(features), subtask


class Collaboration(DelegatorFirst, nn.Module):
    """The delegator looks at every sample, and at most one expert at those it is not sure of.

    ``progress`` says how far training is, 0 to 1, and with it stage and α; whoever trains sets it.

    Args:
        delegator: with as many outputs as there are experts.
        experts: E modules, samples to logits (N, C).
        num_classes: C.
        settings: τ, η and ablations; how many experts there are, ``experts`` says.
        in_channels: of the images, for the cost.
        delegator_share: share of training that is the first stage; None takes the settings'
            ``delegator_stage``, which then has to be a share.

    Attributes:
        threshold: τ of early termination; it can be changed at any time. 1 never ends early.

    Raises:
        ConfigError: a setting is out of range.
    """

    has_delegator: Tensor
    partition: Tensor
    #: The delegator's answer can be final.
    ends_early = True
    settings: CollaborationSettings

    def __init__(
        self,
        delegator: Delegator,
        experts: Sequence[nn.Module],
        num_classes: int,
        settings: CollaborationSettings,
        in_channels: int = 3,
        delegator_share: float | None = None,
    ) -> None:
        super().__init__()
        self.check_threshold(settings.threshold)
        share = settings.delegator_stage if delegator_share is None else delegator_share
        if not 0 <= share < 1:
            raise ConfigError(
                f"the delegator's stage must end before the training, not after a share of {share}"
            )
        if len(experts) != delegator.expert_selector.out_features:
            raise ConfigError(
                f"the delegator selects among {delegator.expert_selector.out_features} experts; "
                f"there are {len(experts)}"
            )
        self.delegator = delegator
        self.experts = nn.ModuleList(experts)
        self.num_classes = num_classes
        self.settings = settings
        self.threshold = settings.threshold
        self.delegator_share = share
        #: How experts run in evaluation.
        self.dispatch: Dispatch = run_groups
        self.in_channels = in_channels
        self.progress = 0.0
        #: Teaches task predictor and experts beside the labels, if set.
        self.distillation: Distillation | None = None
        # Whether a trained delegator was taken over; checkpoints keep it.
        self.register_buffer("has_delegator", torch.tensor(False))
        self._taken_over = HostFact(bool)
        self._by_class = settings.selection in ("random", "category")
        if settings.selection != "taught" and delegator.subtask_selector is not None:
            raise ConfigError(
                f'{settings.KEY}.SELECTION "{settings.selection}" knows no SUBTASKS; set them to 1'
            )
        if self._by_class:
            # -1: no partition has been set yet.
            self.register_buffer("partition", torch.full((num_classes,), -1, dtype=torch.int64))

    @staticmethod
    def check_threshold(threshold: float) -> None:
        """See that a τ is one.

        Raises:
            ConfigError: it is not within 0 and 1.
        """
        check_probability(threshold, "the threshold τ of early termination")

    @torch.no_grad()
    def begin(self, stage: Stage, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        """Before the experts train: where classes choose among them, say which chooses which.

        Args:
            stage: that begins.
            batches: makes (images, labels) of every training image once.

        Raises:
            ConfigError: there are more experts than classes.
            DataError: a class has no image.
        """
        if stage.name != "experts" or not self._by_class or bool((self.partition >= 0).all()):
            return
        if self.settings.selection == "random":
            self.set_partition(random_partition(self.num_classes, len(self.experts)))
            return
        extractor, training = self.delegator.extractor, self.delegator.training
        means = class_means(extractor.eval(), batches(), self.num_classes)
        extractor.train(training)
        self.set_partition(cluster_partition(means, len(self.experts)))

    def set_partition(self, partition: Tensor) -> None:
        """Say which expert each class (C,) chooses, where classes do; checkpoints keep it.

        Raises:
            ConfigError: it does not suit the experts.
        """
        self.partition.copy_(given_partition(partition.tolist(), len(self.experts)))

    def select(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) logits of the rough prediction, and (N,) the expert that would be asked."""
        seen = self.delegator(x)
        return seen.rough, self._selected(seen)

    def _selected(self, seen: Delegation) -> Tensor:
        """(N,) int64, the expert of each sample."""
        return self.partition[seen.rough.argmax(1)] if self._by_class else seen.experts()

    def forward(self, x: Tensor) -> Prediction:
        """(N, ...) to logits and the experts that ran, none where it ended early (Section 3.1)."""
        seen = self.delegator(x)
        ran = delegated(seen.rough, self._selected(seen), len(self.experts), self.threshold)
        return Prediction(overwrite(seen.rough, self.dispatch(self.experts, x, ran)), ran)

    def at_thresholds(self, x: Tensor, thresholds: Sequence[float]) -> list[Prediction]:
        """What :meth:`forward` gives at every τ; delegator and experts run once for all of them."""
        seen = self.delegator(x)
        selected = self._selected(seen)
        most = delegated(seen.rough, selected, len(self.experts), max(thresholds))
        answers = overwrite(seen.rough, self.dispatch(self.experts, x, most))
        predictions = []
        for threshold in thresholds:
            ends = confident(seen.rough, threshold)[:, None]
            predictions.append(Prediction(torch.where(ends, seen.rough, answers), most & ~ends))
        return predictions

    def losses(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Those of the present stage (Section 3.5), weighted.

        The first stage's reaches extractor and task predictor. In the second, η · L_S reaches the
        expert selector alone and L_T the experts alone. Means and sums are over the batch of all
        processes together; an expert without a sample in it gets no gradient.

        Args:
            x: (N, ...).
            labels: (N,) int64.

        Raises:
            DataError: a label is no class.
            ConfigError: there are subtasks, and no trained delegator was taken over.
        """
        check_labels(labels, self.num_classes)
        if self.delegator.subtask_selector is not None and not self._taken_over.of(
            self.has_delegator
        ):
            raise ConfigError("subtasks need the delegator of a collaboration trained without them")
        targets = self.distillation.targets(x) if self.distillation is not None else None
        if self.trains_delegator:
            rough = self.delegator.rough(x)
            return {"loss_rough": self._task_loss(rough, labels, targets).mean()}
        seen = self.delegator.fixed(x)
        groups = list(run_groups(self.experts, x, self._visible(seen)))
        if self.settings.selection != "taught":
            return {"loss_experts": self._compared_loss(seen, groups, labels, targets)}
        lesson = self._lesson(seen, groups, labels)
        # DDP averages gradients over the processes; the sums of Eq. 9 and 10 go over all of them.
        scale = process_count()
        loss = F.cross_entropy(seen.visible().float(), lesson.labels, reduction="none")
        selection = (lesson.selection_weights * loss).sum()
        experts = self._weighted(seen, groups, labels, targets, lesson.expert_weights)
        return {
            "loss_selection": scale * self.settings.selection_weight * selection,
            "loss_experts": scale * experts,
        }

    def _compared_loss(
        self, seen: Delegation, groups: Sequence[Group], labels: Tensor, targets: Tensor | None
    ) -> Tensor:
        """The experts' loss in the comparisons of Table 3.

        By classes, Eq. 5 and 6 take the rough prediction's expert for A. Of a selector that is
        trained directly, its probabilities scale the losses of all experts, and their gradient is
        what it learns from; the mean is over the samples.
        """
        if self._by_class:
            selected = self._selected(seen)
            weights = common_portions(selected, len(self.experts), self.alpha)
            return process_count() * self._weighted(seen, groups, labels, targets, weights)
        probabilities = seen.selection.float().softmax(1) / max(1, len(labels))
        return self._weighted(seen, groups, labels, targets, probabilities)

    def _weighted(
        self,
        seen: Delegation,
        groups: Sequence[Group],
        labels: Tensor,
        targets: Tensor | None,
        weights: Tensor,
    ) -> Tensor:
        """Sum of the experts' losses by weights (N, E / S)."""
        total = seen.selection[:0].float().sum()
        for group in groups:
            rows = group.rows
            own = self._task_loss(
                group.output, labels[rows], None if targets is None else targets[rows]
            )
            total = total + (weights[rows, self._place(group)] * own).sum()
        return total

    def cost(self, height: int, width: int) -> Cost:
        """Multiply-adds of the delegator, which always runs, and of each expert."""
        shape = (self.in_channels, height, width)
        extractor, _ = part_macs(self.delegator.extractor, shape)
        heads = [m for m in self.delegator.children() if isinstance(m, nn.Linear)]
        shared = extractor + sum(m.in_features * m.out_features for m in heads)
        return Cost(shared, each_macs(self.experts, shape))

    def loads(self) -> Cost:
        """Numbers that are loaded for a sample: the delegator's, and its expert's."""
        return loaded_numbers(self, list(self.experts), nn.Identity())

    def _task_loss(self, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
        if self.distillation is None or targets is None:
            return F.cross_entropy(logits.float(), labels, reduction="none")
        return self.distillation.loss(logits, labels, targets)

    @property
    def _per_subtask(self) -> int:
        selector = self.delegator.subtask_selector
        return len(self.experts) // (1 if selector is None else selector.out_features)

    def _place(self, group: Group) -> int:
        """Number of a group's expert within its subtask."""
        return group.expert % self._per_subtask

    def _visible(self, seen: Delegation) -> Tensor:
        """(N, E) bool, the experts of each sample's subtask."""
        subtasks = torch.arange(len(self.experts), device=seen.rough.device) // self._per_subtask
        return seen.subtasks()[:, None] == subtasks

    def _lesson(self, seen: Delegation, groups: Sequence[Group], labels: Tensor) -> Lesson:
        """The lesson of this process's samples, from those of all; every subtask for itself."""
        probabilities = seen.visible().detach().float().softmax(1)
        tcp = torch.zeros_like(probabilities)
        for group in groups:
            found = true_class_probability(group.output, labels[group.rows])
            tcp[group.rows, self._place(group)] = found.to(tcp.dtype)
        return common_lesson(tcp, probabilities, self.alpha, self.settings, seen.subtasks())
