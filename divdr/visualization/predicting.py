"""A trained model on image files: a picture of each prediction, and of the route that it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from ..engine import Predictor
from ..errors import DataError, DivdrError
from ..evaluation import parts_of
from ..image_files import image_files, read_image
from .parts import figures, runs_words
from .predictions import CONFIDENCE, best_classes, drawing_size, prediction_picture, reduced
from .routes import route_figure


def expand(names: Iterable[str | Path]) -> list[Path]:
    """Files as given, and of each folder the images in it; each once.

    Raises:
        DataError: a folder holds no images.
    """
    found: dict[Path, None] = {}
    for name in map(Path, names):
        if not name.is_dir():
            found[name] = None
            continue
        inside = image_files(name)
        if not inside:
            raise DataError(f"folder {name} holds no images")
        found.update(dict.fromkeys(inside))
    return list(found)


def output_names(files: Sequence[Path]) -> list[str]:
    """A short name for the pictures of each file, no two alike.

    It is the file's without its ending; with it where two files differ by it alone; with the
    folders that it takes where two files of one name are in different ones.
    """
    names = [file.stem for file in files]
    for depth in range(1, 1 + max((len(file.parts) for file in files), default=0)):
        counts = Counter(names)
        names = [
            _last_parts(file, depth) if counts[name] > 1 else name
            for file, name in zip(files, names, strict=True)
        ]
    counts = Counter(names)
    return [
        f"{name}_{number}" if counts[name] > 1 else name for number, name in enumerate(names, 1)
    ]


def _last_parts(file: Path, depth: int) -> str:
    parts = (part.strip("/\\:.") for part in file.parts[-depth:])
    return "_".join(part for part in parts if part).replace(".", "_")


def predict_files(
    predictor: Predictor,
    files: Sequence[Path],
    folder: str | Path,
    *,
    confidence: float = CONFIDENCE,
    say: Callable[[str], Any] = print,
) -> list[str]:
    """Write ``NAME_prediction.png`` of every image, and ``NAME_route.png`` for a routed model.

    Images of more than about two million pixels are drawn smaller. A file that cannot be used is
    left out.

    Args:
        predictor: the model.
        files: image files.
        folder: takes the pictures; it is made.
        confidence: least score of a detection to be drawn.
        say: takes a line for an image: its class, or what its route costs; or why it is left out.

    Returns:
        A sentence for each file that was left out.

    Raises:
        DataError: the folder cannot be written to.
    """
    folder = Path(folder)
    failures: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, name in zip(
            tqdm(files, unit="image", disable=None), output_names(files), strict=True
        ):
            try:
                image = read_image(file, "RGB")
                size = drawing_size(*image.shape[:2])
                output = _predicted(predictor, file, image, size)
            except DivdrError as error:
                failures.append(str(error))
                say(f"{file} is left out")
                continue
            image = reduced(image, size)
            picture = prediction_picture(image, output, predictor.metadata, confidence=confidence)
            Image.fromarray(picture).save(folder / f"{name}_prediction.png")
            if "scores" in output:
                say(f"{file}: {_class_line(predictor, output)}")
            if "routing" in output:
                figure, line = drawn_route(predictor, output, image)
                figure.savefig(folder / f"{name}_route.png", dpi=120)
                say(f"{file}: {line}")
    except OSError as error:
        raise DataError(f"folder {folder} cannot be written to ({error.strerror})") from None
    return failures


def _predicted(
    predictor: Predictor, file: Path, image: Any, size: tuple[int, int]
) -> dict[str, Any]:
    try:
        return predictor(image, size)
    except (RuntimeError, ValueError) as error:  # no room for it, or too thin for a convolution
        if isinstance(error, DivdrError):
            raise
        rows, columns = image.shape[:2]
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the model cannot run on file {file} of {rows}×{columns} pixels ({reason})"
        ) from error


def _class_line(predictor: Predictor, output: dict[str, Any]) -> str:
    (name, score), *others = best_classes(output, predictor.metadata.classes)
    rest = ", ".join(f"{other} ({value:.2f})" for other, value in others)
    return f"class {name} ({score:.2f})" + (f", then {rest}" if rest else "")


def drawn_route(
    predictor: Predictor, output: dict[str, Any], image: np.ndarray
) -> tuple[Figure, str]:
    """The route of an image as a picture, and what it cost in words.

    Args:
        predictor: of a routed model.
        output: what it gave.
        image: (H, W, 3) uint8, RGB, drawn beside the route.
    """
    assert predictor.routing is not None
    record = output["routing"].to("cpu")
    records = [ran["routing"] for _, ran in parts_of({}, output)]
    real = sum(float(each.real_cost) for each in records)
    line = runs_words(real, sum(each.full_real_cost for each in records))
    if len(records) > 1:
        line += f" in {len(records)} forwards, of which the first one's route is shown"
    expert = predictor.expert(output)
    if expert is not None:
        line += f", expert {expert}"
    space, activations = predictor.routing.backbone.space, record.activations[0].numpy()
    figure = route_figure(space, activations, record.reached[0].numpy(), line, image)
    # Gates × multiply-adds, which the stem has none of: of another whole than what runs.
    expected = sum(float(each.expected_cost) for each in records) / 1e9
    full = sum(each.full_cost for each in records) / 1e9
    return (
        figure,
        f"{line}; expected cost, without the stem, {figures(expected)} of {figures(full)}",
    )
