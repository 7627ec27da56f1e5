"""Cars, trucks, buses and trains, seen from behind or from the front with one side showing."""

from __future__ import annotations

import numpy as np

from .camera import Camera, Points
from .scene import Colour, Part, SceneObject, Setting, shade
from .shapes import box, ellipse, hull

CAR_PAINT: tuple[Colour, ...] = (
    (206, 208, 210), (150, 152, 156), (52, 54, 60), (28, 28, 32), (156, 30, 36),
    (36, 66, 132), (232, 232, 230), (86, 100, 112), (60, 92, 72), (176, 148, 96),
)  # fmt: skip
BUS_PAINT: tuple[Colour, ...] = ((236, 186, 30), (196, 38, 40), (226, 130, 34))
BOX_PAINT: tuple[Colour, ...] = (
    (214, 214, 210), (180, 186, 192), (60, 92, 136), (122, 128, 120), (176, 92, 60)
)  # fmt: skip
TRAIN_PAINT: tuple[Colour, ...] = ((40, 140, 120), (210, 204, 180), (84, 60, 120))
GLASS: Colour = (46, 58, 70)
TYRE: Colour = (20, 20, 22)
REAR_LIGHT: Colour = (200, 24, 24)
HEAD_LIGHT: Colour = (250, 244, 220)


class _Body:
    """A vehicle's place on the street; maps its own coordinates to pixels.

    Own coordinates are across (-1 left to 1 right), up (metres) and along (metres from the end
    that faces the camera).
    """

    def __init__(self, camera: Camera, x: float, z: float, wide: float, long: float) -> None:
        self.camera, self.x, self.z, self.wide, self.long = camera, x, z, wide, long
        centre = x + camera.bend * z * z
        #: Which side of the vehicle the camera sees: its left (-1) if it is right of the camera.
        self.side = -1.0 if centre > 0 else 1.0

    def at(self, *places: tuple[float, float, float]) -> Points:
        half = self.wide / 2
        return self.camera.points((self.x + a * half, y, self.z + t) for a, y, t in places)

    def end(self, left: float, low: float, right: float, high: float, along: float = 0.0) -> Points:
        return self.at(
            (left, low, along), (right, low, along), (right, high, along), (left, high, along)
        )

    def flank(self, near: float, far: float, low: float, high: float) -> Points:
        s = self.side
        return self.at((s, low, near), (s, low, far), (s, high, far), (s, high, near))

    def block(
        self, low: float, high: float, near: float, far: float, across: float = 1.0
    ) -> Points:
        corners = [(a, y, t) for a in (-across, across) for y in (low, high) for t in (near, far)]
        return hull(self.at(*corners))

    def wheel(self, along: float, radius: float) -> Points:
        circle = ellipse(along, radius, radius, radius, 14)
        return self.at(*[(self.side, float(y), float(t)) for t, y in circle])

    def shadow(self) -> tuple[float, float, float, float]:
        left, row = self.camera.point(self.x - self.wide / 2, 0.0, self.z)
        right, far_row = self.camera.point(self.x + self.wide / 2, 0.0, self.z + self.long)
        far_left, _ = self.camera.point(self.x - self.wide / 2, 0.0, self.z + self.long)
        low, high = min(left, far_left), max(right, far_left)
        return (low + high) / 2, (row + far_row) / 2, (high - low) * 0.56, (row - far_row) * 0.6 + 2


