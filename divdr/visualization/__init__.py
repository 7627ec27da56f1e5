"""Pictures of routes, experts and training, and the report that collects them."""

from .curves import (
    diversity_figure,
    gflops_figure,
    losses_figure,
    progress_figure,
    read_metrics,
)
from .examples import ClassExample, Example
from .expert_choices import ExpertChoices, expert_choices, expert_choices_figure
from .expert_selection import ExpertSelection, expert_selection
from .montage import montage_figure, nearest_to_centres, read_nearest, read_thumbnail
from .need import Gain, Need, need_figure
from .overlay import colour_labels, overlay, side_by_side_figure
from .parts import default_palette
from .report import write_report
from .routes import open_transforms, reached_from_gates, route_figure, routes_figure
from .run_data import RouteData, RunData
from .scatter import embed, embedding_figure, joint_embedding_figure
from .sheet import write_sheet
from .tradeoff import SweepPanel, pareto_front, sweep_figure, tradeoff_figure

__all__ = [
    "ClassExample",
    "Example",
    "ExpertChoices",
    "ExpertSelection",
    "Gain",
    "Need",
    "RouteData",
    "RunData",
    "SweepPanel",
    "colour_labels",
    "default_palette",
    "diversity_figure",
    "embed",
    "embedding_figure",
    "expert_choices",
    "expert_choices_figure",
    "expert_selection",
    "gflops_figure",
    "joint_embedding_figure",
    "losses_figure",
    "montage_figure",
    "nearest_to_centres",
    "need_figure",
    "open_transforms",
    "overlay",
    "pareto_front",
    "progress_figure",
    "reached_from_gates",
    "read_metrics",
    "read_nearest",
    "read_thumbnail",
    "route_figure",
    "routes_figure",
    "side_by_side_figure",
    "sweep_figure",
    "tradeoff_figure",
    "write_report",
    "write_sheet",
]
