"""People with the 17 keypoints of COCO, posed in three dimensions."""

from __future__ import annotations

import cv2
import numpy as np

from drawn.streetscapes.people import HAIR, SHIRTS, SKIN, TROUSERS
from drawn.streetscapes.scene import Colour, Part, Setting, shade
from drawn.streetscapes.shapes import ellipse, limb

from .categories import KEYPOINT_NAMES
from .thing import Keypoint, Thing

#: Metres to the person's own left, up, and ahead.
_Place = np.ndarray

_SHOE: Colour = (40, 34, 32)
_EYE: Colour = (24, 22, 26)

#: Nothing turned further away than this (metres) from the front of the head is labelled.
_BEHIND = -0.03


def _reach(start: _Place, length: float, aside: float, ahead: float) -> _Place:
    """The end of a limb that hangs down, is lifted aside by one angle and ahead by another."""
    down, out = np.cos(aside), np.sin(aside)
    return start + length * np.array([out, -down * np.cos(ahead), down * np.sin(ahead)])


def _skeleton(setting: Setting) -> dict[str, _Place]:
    """Places of the joints of a person 1.75 m tall, upright on the ground."""
    joints = {"nose": np.array([0.0, 1.59, 0.13])}
    stride = setting.between(0.0, 0.5)
    lifted = setting.chance(0.45)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        joints[f"{side}_eye"] = np.array([0.055 * sign, 1.65, 0.115])
        joints[f"{side}_ear"] = np.array([0.125 * sign, 1.62, 0.0])
        shoulder = joints[f"{side}_shoulder"] = np.array([0.2 * sign, 1.4, 0.0])
        aside = setting.between(0.1, 0.35)
        bend = setting.between(-0.1, 0.3)
        swing = -sign * 0.9 * stride
        if lifted and setting.chance(0.6):
            aside, bend = setting.between(1.2, 2.4), setting.between(0.0, 0.7)
        elbow = _reach(shoulder, 0.29, sign * aside, swing)
        joints[f"{side}_elbow"] = elbow
        joints[f"{side}_wrist"] = _reach(elbow, 0.27, sign * (aside + bend), swing + 0.2)
        hip = joints[f"{side}_hip"] = np.array([0.12 * sign, 0.9, 0.0])
        knee = _reach(hip, 0.42, sign * setting.between(0.0, 0.2), sign * stride)
        joints[f"{side}_knee"] = knee
        backwards = setting.between(0.0, 0.4) * (stride > 0.2)
        ankle = _reach(knee, 0.4, sign * setting.between(0.0, 0.1), sign * stride - backwards)
        joints[f"{side}_ankle"] = ankle
    lowest = min(joints[f"{side}_ankle"][1] for side in ("left", "right")) - 0.07
    return {name: place - (0.0, lowest, 0.0) for name, place in joints.items()}


def _yaw(setting: Setting) -> float:
    # Mostly towards the camera, sometimes away from it or to the side.
    kind = setting.rng.random()
    if kind < 0.55:
        return setting.between(-0.6, 0.6)
    if kind < 0.75:
        return np.pi + setting.between(-0.5, 0.5)
    return float(setting.rng.choice([-1, 1])) * setting.between(1.2, 1.9)


