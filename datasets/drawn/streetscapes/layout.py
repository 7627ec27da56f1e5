"""Where things stand: the plan of a town street and of a highway."""

from __future__ import annotations

import numpy as np

from . import furniture, ground, people, surroundings, vehicles
from .camera import Camera
from .scene import SceneObject, Setting


def make_camera(height: int, width: int, rng: np.random.Generator, wide_open: bool) -> Camera:
    """A camera with a random viewing direction; ``wide_open`` for highways."""
    # Tied to the smaller of width and twice the height, so narrow pictures still show the street.
    reach = min(float(width), 2.0 * height)
    return Camera(
        height=height,
        width=width,
        focal=reach * float(rng.uniform(0.92, 1.15)),
        horizon=height * float(rng.uniform(0.42, 0.52) if wide_open else rng.uniform(0.4, 0.5)),
        vanish=width * float(rng.uniform(0.36, 0.64)),
        eye=float(rng.uniform(1.3, 1.75)),
        bend=float(rng.normal(0.0, 0.0005)),
    )


def _queue(
    setting: Setting, x: float, start: float, end: float, gap: tuple[float, float], oncoming: bool,
    shares: tuple[float, float],
) -> list[SceneObject]:  # fmt: skip
    # One lane of traffic; shares are the probabilities of a truck and of a bus instead of a car.
    items: list[SceneObject] = []
    z = start
    while z < end:
        draw = setting.rng.random()
        lane = x + setting.between(-0.25, 0.25)
        if draw < shares[0]:
            items.append(vehicles.truck(setting, lane, z, oncoming))
            z += 11
        elif draw < shares[0] + shares[1]:
            items.append(vehicles.bus(setting, lane, z, oncoming))
            z += 12
        else:
            items.append(vehicles.car(setting, lane, z, oncoming))
            z += 4.8
        z += setting.between(*gap)
    return items


def _town_side(setting: Setting, side: float, line: float) -> list[SceneObject]:
    # Houses, and here and there a gap with a wall, a fence or a park, along one building line.
    items: list[SceneObject] = []
    z, height = setting.between(5.0, 9.0), setting.between(9, 17)
    while z < 130:
        long = setting.between(9, 20)
        x = side * (line + setting.between(0.0, 0.8))
        if setting.chance(0.72):
            tall = height * setting.between(0.75, 1.25)
            items += surroundings.building(setting, x, z, z + long, tall)
        else:
            items.append(ground.terrain(setting, x, x + side * 30))
            draw = setting.count(0, 2)
            if draw == 0:
                items.append(surroundings.wall(setting, x, z, z + long, setting.between(1.6, 2.6)))
            elif draw == 1:
                items.append(surroundings.fence(setting, x, z, z + long, setting.between(1.2, 1.9)))
            else:
                items += surroundings.hedge(
                    setting, x + side, z, z + long, setting.between(1.4, 2.4)
                )
            for _ in range(setting.count(1, 3)):
                where = setting.between(z, z + long)
                items.append(
                    surroundings.tree(
                        setting, x + side * setting.between(2, 7), where, setting.between(6, 10)
                    )
                )
                items[-1].layer = 3
        z += long
    return items


def town(setting: Setting, crowded: float = 1.0) -> list[SceneObject]:
    """A town street; ``crowded`` scales the number of people."""
    s = setting
    left, right = -s.between(4.6, 6.2), s.between(2.6, 3.4)
    tram = s.chance(0.3)
    middle = (left + right) / 2
    road = ground.road(
        s,
        left,
        right,
        [(middle, s.chance(0.7)), (left + 0.25, False), (right - 0.25, False)][: s.count(1, 3)],
    )
    if s.chance(0.5):
        ground.crossing(s, road, left, right, s.between(7, 22))
    if tram:
        ground.rails(s, road, left + 1.7)
    items = [ground.sky(s), *ground.backdrop(s, (6, 26)), ground.plain(s), road]
    walk_left, walk_right = s.between(2.2, 4.2), s.between(2.2, 4.2)
    kerbs = {-1.0: left, 1.0: right}
    lines = {-1.0: -left + walk_left, 1.0: right + walk_right}
    for side in (-1.0, 1.0):
        kerb = kerbs[side]
        outer = side * lines[side]
        if s.chance(0.15):
            items.append(ground.parking(s, kerb, kerb + side * 1.8))
            kerb, outer = kerb + side * 1.8, outer + side * 1.8
            kerbs[side], lines[side] = kerb, lines[side] + 1.8
        items.append(ground.sidewalk(s, kerb, outer + side * 1.5))
        items += _town_side(s, side, lines[side])
        items += _town_kerb(s, side, kerb, outer, crowded)
    # Traffic: our lane ahead, the other lane towards us, and parked cars along the kerbs.
    items += _queue(s, right - 1.8, s.between(10, 26), 70, (6, 26), False, (0.14, 0.1))
    if tram:
        items.append(vehicles.train(s, left + 1.7, s.between(11, 30)))
    else:
        items += _queue(s, left + 1.7, s.between(9, 24), 70, (6, 26), True, (0.12, 0.12))
    for _ in range(s.count(1, 3)):
        x, z = s.between(left + 0.8, right - 0.6), s.between(7.5, 26)
        items += people.rider(s, x, z, motor=s.chance(0.35))
    if s.chance(0.2):
        items.append(vehicles.side_car(s, s.between(left, right), s.between(12, 26)))
    for _ in range(round(s.count(0, 3) * crowded)):
        items.append(people.person(s, s.between(left, right), s.between(9, 35)))
    return items


