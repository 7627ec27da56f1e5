"""Classifiers of torchvision and timm by name: whole, or cut off as a stem.

"torchvision:resnet18" and "timm:tinynet_e" are whole classifiers, "torchvision:resnet18.layer2" and
"timm:resnet18.2" what they compute up to a node (torchvision) or a level of features (timm).
"torchvision:tiny_resnet18" is one for images of 32 × 32 pixels: its first convolution is 3 × 3 and
has no stride, and it has no max pooling.
"""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError

LIBRARIES = ("torchvision", "timm")


def is_named(name: str) -> bool:
    """Whether a name is one of a library's."""
    return name.split(":")[0] in LIBRARIES and ":" in name


def named_classifier(
    name: str,
    num_classes: int | None,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    image_size: int = 0,
) -> nn.Module:
    """A whole classifier, images (N, in_channels, H, W) to logits (N, num_classes).

    Args:
        name: "torchvision:NAME" or "timm:NAME".
        num_classes: None keeps the library's own (1000 of ImageNet).
        in_channels: of the images; the first convolution is made anew if it is not 3.
        pretrained: take the library's default weights, which it downloads; the classifier layer
            starts anew where ``num_classes`` differs. For one channel the first convolution's
            weights are summed over red, green and blue, which answers a grey image as the old one
            does its three equal channels; for C others they are repeated, times 3 / C.
        image_size: H and W of the images, which transformers are built for; 0: not known.

    Raises:
        ConfigError: the library knows no such classifier, is not installed, its weights cannot be
            had, or it is built for one size of images and that is not known.
    """
    library, _, model_name = name.partition(":")
    try:
        if library == "timm":
            classes = {} if num_classes is None else {"num_classes": num_classes}
            return _with_single_values(
                _timm(model_name, in_channels, pretrained, image_size, **classes)
            )
        if library == "torchvision":
            return _with_single_values(
                _torchvision(model_name, num_classes, in_channels, pretrained, image_size)
            )
    except ConfigError:
        raise
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise ConfigError(f"classifier {name!r} cannot be made ({error})") from None
    raise ConfigError(f"{name!r} names no classifier; write torchvision:NAME or timm:NAME")


def named_stem(
    name: str, *, in_channels: int = 3, pretrained: bool = False, image_size: int = 0
) -> NamedStem:
    """The first part of a classifier: images (N, in_channels, H, W) to maps.

    Args:
        name: "torchvision:NAME.NODE" or "timm:NAME.LEVEL".
        in_channels: of the images.
        pretrained: as in :func:`named_classifier`.
        image_size: likewise.

    Raises:
        ConfigError: there is no such classifier or node, or its library is not installed.
    """
    library, _, rest = name.partition(":")
    model_name, _, cut = rest.partition(".")
    if not cut:
        raise ConfigError(
            f"{name!r} does not say where the stem ends, as torchvision:resnet18.layer2"
        )
    try:
        if library == "timm":
            level = (int(cut),)
            model = _with_single_values(
                _timm(
                    model_name,
                    in_channels,
                    pretrained,
                    image_size,
                    features_only=True,
                    out_indices=level,
                )
            )
        else:
            whole = named_classifier(
                f"{library}:{model_name}",
                None,
                in_channels=in_channels,
                pretrained=pretrained,
                image_size=image_size,
            )
            extraction = _library("torchvision", "models.feature_extraction")
            model = extraction.create_feature_extractor(whole, {cut: "maps"})
    except ConfigError:
        raise
    except (ValueError, RuntimeError, KeyError, IndexError, OSError) as error:
        raise ConfigError(f"stem {name!r} cannot be made ({error})") from None
    return NamedStem(model, in_channels, image_size or 64)