class _Figure:
    """A posed person seen from the front of the picture: shapes sorted by nearness."""

    def __init__(self, setting: Setting) -> None:
        yaw = _yaw(setting)
        cos, sin = np.cos(yaw), np.sin(yaw)
        #: Metres to the right of the picture, up, and towards the camera.
        self.joints = {
            name: np.array([cos * left + sin * ahead, up, cos * ahead - sin * left])
            for name, (left, up, ahead) in _skeleton(setting).items()
        }
        self.girth = setting.between(0.9, 1.2)
        #: Nearness, outline, colour, and the keypoints that lie on it.
        self.shapes: list[tuple[float, np.ndarray, Colour, tuple[str, ...]]] = []
        shirt, trousers = setting.pick(SHIRTS), setting.pick(TROUSERS)
        skin, hair = setting.pick(SKIN), setting.pick(HAIR)
        bare = setting.chance(0.3)
        for side in ("left", "right"):
            self._limb(f"{side}_hip", f"{side}_knee", 0.19, trousers)
            self._limb(f"{side}_knee", f"{side}_ankle", 0.15, skin if bare else trousers)
            x, y, near = self.joints[f"{side}_ankle"]
            toe = 0.07 * np.sin(yaw)
            shoe = ellipse(x + toe, y - 0.02, 0.09 + abs(toe) / 2, 0.06)
            self.shapes.append((near + 0.01, shoe, _SHOE, (f"{side}_ankle",)))
            self._limb(f"{side}_shoulder", f"{side}_elbow", 0.13, shade(shirt, 0.82))
            self._limb(f"{side}_elbow", f"{side}_wrist", 0.11, skin)
            x, y, near = self.joints[f"{side}_wrist"]
            self.shapes.append((near, ellipse(x, y, 0.07, 0.07), skin, (f"{side}_wrist",)))
        self._torso(shirt)
        self._head(skin, hair)
        self.shapes.sort(key=lambda shape: shape[0])

    def _limb(self, start: str, end: str, width: float, colour: Colour) -> None:
        (x0, y0, near0), (x1, y1, near1) = self.joints[start], self.joints[end]
        width *= self.girth
        nearness = (near0 + near1) / 2
        for x, y in ((x0, y0), (x1, y1)):
            self.shapes.append((nearness, ellipse(x, y, width / 2, width / 2), colour, ()))
        self.shapes.append((nearness, limb(x0, y0, x1, y1, width), colour, (start, end)))

    def _torso(self, colour: Colour) -> None:
        names = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
        corners = []
        for name in names:
            x, y, _ = self.joints[name]
            # Seen from the side the joints coincide, but a chest is deep too.
            corners.append(ellipse(x, y, 0.1 * self.girth, 0.07))
        body = cv2.convexHull(np.concatenate(corners).astype(np.float32)).reshape(-1, 2)
        near = tuple(n for n in names if self.joints[n][2] > -0.12)
        self.shapes.append((0.0, body.astype(np.float64), colour, near))

    def _head(self, skin: Colour, hair: Colour) -> None:
        top = self.joints["left_ear"] + self.joints["right_ear"]
        x, y = top[0] / 2, top[1] / 2
        nose = self.joints["nose"]
        self.shapes.append((0.1, ellipse(x, y - 0.16, 0.07, 0.1), shade(skin, 0.8), ()))
        face = [n for n in KEYPOINT_NAMES[:5] if self.joints[n][2] > _BEHIND]
        head = ellipse(x, y - 0.01, 0.15, 0.18)
        if nose[2] < _BEHIND:
            self.shapes.append((0.5, head, hair, tuple(face)))
            return
        self.shapes.append((0.5, head, skin, tuple(face)))
        cap = ellipse(x - 0.35 * (nose[0] - x), y + 0.02, 0.165, 0.19, 30)
        away = 0.1 * (nose[0] - x) / 0.13
        above = cap[:, 1] > y + 0.09
        beside = (cap[:, 0] - x) * np.sign(away) < -0.06 if abs(away) > 0.05 else above
        self.shapes.append((0.6, cap[above | beside], hair, ()))
        bump = ellipse(nose[0], nose[1], 0.035, 0.04)
        self.shapes.append((0.7, bump, shade(skin, 0.72), ("nose",)))
        for side in ("left", "right"):
            x_eye, y_eye, near = self.joints[f"{side}_eye"]
            if near > _BEHIND:
                dot = ellipse(x_eye, y_eye, 0.019, 0.024)
                self.shapes.append((0.7, dot, _EYE, (f"{side}_eye",)))


def person(setting: Setting, x: float, z: float) -> Thing:
    """A person at street position (x, z).

    Of the keypoints, those on the far side of the head have v = 0, those that the person's own
    body hides v = 1. What the edge of the picture or other objects hide is not considered here.
    """
    figure = _Figure(setting)
    tall = setting.between(0.9, 1.1) if setting.chance(0.85) else setting.between(0.6, 0.75)
    camera = setting.camera
    parts = [
        Part(camera.standing(x, z, outline * tall), colour)
        for _, outline, colour, _ in figure.shapes
    ]
    keypoints: list[Keypoint] = []
    for name in KEYPOINT_NAMES:
        joint = figure.joints[name]
        column, row = camera.standing(x, z, joint[None, :2] * tall)[0]
        visible = _visibility(name, figure, parts, (float(column), float(row)))
        keypoints.append((float(column), float(row), visible))
    column, row = camera.point(x, 0.0, z)
    scale = camera.scale(z)
    shadow = (column, row, 0.36 * tall * scale, 0.09 * tall * scale + 1)
    return Thing("person", parts, z, keypoints=keypoints, shadow=shadow)


def _visibility(name: str, figure: _Figure, parts: list[Part], place: tuple[float, float]) -> int:
    if name in KEYPOINT_NAMES[:5] and figure.joints[name][2] <= _BEHIND:
        return 0
    hidden = False
    carried = False
    for part, (_, _, _, names) in zip(parts, figure.shapes, strict=True):
        if name in names:
            carried, hidden = True, False
        elif carried and names:
            inside = cv2.pointPolygonTest(part.points.astype(np.float32), place, False)
            hidden |= inside >= 0
    return 1 if hidden or not carried else 2


def crowd(setting: Setting, x: float, z: float, members: int) -> Thing:
    """People too far away and too close together to be annotated one by one."""
    people = [
        person(setting, x + 0.5 * member + setting.between(-0.1, 0.1), z + setting.between(0, 1.5))
        for member in range(members)
    ]
    people.sort(key=lambda one: -one.depth)
    return Thing("person", [part for one in people for part in one.parts], z, crowd=True)
