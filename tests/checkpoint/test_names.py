"""Where weights are in a file, and under which names."""

import numpy as np
import torch

from divdr.checkpoint import find_weights, rename

ONE, TWO = torch.ones(1), torch.full((1,), 2.0)


def test_weights_are_found_under_the_usual_keys():
    state = {"conv.weight": ONE, "conv.bias": np.full(1, 2.0, np.float32)}
    for content, keys in (
        (state, ()),
        ({"model": state, "iteration": 3}, ("model",)),
        ({"state_dict": state, "epoch": 3, "optimizer_states": [{}]}, ("state_dict",)),
        ({"model": {"model_state_dict": state}}, ("model", "model_state_dict")),
        ({"model": {}, "ema": state}, ("ema",)),
    ):
        found = find_weights(content)
        assert found.keys == keys
        assert found.weights["conv.weight"].equal(ONE)
        assert found.weights["conv.bias"].equal(TWO)


def test_what_holds_no_weights_gives_none():
    cycle = {}
    cycle["model"] = cycle
    for content in (None, 3, "text", [ONE], {}, {"model": 3}, {"elsewhere": {"a": ONE}}, cycle):
        assert find_weights(content) is None
    assert list(find_weights({"a": ONE, 3: TWO, "b": "text"}).weights) == ["a"]


def test_arrays_of_any_byte_order_are_read_and_those_of_no_numbers_left_out():
    arrays = {"a": np.array([1.5], ">f4"), "b": np.array([None]), "c": np.array(["text"])}
    weights = find_weights(arrays).weights
    assert list(weights) == ["a"]
    assert weights["a"].equal(torch.tensor([1.5]))


def test_prefixes_are_taken_off_and_said():
    for prefix, reported in (
        ("module.", ("module.",)),
        ("_orig_mod.", ("_orig_mod.",)),
        ("model.module.", ("model.module.",)),
        ("", ()),
    ):
        found = rename({f"{prefix}a.weight": ONE, f"{prefix}b": TWO}, ["a.weight", "b"])
        assert found.weights == {"a.weight": ONE, "b": TWO}
        assert found.taken_off == reported


def test_a_compiled_part_and_a_compiled_model_are_known():
    found = rename({"backbone._orig_mod.weight": ONE}, ["backbone.weight"])
    assert found.weights == {"backbone.weight": ONE}
    assert found.taken_off == ("_orig_mod.",)
    assert rename({"weight": ONE}, ["_orig_mod.weight"]).weights == {"_orig_mod.weight": ONE}


def test_names_that_the_model_has_are_left_alone():
    own = ["model.weight", "weight"]
    assert rename({"model.weight": ONE, "weight": TWO}, own).weights == {
        "model.weight": ONE,
        "weight": TWO,
    }
    # Names that differ by a prefix alone cannot be told apart: nothing is guessed.
    assert rename({"module.weight": ONE}, own).taken_off == ()


def test_weights_that_the_model_has_not_stay_for_the_report():
    found = rename({"model.a": ONE, "model.extra": TWO, "loss.scale": TWO}, ["a"])
    assert found.weights == {"a": ONE, "extra": TWO, "loss.scale": TWO}
    assert rename({"model.b": ONE}, ["a"]).weights == {"model.b": ONE}
