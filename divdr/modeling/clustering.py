"""One clustering of the activation bank, with its figures in the event storage."""

from __future__ import annotations

import logging

from detectron2.utils.events import EventStorage

from ..experts import LocalExperts

logger = logging.getLogger(__name__)


def cluster_and_log(experts: LocalExperts, iteration: int, storage: EventStorage | None) -> None:
    """Cluster the bank; a collective call.

    Writes, under ``clustering/``: inter_experts, intra_pairs_experts, intra_centre_experts (the new
    experts over the bank), sigma2, movement, inertia, seconds, agreement, and size_K of every
    expert. Waits, with a line in the log, while the bank
    holds fewer images than there are experts.

    Args:
        experts: bank and centres.
        iteration: of training.
        storage: where the figures go; None: nowhere.
    """
    report = experts.cluster(iteration)
    if report is None:
        logger.info(
            "Clustering waits: %d activations for %d experts",
            len(experts.bank),
            experts.num_experts,
        )
        return
    if storage is None:
        return
    values = {
        "inter_experts": report.inter,
        "intra_pairs_experts": report.intra_pairs,
        "intra_centre_experts": report.intra_centre,
        "sigma2": report.sigma2,
        "movement": report.movement,
        "inertia": report.inertia,
        "seconds": report.seconds,
        "agreement": report.agreement,
        **{f"size_{expert}": size for expert, size in enumerate(report.sizes)},
    }
    for name, value in values.items():
        storage.put_scalar(f"clustering/{name}", value, smoothing_hint=False)
