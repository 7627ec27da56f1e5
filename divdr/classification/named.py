"""Classifiers of torchvision and timm by name: whole, or cut off as a stem.

"torchvision:resnet18" and "timm:tinynet_e" are whole classifiers, "torchvision:resnet18.layer2" and
"timm:resnet18.2" what they compute up to a node (torchvision) or a level of features (timm).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError

LIBRARIES = ("torchvision", "timm")


def is_named(name: str) -> bool:
    """Whether a name is one of a library's."""
    return name.split(":")[0] in LIBRARIES and ":" in name


def named_classifier(
    name: str, num_classes: int | None, *, in_channels: int = 3, pretrained: bool = False
) -> nn.Module:
    """A whole classifier, images (N, in_channels, H, W) to logits (N, num_classes).

    Args:
        name: "torchvision:NAME" or "timm:NAME".
        num_classes: None keeps the library's own (1000 of ImageNet).
        in_channels: of the images; the first convolution is made anew if it is not 3.
        pretrained: take the library's default weights, which it downloads; the classifier layer
            starts anew where ``num_classes`` differs.

    Raises:
        ConfigError: the library knows no such classifier, is not installed, or its weights cannot
            be had.
    """
    library, _, model_name = name.partition(":")
    try:
        if library == "timm":
            return _timm().create_model(
                model_name, **_timm_options(num_classes, in_channels), pretrained=pretrained
            )
        if library == "torchvision":
            return _torchvision(model_name, num_classes, in_channels, pretrained)
    except ConfigError:
        raise
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise ConfigError(f"classifier {name!r} cannot be made ({error})") from None
    raise ConfigError(f"{name!r} names no classifier; write torchvision:NAME or timm:NAME")


def named_stem(name: str, *, in_channels: int = 3, pretrained: bool = False) -> NamedStem:
    """The first part of a classifier: images (N, in_channels, H, W) to maps.

    Args:
        name: "torchvision:NAME.NODE" or "timm:NAME.LEVEL".
        in_channels: of the images.
        pretrained: as in :func:`named_classifier`.

    Raises:
        ConfigError: there is no such classifier or node.
    """
    library, _, rest = name.partition(":")
    model_name, _, cut = rest.partition(".")
    if not cut:
        raise ConfigError(
            f"{name!r} does not say where the stem ends, as torchvision:resnet18.layer2"
        )
    try:
        if library == "timm":
            options = _timm_options(None, in_channels)
            model = _timm().create_model(
                model_name,
                features_only=True,
                out_indices=(int(cut),),
                pretrained=pretrained,
                **options,
            )
        else:
            from torchvision.models.feature_extraction import create_feature_extractor

            whole = named_classifier(
                f"{library}:{model_name}", None, in_channels=in_channels, pretrained=pretrained
            )
            model = create_feature_extractor(whole, {cut: "maps"})
    except ConfigError:
        raise
    except (ValueError, RuntimeError, KeyError, IndexError, OSError) as error:
        raise ConfigError(f"stem {name!r} cannot be made ({error})") from None
    return NamedStem(model, in_channels)


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
    """

    def __init__(self, features: nn.Module, in_channels: int) -> None:
        super().__init__()
        self.features = features
        training = features.training
        with torch.no_grad():
            maps = self.eval()(torch.zeros(1, in_channels, 64, 64))
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
    name: str, num_classes: int | None, in_channels: int, pretrained: bool
) -> nn.Module:
    from torchvision import models

    model = models.get_model(name, weights="DEFAULT" if pretrained else None)
    if num_classes is not None:
        _replace(
            model, _last(model, nn.Linear), lambda old: nn.Linear(old.in_features, num_classes)
        )
    if in_channels != 3:
        first = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
        _replace(model, first, lambda old: _with_channels(old, in_channels))
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


def _with_channels(old: nn.Conv2d, channels: int) -> nn.Conv2d:
    return nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )


def _timm_options(num_classes: int | None, in_channels: int) -> dict[str, int]:
    options = {"in_chans": in_channels}
    return options if num_classes is None else {**options, "num_classes": num_classes}


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            "a classifier of timm is named, but timm is not installed: pip install timm"
        ) from None
    return timm