def car(setting: Setting, x: float, z: float, oncoming: bool) -> SceneObject:
    """A car whose near end is at street position (x, z)."""
    paint = setting.pick(CAR_PAINT)
    tall = setting.between(1.38, 1.5) if setting.chance(0.65) else setting.between(1.6, 1.85)
    long = setting.between(3.6, 4.7)
    body = _Body(setting.camera, x, z, setting.between(1.7, 1.9), long)
    belt = 0.6 * tall
    # The screen that faces the camera starts farther from the end if that end is the bonnet.
    screen = 0.26 if oncoming else setting.between(0.03, 0.14)
    tail = 0.9 if oncoming else 0.74
    low, high = screen * long, (screen + 0.16) * long
    roof_end = max((tail - 0.12) * long, high + 0.3)
    cabin = [(a * 0.94, belt, t) for a in (-1, 1) for t in (low, tail * long)]
    cabin += [(a * 0.76, tall, t) for a in (-1, 1) for t in (high, roof_end)]
    s = body.side
    lights, glow = (HEAD_LIGHT, 1.0) if oncoming else (REAR_LIGHT, 0.8)
    window = [(s * 0.93, belt, low + 0.2), (s * 0.93, belt, tail * long - 0.1)]
    window += [(s * 0.8, tall * 0.95, roof_end), (s * 0.8, tall * 0.95, high + 0.1)]
    pane = [
        (-0.86, belt * 1.03, low),
        (0.86, belt * 1.03, low),
        (0.7, tall * 0.95, high),
        (-0.7, tall * 0.95, high),
    ]
    parts = [
        Part(body.end(-0.98, 0.0, -0.72, 0.4), TYRE),
        Part(body.end(0.72, 0.0, 0.98, 0.4), TYRE),
        Part(body.block(0.2, belt, 0.0, long), shade(paint, 1.08)),
        Part(body.flank(0.0, long, 0.2, belt), shade(paint, 0.78), solid=False),
        Part(body.wheel(0.2 * long, 0.32), TYRE),
        Part(body.wheel(0.8 * long, 0.32), TYRE),
        Part(body.wheel(0.2 * long, 0.17), (140, 140, 142), solid=False),
        Part(body.wheel(0.8 * long, 0.17), (140, 140, 142), solid=False),
        Part(hull(body.at(*cabin)), shade(paint, 0.95)),
        Part(body.at(*window), shade(GLASS, 0.8), solid=False),
        Part(body.at(*pane), GLASS, solid=False),
        Part(body.end(-1, 0.2, 1, belt * 0.98), paint, solid=False),
        Part(body.end(-1, 0.2, 1, 0.36), (40, 40, 42), solid=False),
        Part(body.end(-0.96, belt * 0.66, -0.62, belt * 0.88), lights, solid=False, glow=glow),
        Part(body.end(0.62, belt * 0.66, 0.96, belt * 0.88), lights, solid=False, glow=glow),
        Part(body.end(-0.26, 0.42, 0.26, 0.54), (222, 222, 214), solid=False),
    ]
    if oncoming:
        parts.append(Part(body.end(-0.5, belt * 0.62, 0.5, belt * 0.82), (26, 26, 28), solid=False))
    return SceneObject("car", parts, z, shadow=body.shadow(), grain=("coarse", 0.04))


def side_car(setting: Setting, x: float, z: float) -> SceneObject:
    """A car that stands or drives across the view."""
    paint = setting.pick(CAR_PAINT)
    k, turn = setting.between(0.92, 1.1), 1.0 if setting.chance(0.5) else -1.0
    shell = np.array([
        (-2.1, 0.25), (-2.15, 0.7), (-1.9, 0.92), (-1.5, 1.0), (-0.9, 1.42), (0.35, 1.46),
        (1.05, 0.98), (1.85, 0.86), (2.12, 0.62), (2.1, 0.25),
    ])  # fmt: skip
    panes = [
        np.array([(-1.3, 0.98), (-0.82, 1.34), (-0.35, 1.36), (-0.35, 0.98)]),
        np.array([(-0.25, 0.98), (-0.25, 1.36), (0.28, 1.37), (0.86, 0.98)]),
    ]
    shapes: list[tuple[Points, Colour, bool, float]] = [(shell, paint, True, 0.0)]
    shapes += [(pane, GLASS, False, 0.0) for pane in panes]
    shapes.append((box(-2.1, 0.25, 2.1, 0.36), shade(paint, 0.5), False, 0.0))
    for wheel in (-1.3, 1.32):
        shapes.append((ellipse(wheel, 0.33, 0.34, 0.34), TYRE, True, 0.0))
        shapes.append((ellipse(wheel, 0.33, 0.18, 0.18), (150, 150, 152), False, 0.0))
    shapes.append((box(1.92, 0.62, 2.12, 0.76), HEAD_LIGHT, False, 0.7))
    shapes.append((box(-2.14, 0.68, -1.98, 0.84), REAR_LIGHT, False, 0.6))
    camera = setting.camera
    parts = [
        Part(camera.standing(x, z, p * (k * turn, k)), c, solid=s, glow=g) for p, c, s, g in shapes
    ]
    column, row = camera.point(x, 0.0, z)
    scale = camera.scale(z)
    shadow = (column, row, 2.3 * scale, 0.16 * scale)
    return SceneObject("car", parts, z, shadow=shadow, grain=("coarse", 0.04))


