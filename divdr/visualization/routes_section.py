"""What the routes look like: one for each expert, all of them on a plane, and their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count as count_from
from itertools import takewhile

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

from .montage import montage_figure, nearest_to_centres, read_nearest, thumbnail
from .parts import Picture, Section, Table, TableEntry, count, figures, fixed, listing
from .routes import open_transforms, routes_figure
from .run_data import RouteData, RunData
from .scatter import embed, embedding_figure, method_used

_METHODS = {"tsne": "t-SNE", "pca": "PCA"}
_PICTURES = 6


def routes_section(runs: Sequence[RunData], dataset_name: str) -> Section:
    """Draw for each run the route of the image nearest to each centre."""
    section = Section("Routes of the experts")
    if any((r := run.routes_of(dataset_name)) and len(r.centres) for run in runs):
        section.sentences.append(
            "Each grid is the routing space: a circle is a cell, layers run from left to right, "
            "strides from 4 at the top downwards. A line is an open transform; what all routes of "
            "a picture have open is grey, and coloured is only what differs between them."
        )
    for run in runs:
        routes = _with_experts(section, run, dataset_name)
        if routes is None:
            continue
        nearest = nearest_to_centres(routes.activations, routes.centres, routes.expert, 1)
        chosen = [(k, found[0]) for k, found in enumerate(nearest) if found]
        if not chosen:
            section.sentences.append(f"{run.name}: no expert has an image.")
            continue
        images = [i for _, i in chosen]
        figure = routes_figure(
            routes.space,
            routes.activations[images],
            [f"expert {k}: {routes.runs_of(i)}" for k, i in chosen],
            routes.reached[images],
            [thumbnail(routes.file_names[i]) for i in images],
        )
        facts = "; ".join(f"expert {k}: {_route_facts(routes, i)}" for k, i in chosen)
        words = (
            f"{run.name}: the route of the image whose gate activation is nearest to the centre "
            f"of each expert. {facts[0].upper()}{facts[1:]}."
        )
        if routes.all_open_cost is not None:
            words += " The whole is the real cost with every gate open; both count the stem."
        if len(chosen) > 1:
            words += f" {_common(routes, images)}"
        section.pictures.append(Picture(figure, words, shape="wide"))
    return section


def _route_facts(routes: RouteData, image: int) -> str:
    reached, activations = routes.reached[image], routes.activations[image]
    opened = open_transforms(routes.space, activations, reached)
    return (
        f"{routes.stems[image]} reaches {int(reached.sum())} of {routes.space.num_cells} cells, "
        f"opens {count(int(opened.sum()), 'transform')} and {routes.runs_of(image)} (expected cost "
        f"{figures(routes.expected_cost[image] / 1e9)}"
        f"{'; the first route is shown' if routes.forwards[image] > 1 else ''})"
    )


def _common(routes: RouteData, images: Sequence[int]) -> str:
    opened = np.stack(
        [open_transforms(routes.space, routes.activations[i], routes.reached[i]) for i in images]
    )
    some, every = int(opened.any(axis=0).sum()), int(opened.all(axis=0).sum())
    return (
        f"Of the {count(some, 'transform')} open in any of these routes, {every} "
        f"{'is' if every == 1 else 'are'} open in all of them."
    )


def plane_section(
    runs: Sequence[RunData], dataset_name: str, characters: Mapping[str, str] | None
) -> Section:
    """Draw A(x) of all images of each run on a plane, coloured by expert."""
    section = Section("Gate activations of all images")
    if any(run.routes_of(dataset_name) is not None for run in runs):
        shape = ", its shape the scene character" if characters else ""
        section.sentences.append(
            "Each mark is an image; images with similar gate activations lie close to each other. "
            f"The colour of a mark is the expert{shape}."
        )
    for run in runs:
        routes = run.routes_of(dataset_name)
        if routes is None:
            section.sentences.append(f"{run.name} has no stored gate activations.")
            continue
        method = _METHODS[method_used(routes.activations)]
        marks = [characters.get(s, "no character") for s in routes.stems] if characters else None
        figure = embedding_figure(
            embed(routes.activations), routes.expert, f"{run.name}: {method} of A(x)", marks
        )
        words = (
            f"{run.name}: gate activations of {count(len(routes), 'image')}, "
            f"{routes.space.activation_size} numbers each, placed by {method}."
        )
        if method == "t-SNE":
            words += " Only neighbourhoods mean something here, not the gaps between groups."
        section.pictures.append(Picture(figure, words, shape="half"))
    return section


def montage_section(runs: Sequence[RunData], dataset_name: str) -> Section:
    """Show for each run the images closest to each centre."""
    section = Section("Images closest to each centre")
    for run in runs:
        routes = _with_experts(section, run, dataset_name)
        if routes is None:
            continue
        images, missing = read_nearest(routes, _PICTURES)
        if not any(images):
            section.sentences.append(
                f"{run.name}: the images themselves are not where the file names say, so none "
                "are shown."
            )
            continue
        sizes = routes.images_per_expert()
        titles = [f"expert {k} ({count(int(n), 'image')})" for k, n in enumerate(sizes)]
        words = (
            f"{run.name}: a row an expert, its images with the gate activations closest to its "
            "centre, the closest first."
        )
        if missing:
            words += f" {count(missing, 'image')} could not be found and {_is(missing)} left out."
        section.pictures.append(Picture(montage_figure(images, titles), words))
    return section


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _with_experts(section: Section, run: RunData, dataset_name: str) -> RouteData | None:
    routes = run.routes_of(dataset_name)
    if routes is None:
        section.sentences.append(f"{run.name} has no stored gate activations.")
        return None
    if not len(routes.centres):
        section.sentences.append(f"{run.name} has no experts.")
        return None
    return routes


def share(part: int, whole: int) -> str:
    """``40 %``; empty when there is nothing to share."""
    return f"{fixed(100 * part / whole, 0)} %" if whole else ""


def images_section(runs: Sequence[RunData], dataset_name: str) -> Section:
    """Build the table of images per expert, a row a run."""
    section = Section("Images per expert")
    sizes = {run.name: _sizes(run, dataset_name) for run in runs}
    without = [name for name, found in sizes.items() if not found]
    if without:
        section.sentences.append(
            f"There are no experts on {dataset_name} in the results of {listing(without)}."
        )
    known = {name: found for name, found in sizes.items() if found}
    if not known:
        return section
    most = max(len(found) for found in known.values())
    rows = []
    for name, found in known.items():
        entries = [TableEntry(str(n), share(n, sum(found))) for n in found]
        entries += [TableEntry("")] * (most - len(entries))
        rows.append((name, [*entries, TableEntry(str(sum(found)))]))
    header = ["run", *(f"expert {k}" for k in range(most)), "all"]
    caption = "An image belongs to the expert whose centre is nearest to its gate activation."
    section.tables.append(Table(caption, header, rows))
    return section


def _sizes(run: RunData, dataset_name: str) -> list[int]:
    routes = run.routes_of(dataset_name)
    if routes is not None and len(routes.centres):
        return [int(n) for n in routes.images_per_expert()]
    stored = run.result(dataset_name, "routing") or {}
    keys = takewhile(stored.__contains__, (f"images_expert_{k}" for k in count_from(0)))
    return [int(stored[key]) for key in keys]


def characters_section(
    runs: Sequence[RunData], dataset_name: str, characters: Mapping[str, str] | None
) -> Section:
    """Build a table a run: which scene character each expert got; empty where none are known."""
    section = Section("Experts and scene characters")
    if not characters:
        return section
    section.sentences.append(
        "How many images of each scene character every expert got, and in small print their share "
        "of the expert's images. The characters play no part in finding the experts."
    )
    for run in runs:
        routes = run.routes_of(dataset_name)
        if routes is None or not len(routes.centres):
            section.sentences.append(f"{run.name} has no experts on {dataset_name}.")
            continue
        expert, labels = _matched(routes, characters)
        if not len(labels):
            section.sentences.append(f"No image of {run.name} has a scene character.")
            continue
        caption = _agreement(run.name, expert, labels, len(routes))
        names, counts = character_counts(expert, labels, len(routes.centres))
        header = [run.name, *names, "all"]
        section.tables.append(Table(caption, header, _character_rows(counts)))
    return section


def character_counts(
    expert: np.ndarray, labels: Sequence[str], experts: int
) -> tuple[list[str], np.ndarray]:
    """Count images by expert and character.

    Args:
        expert: (N,) numbers 0 to K-1.
        labels: N characters.
        experts: K.

    Returns:
        The C characters in alphabetical order, and counts (K, C).
    """
    names, column = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    counts = np.zeros((experts, len(names)), dtype=np.int64)
    np.add.at(counts, (np.asarray(expert), column.reshape(-1)), 1)
    return [str(name) for name in names], counts


def _matched(routes: RouteData, characters: Mapping[str, str]) -> tuple[np.ndarray, list[str]]:
    pairs = [
        (int(k), characters[stem])
        for k, stem in zip(routes.expert, routes.stems, strict=True)
        if k >= 0 and stem in characters
    ]
    return np.array([k for k, _ in pairs], dtype=np.int64), [label for _, label in pairs]


def _character_rows(counts: np.ndarray) -> list[tuple[str, list[TableEntry]]]:
    """A row an expert and one for all, from counts (K, C)."""
    rows = []
    for k, row in enumerate(counts):
        entries = [TableEntry(str(n), share(n, row.sum())) for n in row]
        rows.append((f"expert {k}", [*entries, TableEntry(str(row.sum()))]))
    total = counts.sum(axis=0)
    entries = [TableEntry(str(n), share(n, total.sum())) for n in total]
    rows.append(("all experts", [*entries, TableEntry(str(total.sum()))]))
    return rows


def _agreement(run: str, expert: np.ndarray, labels: Sequence[str], images: int) -> str:
    score = adjusted_mutual_info_score(list(labels), expert)
    text = (
        f"{run}: the adjusted mutual information between expert and scene character is "
        f"{fixed(float(score), 3)} over {count(len(labels), 'image')} (0: what chance gives, "
        "1: the same grouping)."
    )
    if len(labels) < images:
        text += f" {count(images - len(labels), 'image')} had no character or no expert."
    return text
