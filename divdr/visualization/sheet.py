"""The point of a run on a single sheet, for pages that show it beside their words: images, what
each runs, and what comes out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from .examples import ClassExample, Example, examples_figure
from .montage import nearest_to_centres, read_thumbnail
from .overlay import colour_labels
from .parts import count, default_palette, figures, to_rgb
from .routes import INK, draw_routes, route_legend, show_picture
from .run_data import RouteData, RunData

_WIDTH = 1000  # pixels
_DPI = 100
_QUALITY = 88  # of a JPEG
_EXAMPLES = 4  # rows, at most
# Inches.
_HEAD, _TITLE, _ROW = 0.28, 0.27, 1.5
_LEGENDS = 1.15
_COLUMNS = ((0.06, 2.12), (2.92, 3.0), (6.05, 1.92), (8.03, 1.92))
"""Left and width of image, route, prediction and truth."""


def write_sheet(
    path: str | Path,
    runs: Sequence[RunData],
    dataset_name: str,
    *,
    examples: Sequence[Example] | Sequence[ClassExample] = (),
    palette: np.ndarray | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Save a row for each expert of the last run: the image nearest to its centre, the route that
    it takes and what that runs, the prediction, and the truth. Of a run without experts it shows
    the examples alone.

    Args:
        path: of the picture; its ending tells the format.
        runs: as in the report.
        dataset_name: the data set whose evaluation is shown.
        examples: with those of the experts' images; an expert whose image is not there has a row
            without predictions.
        palette: (C, 3) uint8 class colours; made up if None.
        class_names: C names for the legend.

    Raises:
        ValueError: there is no picture at all.
        DataError: an image of the data set is damaged.
    """
    run = runs[-1]
    routes = run.routes_of(dataset_name)
    shown = [example for example in examples if isinstance(example, Example)]
    if routes is not None and len(routes.centres):
        figure = sheet_figure(run.name, routes, shown, palette, class_names)
    elif shown:
        figure = examples_figure(shown[:_EXAMPLES], palette, class_names)
    else:
        raise ValueError("a sheet needs at least one example, or routes of experts")
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=_WIDTH / figure.get_figwidth(), facecolor="white")
    picture = Image.open(raw).convert("RGB")
    if picture.width != _WIDTH:  # a figure's width in pixels is rounded down
        picture = picture.resize((_WIDTH, picture.height))
    picture.save(path, quality=_QUALITY, optimize=True)


def sheet_figure(
    name: str,
    routes: RouteData,
    examples: Sequence[Example],
    palette: np.ndarray | None,
    class_names: Sequence[str],
) -> Figure:
    """Draw the sheet of a run with experts.

    Args:
        name: of the run.
        routes: of its images.
        examples: see :func:`write_sheet`.
        palette: see :func:`write_sheet`.
        class_names: see :func:`write_sheet`.

    Raises:
        ValueError: no expert has an image.
    """
    nearest = nearest_to_centres(routes.activations, routes.centres, routes.expert, 1)
    chosen = [(k, found[0]) for k, found in enumerate(nearest) if found]
    if not chosen:
        raise ValueError("a sheet of experts needs one that has an image")
    sizes = routes.images_per_expert()
    rows = [image for _, image in chosen]
    palette = default_palette(len(class_names)) if palette is None else palette
    by_file = {example.file_name: example for example in examples if example.file_name}
    height = _HEAD + _ROW * len(rows) + _LEGENDS
    figure = Figure(figsize=(_WIDTH / _DPI, height))

    def place(left: float, top: float, width: float, tall: float) -> Axes:
        """Axes at a place in inches from the left and from the top."""
        wide, high = figure.get_size_inches()
        return figure.add_axes((left / wide, 1 - (top + tall) / high, width / wide, tall / high))

    tops = [_HEAD + _ROW * number + _TITLE for number in range(len(rows))]
    axes = np.array(
        [[place(left, top, width, _ROW - _TITLE - 0.1) for left, width in _COLUMNS] for top in tops]
    )
    draw_routes(
        axes[:, 1].tolist(),
        routes.space,
        routes.activations[rows],
        [""] * len(rows),
        routes.reached[rows],
    )
    legend: dict[str, Sequence[int]] = {}
    for (k, image), (picture, route, predicted, truth) in zip(chosen, axes, strict=True):
        example = by_file.get(routes.file_names[image])
        file = routes.file_names[image]
        show_picture(picture, read_thumbnail(file, 480) if Path(file).is_file() else None)
        picture.set_anchor("NW")
        picture.set_title(
            f"expert {k}: {count(int(sizes[k]), 'image')} like this", fontsize=9.5, loc="left"
        )
        _show_cost(route, routes, image)
        found = (None, None) if example is None else (example.predictions.get(name), example.truth)
        for axis, labels in zip((predicted, truth), found, strict=True):
            show_picture(axis, _coloured(labels, palette))
            axis.set_anchor("NW")
            if labels is not None and labels.ndim == 2:
                legend |= {
                    class_names[c] if c < len(class_names) else f"class {c}": palette[c]
                    for c in np.unique(labels)
                    if 0 <= c < len(palette)
                }
        legend |= {} if example is None else example.legend
    heads = ("image", "its route through the network", f"prediction of {name}", "truth")
    for axis, head in zip(axes[0], heads, strict=True):
        axis.annotate(
            head,
            (0.0, 1.0),
            (0, 22),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=11.5,
            fontweight="bold",
        )
    top = _HEAD + _ROW * len(rows)
    below = [place(0.0, top, 6.0, _LEGENDS), place(6.1, top, 3.9, _LEGENDS)]
    colours = [Patch(color=to_rgb(c), label=name) for name, c in legend.items()]
    marks = route_legend(several=len(rows) > 1)
    for axis, handles, columns in zip(below, (marks, colours), (3, 4), strict=True):
        axis.set_axis_off()
        if handles:
            axis.legend(
                handles=handles,
                loc="upper left",
                ncols=columns,
                fontsize=7.5,
                frameon=False,
                columnspacing=0.9,
                handlelength=1.3,
                handletextpad=0.5,
            )
    below[0].text(0.02, 0.2, _all_costs(routes), fontsize=9, transform=below[0].transAxes)
    return figure


def _all_costs(routes: RouteData) -> str:
    low, high = (figures(cost / 1e9) for cost in np.quantile(routes.real_cost, (0, 1)))
    return f"All {count(len(routes), 'image')}: {low} to {high} GFLOPs, by one network's weights."


def _show_cost(axis: Axes, routes: RouteData, image: int) -> None:
    """What runs as the filled part of a bar, at the right above the route."""
    axis.set_xlabel("")
    axis.set_xticks([])
    axis.tick_params(labelsize=7.5)
    axis.set_title(routes.runs_of(image), fontsize=9, loc="left", color=INK)
    if routes.all_open_cost is None:
        return
    share = float(routes.real_cost[image] / routes.all_open_cost[image])
    for width, shade in ((1.0, "#e3e5e8"), (share, INK)):
        axis.add_patch(
            Rectangle(
                (0.7, 1.055),
                0.3 * width,
                0.08,
                transform=axis.transAxes,
                facecolor=shade,
                clip_on=False,
            )
        )


def _coloured(labels: np.ndarray | None, palette: np.ndarray) -> np.ndarray | None:
    return labels if labels is None or labels.ndim == 3 else colour_labels(labels, palette)