def truck(setting: Setting, x: float, z: float, oncoming: bool) -> SceneObject:
    """A truck: a tall box on dark wheels, with a coloured cab in front if it is oncoming."""
    load, cab = setting.pick(BOX_PAINT), setting.pick(CAR_PAINT)
    tall, long = setting.between(2.9, 3.9), setting.between(6.5, 13.0)
    body = _Body(setting.camera, x, z, setting.between(2.35, 2.55), long)
    start = 2.0 if oncoming else 0.0
    parts = [
        Part(body.end(-0.95, 0.0, -0.6, 1.0), TYRE),
        Part(body.end(0.6, 0.0, 0.95, 1.0), TYRE),
        Part(body.block(0.5, 1.1, 0.0, long), (44, 44, 46)),
        Part(body.block(1.0, tall, start, long), shade(load, 1.05)),
        Part(body.flank(start, long, 1.0, tall), shade(load, 0.74), solid=False),
    ]
    for along in (0.14, 0.72, 0.86):
        parts.append(Part(body.wheel(along * long, 0.48), TYRE))
    if oncoming:
        roof = min(tall, setting.between(2.5, 3.0))
        parts += [
            Part(body.block(0.45, roof, 0.0, 1.8), cab),
            Part(body.flank(0.0, 1.8, 0.6, roof), shade(cab, 0.76), solid=False),
            Part(body.end(-0.88, roof * 0.58, 0.88, roof * 0.88), GLASS, solid=False),
            Part(body.end(-0.8, 0.8, 0.8, 1.25), (36, 36, 38), solid=False),
        ]
    else:
        parts.append(Part(body.end(-0.94, 1.08, 0.94, tall * 0.97), load, solid=False))
        line = max(1.0, 0.05 * setting.camera.scale(z))
        parts.append(
            Part(body.at((0, 1.08, 0), (0, tall * 0.97, 0)), shade(load, 0.55), line, False)
        )
        for low in (0.36, 0.7):
            edge = body.at((-0.92, low * tall, 0), (0.92, low * tall, 0))
            parts.append(Part(edge, shade(load, 0.8), line, False))
    lights, glow = (HEAD_LIGHT, 1.0) if oncoming else (REAR_LIGHT, 0.8)
    for left in (-0.94, 0.7):
        parts.append(Part(body.end(left, 0.62, left + 0.24, 0.82), lights, solid=False, glow=glow))
    return SceneObject("truck", parts, z, shadow=body.shadow(), grain=("coarse", 0.06))


