"""Files that nobody would write: each is used rightly, or an error in one sentence names it."""

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz import annotations, checkpoints, configs, labels


def drawn(module):
    """A test of 100 examples of a module."""

    @settings(
        max_examples=100,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(example=module.examples())
    def check(tmp_path, example):
        module.check_one(example, tmp_path)

    return check


test_annotation_files = drawn(annotations)
test_checkpoints = drawn(checkpoints)
test_configurations = drawn(configs)
test_label_files = drawn(labels)


def test_sound_and_broken_configurations(tmp_path):
    assert configs.check_one(configs.Example(b"SEED: 3\n", ["SOLVER.BASE_LR", "1"]), tmp_path)
    assert not configs.check_one(configs.Example(b"SEED: {3: 4}\n"), tmp_path)
    assert not configs.check_one(configs.Example(None, ["SOLVER.BASE_LR"]), tmp_path)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_sound_checkpoints_of_every_format(form, tmp_path):
    wrapped = ("state_dict", "ema"), "model.module.", {"epoch": 3}
    assert checkpoints.check_one(checkpoints.Case(form, *wrapped, ("none",)), tmp_path)


@pytest.mark.parametrize("place", [0.2, 0.4, 0.5, 0.6, 0.7])
def test_a_flipped_bit_anywhere_among_the_numbers(place, tmp_path):
    checkpoints.check_one(
        checkpoints.Case("zip", ("model",), "", {}, ("flip", ((place, 6),))), tmp_path
    )


def test_sound_and_broken_annotations(tmp_path):
    assert annotations.check_one([], tmp_path)
    assert not annotations.check_one([(("annotations", 0, "bbox"), "remove", None)], tmp_path)


def test_sound_and_broken_labels(tmp_path):
    values = labels.np.full(labels.SIZE, 2)
    for kind in labels.KINDS:
        whole = values if kind != "1 png" else values - 1
        assert labels.check_one(labels.LabelFile(whole, kind), tmp_path)
        assert not labels.check_one(labels.LabelFile(whole, kind, cut=0.1), tmp_path)
