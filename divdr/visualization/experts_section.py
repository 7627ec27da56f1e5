"""Tables about experts: how many images each has, and which scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

from .parts import Entry, Section, Table, count, fixed, listing
from .run_data import RouteData, RunData


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
        entries = [Entry(str(n), share(n, sum(found))) for n in found]
        entries += [Entry("")] * (most - len(entries))
        rows.append((name, [*entries, Entry(str(sum(found)))]))
    header = ["run", *(f"expert {k}" for k in range(most)), "all"]
    caption = "An image belongs to the expert whose centre is nearest to its gate activation."
    section.tables.append(Table(caption, header, rows))
    return section


def _sizes(run: RunData, dataset_name: str) -> list[int]:
    routes = run.routes_of(dataset_name)
    if routes is not None and len(routes.centres):
        return [int(n) for n in routes.images_per_expert()]
    stored = run.result(dataset_name, "routing", "images_per_expert")
    if not isinstance(stored, list) or not all(isinstance(n, (int, float)) for n in stored):
        return []
    return [int(n) for n in stored]


def characters_section(
    runs: Sequence[RunData], dataset_name: str, characters: Mapping[str, str] | None
) -> Section:
    """Build a table a run: which scene character each expert got."""
    section = Section("Experts and scene characters")
    if not characters:
        section.sentences.append("No scene characters were given, so there is nothing to compare.")
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


def _character_rows(counts: np.ndarray) -> list[tuple[str, list[Entry]]]:
    """A row an expert and one for all, from counts (K, C)."""
    rows = []
    for k, row in enumerate(counts):
        entries = [Entry(str(n), share(n, row.sum())) for n in row]
        rows.append((f"expert {k}", [*entries, Entry(str(row.sum()))]))
    total = counts.sum(axis=0)
    entries = [Entry(str(n), share(n, total.sum())) for n in total]
    rows.append(("all experts", [*entries, Entry(str(total.sum()))]))
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
