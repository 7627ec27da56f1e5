"""The networks of Ramachandran & Le's Section 4, from their settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import nn

from ..errors import ConfigError
from ..routing.ops import conv_norm
from ..settings import PerExampleSettings
from .choice_blocks import BlockParts, RoutedCells
from .expert_ops import build_expert, group_norm, linear_layer
from .gates import anneal_k
from .per_example import PerExample, RoutedLayers
from .resnet import initialise
from .routing_layer import Router, RoutingLayer


def per_example_network(
    settings: PerExampleSettings, classes: Sequence[int], in_channels: int = 3, size: int = 0
) -> PerExample:
    """The network that the settings describe.

    Args:
        settings: all of it but the tasks.
        classes: of each task.
        in_channels: of the images.
        size: rows and columns of the images; for the linear one alone.

    Raises:
        ConfigError: a setting does not suit the others; the sentence says which.
    """
    _check(settings, size)
    width = settings.task_width if len(classes) > 1 and "task" in settings.router else 0
    make = {"layers": _layers, "linear": _linear, "cells": _cells}[settings.model]
    stem, body = make(settings, width, in_channels, size)
    made = PerExample(
        stem,
        body,
        classes,
        task_width=width,
        balance_weight=settings.balance_weight,
        balance_steps=settings.balance_steps,
        in_channels=in_channels,
    )
    initialise(made)
    return made


def _check(settings: PerExampleSettings, size: int) -> None:
    key, count = settings.KEY, len(settings.experts)
    for name in ("k_first", "k_last"):
        value = getattr(settings, name)
        if value > count:
            raise ConfigError(f"{key}.{name.upper()} is {value}, but there are {count} EXPERTS")
    late = [layer for layer in settings.pool_after if layer > settings.layers]
    if late:
        raise ConfigError(f"{key}.POOL_AFTER names layer {late[0]} of {settings.layers}")
    strange = [n for n in settings.experts if (n == "linear") != (settings.model == "linear")]
    if strange:
        raise ConfigError(
            f'{key}.EXPERTS: MODEL "linear" has "linear" ones alone, and no other MODEL has any; '
            f"MODEL is {settings.model!r}, an expert {strange[0]!r}"
        )
    if settings.model == "linear" and not size:
        raise ConfigError(f'{key}.MODEL "linear" needs INPUT.CLASSIFICATION.SIZE')


def _layer(settings: PerExampleSettings, task_width: int, channels: int, k: int) -> RoutingLayer:
    """A routing layer on maps."""
    norm = group_norm(settings.norm_groups)
    experts = [build_expert(n, channels, norm, settings.convolutions) for n in settings.experts]
    router = Router(settings.router, channels, task_width, len(experts), k, settings.noise)
    return RoutingLayer(experts, settings.experts, router, nn.Sequential(norm(channels), nn.ReLU()))


def _stem(settings: PerExampleSettings, in_channels: int) -> nn.Sequential:
    """Shared 3 × 3 convolutions."""
    norm, widths = group_norm(settings.norm_groups), [in_channels]
    widths += [settings.filters] * settings.shared_layers
    return nn.Sequential(*(conv_norm(a, b, norm, kernel_size=3) for a, b in pairwise(widths)))


def _layers(
    settings: PerExampleSettings, task_width: int, in_channels: int, size: int
) -> tuple[nn.Module, nn.Module]:
    if not settings.shared_layers:
        raise ConfigError(f"{settings.KEY}.SHARED_LAYERS must be at least 1 for layers on maps")
    stem = _stem(settings, in_channels)
    layers: list[nn.Module] = []
    if 0 in settings.pool_after:
        stem.append(nn.MaxPool2d(2))
    ks = anneal_k(settings.k_first, settings.k_last, settings.layers)
    for number, k in enumerate(ks, start=1):
        layers.append(_layer(settings, task_width, settings.filters, k))
        if number in settings.pool_after:
            layers.append(nn.MaxPool2d(2))
    return stem, RoutedLayers(layers, settings.filters)


def _linear(
    settings: PerExampleSettings, task_width: int, in_channels: int, size: int
) -> tuple[nn.Module, nn.Module]:
    if not settings.shared_layers:
        raise ConfigError(f"{settings.KEY}.SHARED_LAYERS must be at least 1 for linear layers")
    widths = [in_channels * size**2] + [settings.filters] * settings.shared_layers
    stem = nn.Sequential(nn.Flatten(), *(linear_layer(a, b) for a, b in pairwise(widths)))
    layers = []
    for k in anneal_k(settings.k_first, settings.k_last, settings.layers):
        experts = [linear_layer(settings.filters, settings.filters) for _ in settings.experts]
        router = Router(
            settings.router, settings.filters, task_width, len(experts), k, settings.noise
        )
        layers.append(RoutingLayer(experts, settings.experts, router))
    return stem, RoutedLayers(layers, settings.filters)


def _cells(
    settings: PerExampleSettings, task_width: int, in_channels: int, size: int
) -> tuple[nn.Module, nn.Module]:
    parts = BlockParts(
        settings.router,
        task_width,
        partial(_layer, settings, task_width),
        group_norm(settings.norm_groups),
        settings.noise,
    )
    width = settings.filters if settings.shared_layers else in_channels
    body = RoutedCells(
        width, settings.filters, settings.layers, settings.k_first, settings.k_last, parts
    )
    return _stem(settings, in_channels), body
