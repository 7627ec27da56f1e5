"""Names of a ResNet's weights: Detectron2's, torchvision's, and those of Caffe2's files.

Detectron2's are "stem.conv1.weight", "res2.0.conv2.weight", "res2.0.conv2.norm.bias",
"res2.0.shortcut.weight", with whatever leads to the backbone before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_BLOCK = re.compile(r"(?:^|\.)res([2-5])\.(\d+)\.(?:conv[123]|shortcut)\.")
_PART = re.compile(r"^(.*?\.)?((?:res[2-5]\.\d+\.(?:conv[123]|shortcut)|stem\.conv\d)\..+)$")
_BRANCH = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_BLOB = {
    "w": "weight",
    **{f"{norm}_{letter}": f"norm.{name}" for norm in ("bn", "gn") for letter, name in
       (("s", "weight"), ("b", "bias"), ("rm", "running_mean"), ("riv", "running_var"))},
}  # fmt: skip


def detectron2_resnet_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights; those of torchvision's or Caffe2's ResNets under Detectron2's names.

    Args:
        weights: tensors by name; other names stay.
    """
    return {_detectron2_name(name): value for name, value in weights.items()}


def resnet_blocks(names: Iterable[str]) -> list[int]:
    """Blocks of each stage, res2 first, that weights with Detectron2's names have; [] for none."""
    blocks: dict[int, int] = {}
    for name in names:
        found = _BLOCK.search(name)
        if found:
            stage = int(found[1])
            blocks[stage] = max(blocks.get(stage, 0), int(found[2]) + 1)
    return [blocks[stage] for stage in sorted(blocks)]


def split_resnet_name(name: str) -> tuple[str, str] | None:
    """What leads to a ResNet, and Detectron2's name within it; None for others' weights."""
    found = _PART.match(name)
    return None if found is None else (found[1] or "", found[2])


def _detectron2_name(name: str) -> str:
    for translate in (_from_torchvision, _from_caffe2):
        found = translate(name)
        if found is not None:
            return found
    return name


def _from_torchvision(name: str) -> str | None:
    """Of "layer1.0.bn2.weight" it is "res2.0.conv2.norm.weight"; None for others' weights."""
    found = re.fullmatch(r"(?:layer([1-4])\.(\d+)\.)?(conv|bn)([123])\.(\w+)", name)
    if found:
        stage, block, kind, number, rest = found.groups()
        if stage is None and number != "1":
            return None
        where = "stem" if stage is None else f"res{int(stage) + 1}.{block}"
        return f"{where}.conv{number}.{'norm.' if kind == 'bn' else ''}{rest}"
    found = re.fullmatch(r"layer([1-4])\.(\d+)\.downsample\.([01])\.(\w+)", name)
    if found is None:
        return None
    norm = "norm." if found[3] == "1" else ""
    return f"res{int(found[1]) + 1}.{found[2]}.shortcut.{norm}{found[4]}"


def _from_caffe2(name: str) -> str | None:
    """Of "res2_0_branch2b_bn_s" it is "res2.0.conv2.norm.weight"; None for others' weights."""
    found = re.fullmatch(r"res([2-5])_(\d+)_branch(1|2[abc])_(w|[bg]n_(?:s|b|rm|riv))", name)
    if found:
        return f"res{found[1]}.{found[2]}.{_BRANCH[found[3]]}.{_BLOB[found[4]]}"
    found = re.fullmatch(r"(?:res_)?conv1_(w|[bg]n_(?:s|b|rm|riv))", name)
    return None if found is None else f"stem.conv1.{_BLOB[found[1]]}"