class NamedInput(NamedTuple):
    """Images as a library's weights expect them.

    Attributes:
        size: H and W.
        mean: of red, green and blue, of values between 0 and 1.
        std: likewise.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def named_input(name: str) -> NamedInput:
    """What the default weights of a library's classifier were trained on.

    Args:
        name: "torchvision:NAME" or "timm:NAME".

    Raises:
        ConfigError: the library knows no such classifier or has no weights for it.
    """
    library, _, model_name = name.partition(":")
    if library == "timm":
        known = _library("timm").get_pretrained_cfg(model_name)
        if known is None:
            raise ConfigError(f"timm has no weights for classifier {name!r}")
        return NamedInput(tuple(known.input_size[1:]), tuple(known.mean), tuple(known.std))
    models = _library("torchvision", "models")

    try:
        preset = models.get_model_weights(model_name)["DEFAULT"].transforms()
    except (ValueError, KeyError) as error:
        raise ConfigError(f"torchvision has no weights for classifier {name!r} ({error})") from None
    (side,) = preset.crop_size
    return NamedInput((side, side), tuple(preset.mean), tuple(preset.std))


def without_last_linear(classifier: nn.Module) -> tuple[nn.Module, int]:
    """Make a classifier, in place, return what its last linear layer saw (N, D); and D.

    Raises:
        ConfigError: it has no linear layer.
    """
    name = last_linear(classifier)
    layer = classifier.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    _replace(classifier, name, lambda old: nn.Identity())
    return classifier, layer.in_features


def last_linear(classifier: nn.Module) -> str:
    """Name of the layer that a classifier ends in.

    Raises:
        ConfigError: it has none.
    """
    try:
        return _last(classifier, nn.Linear)
    except ValueError as error:
        raise ConfigError(f"{type(classifier).__name__}: {error}") from None


class NamedStem(nn.Module):
    """Features of a library's classifier as one map.

    Args:
        features: returns a dict or list of one map.
        in_channels: of the images.
        image_size: H and W of an image that it can look at.
    """

    def __init__(self, features: nn.Module, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.features = features
        training = features.training
        with torch.no_grad():
            maps = self.eval()(torch.zeros(1, in_channels, image_size, image_size))
        self.train(training)
        self.out_channels = int(maps.shape[1])

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H', W')."""
        found = self.features(images)
        maps = next(iter(found.values())) if isinstance(found, dict) else found[0]
        if maps.dim() != 4:
            raise ConfigError(f"a stem must end in maps (N, C, H, W), not {tuple(maps.shape)}")
        return maps


def _torchvision(
    name: str, num_classes: int | None, in_channels: int, pretrained: bool, image_size: int
) -> nn.Module:
    models = _library("torchvision", "models")
    size: dict[str, Any] = {}
    if name.startswith("vit_"):
        size = {"image_size": _fixed(name, image_size)}
    elif name.startswith("maxvit_"):
        size = {"input_size": (_fixed(name, image_size),) * 2}
    tiny = name.startswith("tiny_resnet")
    if tiny and pretrained:
        raise ValueError("a network for tiny images has no weights of the library's")
    weights = "DEFAULT" if pretrained else None
    model = models.get_model(name.removeprefix("tiny_") if tiny else name, weights=weights, **size)
    if tiny:
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    if num_classes is not None:
        _replace(
            model, _last(model, nn.Linear), lambda old: nn.Linear(old.in_features, num_classes)
        )
    if in_channels != 3:
        if getattr(model, "transform_input", False):
            raise ValueError("its pretrained weights take images of three channels alone")
        first = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
        _replace(model, first, lambda old: _with_channels(old, in_channels, pretrained))
    return model


def _last(model: nn.Module, kind: type[nn.Module]) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, kind)]
    if not names:
        raise ValueError("it does not end in a linear layer")
    return names[-1]


def _replace(model: nn.Module, name: str, make: Any) -> None:
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, child, make(getattr(owner, child)))


def _with_channels(old: nn.Conv2d, channels: int, keep: bool) -> nn.Conv2d:
    """The same convolution for so many channels: with weights made of its own, or new ones."""
    weight = old.weight.detach()
    new = copy.deepcopy(old)
    new.in_channels = channels
    if channels == 1:
        weight = weight.sum(1, keepdim=True)
    else:
        repeated = torch.arange(channels) % old.in_channels
        weight = weight[:, repeated] * (old.in_channels / channels)
    new.weight = nn.Parameter(weight)
    if not keep:
        new.reset_parameters()
    return new


def _with_single_values(model: nn.Module) -> nn.Module:
    """Let BatchNorm layers, in place, train where a batch has a single value a channel.

    As ``divdr.routing``'s own layer does: an expert may get one image, whose last map is one pixel.
    """
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            rest = _Rest()
            layer.register_forward_pre_hook(rest.begin)
            layer.register_forward_hook(rest.end)
    return model


class _Rest:
    """Puts a layer into evaluation for a call in which no variance exists."""

    def __init__(self) -> None:
        self.resting = False

    def begin(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        self.resting = layer.training and x.numel() == x.shape[1]
        if self.resting:
            layer.training = False

    def end(self, layer: nn.Module, args: object, output: object) -> None:
        if self.resting:
            layer.training = True


def _timm(
    name: str, in_channels: int, pretrained: bool, image_size: int, **options: Any
) -> nn.Module:
    timm = _library("timm")
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        options["img_size"] = _fixed(name, image_size)
    return timm.create_model(name, in_chans=in_channels, pretrained=pretrained, **options)


def _library(name: str, part: str = "") -> Any:
    """A library, or a module of it."""
    try:
        return import_module(f"{name}.{part}" if part else name)
    except ImportError:
        # Builds of torchvision belong to builds of torch, which pip chooses together.
        names = "torch torchvision" if name == "torchvision" else name
        raise ConfigError(
            f"a classifier of {name} is named, but {name} is not installed: pip install {names}"
        ) from None


def _fixed(name: str, image_size: int) -> int:
    if image_size > 0:
        return image_size
    raise ConfigError(f"{name} is built for one size of images: set INPUT.CLASSIFICATION.SIZE")