def _town_kerb(
    s: Setting, side: float, kerb: float, outer: float, crowded: float
) -> list[SceneObject]:
    # Everything on one sidewalk and at its kerb.
    items: list[SceneObject] = []
    low, high = sorted((kerb + side * 0.9, outer - side * 0.3))
    edge = kerb + side * 0.45
    if s.chance(0.55):
        parked = kerb - side * 0.95
        items += _queue(s, parked, s.between(8, 16), 55, (0.8, 9), side < 0, (0.05, 0.0))
    if s.chance(0.4):
        z = s.between(7, 10)
        while z < 60:
            items.append(surroundings.tree(s, edge + side * 0.3, z, s.between(5, 8.5)))
            z += s.between(8, 20)
    for place in np.arange(s.between(7, 16), 90, s.between(18, 30)):
        items.append(furniture.lamp(s, edge, float(place)))
    for _ in range(s.count(1, 3)):
        items += furniture.traffic_sign(s, edge, s.between(7, 30))
    if s.chance(0.65):
        items += furniture.traffic_light(s, edge, s.between(7.5, 20))
    for _ in range(s.count(0, 3)):
        items.append(furniture.plain_pole(s, edge, s.between(6, 20), s.between(0.9, 1.2)))
    for _ in range(round(s.count(4, 9) * crowded)):
        items.append(people.person(s, s.between(low, high), s.between(6.5, 42)))
    if s.chance(0.4 * crowded):
        items.append(people.crowd(s, s.between(low, high), s.between(25, 45), s.count(3, 6)))
    for _ in range(s.count(0, 2)):
        items.append(people.bicycle(s, edge + side * 0.4, s.between(6.5, 22)))
    if s.chance(0.2):
        items.append(
            people.bicycle_stand(s, s.between(low, high), s.between(10, 22), s.count(3, 6))
        )
    if s.chance(0.35):
        items.append(people.motorcycle(s, edge + side * 0.3, s.between(7, 18)))
    if s.chance(0.4):
        items.append(furniture.bin_or_box(s, outer - side * 0.6, s.between(8, 25)))
    return items


def _highway_side(s: Setting, side: float, edge: float) -> list[SceneObject]:
    # One of the usual borders of a highway.
    items: list[SceneObject] = [ground.terrain(s, edge, side * 90)]
    near = 4.0
    kind = s.count(0, 4)
    verge = edge + side * s.between(1.5, 4.0)
    if kind == 0:
        items.append(surroundings.wall(s, verge, near, 150, s.between(2.2, 4.2)))
    elif kind == 1:
        items.append(surroundings.fence(s, verge, near, 110, s.between(1.3, 2.2)))
    elif kind == 2:
        items.append(surroundings.guard_rail(s, edge + side * 0.5, near, 150))
    if kind in (0, 1, 2, 3):
        items += surroundings.hedge(s, verge + side * s.between(3, 9), 14, 150, s.between(2.0, 4.5))
        for _ in range(s.count(2, 6)):
            x, z = verge + side * s.between(3, 16), s.between(20, 110)
            items.append(surroundings.tree(s, x, z, s.between(6, 11)))
            items[-1].layer = 3
    else:
        z = s.between(20, 40)
        while z < 140:
            long = s.between(16, 36)
            items += surroundings.building(
                s, verge + side * s.between(6, 14), z, z + long, s.between(6, 16)
            )
            z += long + s.between(2, 25)
    for place in np.arange(s.between(12, 30), 140, s.between(30, 45)):
        if kind != 3:
            items.append(furniture.lamp(s, edge + side * 0.9, float(place)))
    return items


def highway(setting: Setting) -> list[SceneObject]:
    """A highway of two to four lanes, with a carriageway the other way beyond a divider."""
    s = setting
    lanes, wide = s.count(2, 4), 3.6
    ours = s.count(0, lanes - 1)
    left = -(ours + 0.5) * wide - 0.6
    right = left + lanes * wide + s.between(1.2, 3.2)
    lines = [(left + 0.5, False), (left + 0.5 + lanes * wide, False)]
    lines += [(left + 0.5 + lane * wide, True) for lane in range(1, lanes)]
    items = [
        ground.sky(s),
        *ground.backdrop(s, (4, 16)),
        ground.plain(s),
        ground.road(s, left, right, lines),
    ]
    items += _highway_side(s, 1.0, right)
    shares = (0.27, 0.08)
    if s.chance(0.65):
        divider = left - s.between(0.6, 1.6)
        far_edge = divider - lanes * wide - 1.5
        items.append(ground.terrain(s, left, divider - 0.6))
        items.append(ground.road(s, far_edge, divider - 0.6, [(divider - 0.9 - wide, True)]))
        items += _highway_side(s, -1.0, far_edge)
        barrier = surroundings.wall if s.chance(0.55) else surroundings.fence
        items.append(barrier(s, divider, 3.0, 150, s.between(0.8, 1.1)))
        for lane in range(min(lanes, 2)):
            x = divider - 1.2 - (lane + 0.5) * wide
            oncoming = _queue(s, x, s.between(14, 60), 130, (25, 70), True, shares)
            for item in oncoming:
                item.layer = 4  # behind the divider, which is in the same layer but nearer
            items += oncoming
    else:
        items += _highway_side(s, -1.0, left)
    for lane in range(lanes):
        x = left + 0.5 + (lane + 0.5) * wide
        start = s.between(9, 24) if lane == ours else s.between(5, 28)
        items += _queue(s, x, start, 110, (22, 60), False, shares)
    if s.chance(0.45):
        items += furniture.gantry(s, left - 0.3, right + 0.3, s.between(22, 55))
    if s.chance(0.6):
        items += furniture.road_sign(s, right + 2.6, s.between(14, 40))
    if s.chance(0.14):
        items += people.rider(
            s, left + 0.5 + s.between(0, lanes) * wide, s.between(8, 20), motor=True
        )
    return items