def bus(setting: Setting, x: float, z: float, oncoming: bool) -> SceneObject:
    """A bus: one strong colour with a band of windows all around."""
    paint = setting.pick(BUS_PAINT)
    tall, long = setting.between(2.9, 3.2), setting.between(9.0, 12.5)
    body = _Body(setting.camera, x, z, 2.5, long)
    pane, shine = (GLASS, 0.0) if not setting.lit else ((236, 220, 170), 0.22)
    parts = [
        Part(body.end(-0.95, 0.0, -0.68, 0.5), TYRE),
        Part(body.end(0.68, 0.0, 0.95, 0.5), TYRE),
        Part(body.block(0.28, tall, 0.0, long), shade(paint, 1.05)),
        Part(body.flank(0.0, long, 0.28, tall), shade(paint, 0.76), solid=False),
    ]
    bays = 6
    for bay in range(bays):
        near, far = (bay + 0.12) * long / bays, (bay + 0.9) * long / bays
        parts.append(Part(body.flank(near, far, 1.35, tall * 0.86), pane, solid=False, glow=shine))
    parts += [Part(body.wheel(t * long, 0.48), TYRE) for t in (0.22, 0.76)]
    bottom = 1.0 if oncoming else 1.5
    lights, glow = (HEAD_LIGHT, 1.0) if oncoming else (REAR_LIGHT, 0.8)
    parts += [
        Part(body.end(-1, 0.28, 1, tall), paint, solid=False),
        Part(body.end(-0.9, bottom, 0.9, tall * 0.84), pane, solid=False, glow=shine),
        Part(body.end(-0.55, tall * 0.87, 0.55, tall * 0.96), (24, 24, 26), solid=False),
        Part(body.end(-0.4, tall * 0.89, 0.4, tall * 0.94), (250, 190, 60), solid=False, glow=0.4),
        Part(body.end(-1, 0.28, 1, 0.5), (40, 40, 42), solid=False),
    ]
    for left in (-0.94, 0.66):
        parts.append(Part(body.end(left, 0.6, left + 0.28, 0.82), lights, solid=False, glow=glow))
    return SceneObject("bus", parts, z, shadow=body.shadow(), grain=("coarse", 0.04))


def train(setting: Setting, x: float, z: float) -> SceneObject:
    """A tram: long and high, two-coloured, with a pantograph, without visible wheels."""
    paint = setting.pick(TRAIN_PAINT)
    tall, long = setting.between(3.3, 3.6), setting.between(22.0, 30.0)
    body = _Body(setting.camera, x, z, 2.5, long)
    pane, shine = (GLASS, 0.0) if not setting.lit else ((236, 224, 180), 0.22)
    cream: Colour = (228, 224, 208)
    parts = [
        Part(body.block(0.1, tall, 0.0, long), shade(paint, 0.8)),
        Part(body.flank(0.0, long, 0.1, 1.25), shade(paint, 0.74), solid=False),
        Part(body.flank(0.0, long, 1.25, tall * 0.96), shade(cream, 0.8), solid=False),
        Part(body.end(-1, 0.1, 1, 1.3), paint, solid=False),
        Part(body.end(-1, 1.3, 1, tall * 0.96), cream, solid=False),
        Part(body.end(-0.82, 1.4, 0.82, tall * 0.8), pane, solid=False, glow=shine),
        Part(
            body.end(-0.45, tall * 0.83, 0.45, tall * 0.93), (250, 200, 70), solid=False, glow=0.4
        ),
        Part(body.end(-0.98, 0.1, 0.98, 0.35), (36, 36, 38), solid=False),
    ]
    bays = 11
    for bay in range(bays):
        near, far = (bay + 0.12) * long / bays, (bay + 0.9) * long / bays
        parts.append(Part(body.flank(near, far, 1.45, tall * 0.84), pane, solid=False, glow=shine))
    for left in (-0.8, 0.56):
        parts.append(Part(body.end(left, 0.6, left + 0.24, 0.8), HEAD_LIGHT, solid=False, glow=0.9))
    line = max(2.0, 0.08 * setting.camera.scale(z + 6))
    frame = body.at((-0.3, tall, 6.0), (0.3, tall + 0.5, 6.5), (-0.3, tall + 1.0, 6.0))
    parts.append(Part(frame, (50, 50, 54), line))
    return SceneObject("train", parts, z, shadow=body.shadow(), grain=("coarse", 0.04))
