"""Static sub-networks as files that other programs run: ``torch.export`` and ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import DivdrError

FORMATS = ("pt2", "onnx")


def export(module: nn.Module, x: Tensor, path: Path) -> float:
    """Write a module and run the file on an example; the batch size stays free.

    Args:
        module: in evaluation; it takes (N, C, H, W) and returns maps, or one map.
        x: (1, C, H, W), an example; the height and width are those of the file.
        path: the file; its ending, ".pt2" (``torch.export``) or ".onnx", says which kind.

    Returns:
        Largest error of the file's outputs on two images, relative to the largest output.

    Raises:
        DivdrError: the ending is another, or a package that ONNX needs is missing.
    """
    pair = torch.cat([x, x.flip(3) * 0.5])
    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        # An example of two images: a batch of one would be taken for a constant.
        program = torch.export.export(module, (pair,), dynamic_shapes=({0: batch},))
        wanted = _maps(module(pair))
        if path.suffix == ".pt2":
            torch.export.save(program, path)
            found = _maps(torch.export.load(path).module()(pair))
        elif path.suffix == ".onnx":
            found = _through_onnx(program, pair, path)
        else:
            raise DivdrError(f"{path.name}: export writes .{' and .'.join(FORMATS)} files")
    largest = max(float(maps.abs().max()) for maps in wanted)
    error = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
    return error / max(largest, 1e-12)


def _through_onnx(program: torch.export.ExportedProgram, x: Tensor, path: Path) -> list[Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it and says so at length
    except ImportError as error:
        raise DivdrError(
            f"exporting to ONNX needs onnx, onnxscript and onnxruntime ({error}): "
            "pip install divdr[export]"
        ) from None
    torch.onnx.export(
        program,
        (x,),
        str(path),
        input_names=["images"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [torch.from_numpy(y) for y in session.run(None, {name: x.cpu().numpy()})]


def _maps(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
