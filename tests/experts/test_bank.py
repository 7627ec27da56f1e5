import io

import pytest
import torch
import torch.distributed as dist
from host_waits import HostWaits
from hypothesis import given, settings
from hypothesis import strategies as st
from two_processes import join, start_two

from divdr.errors import CheckpointError
from divdr.experts import ActivationBank


def content(bank: ActivationBank) -> dict[str, tuple[list[float], int]]:
    rows, steps = bank.rows.tolist(), bank.steps.tolist()
    return {key: (row, step) for key, row, step in zip(bank.keys, rows, steps, strict=True)}


def test_rows_come_in_the_order_of_keys():
    bank = ActivationBank(2)
    bank.update(["b", "c"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 5)
    bank.update(["a"], torch.tensor([[5.0, 6.0]]), 6)
    assert bank.keys == ["a", "b", "c"]
    assert bank.rows.tolist() == [[5.0, 6.0], [1.0, 2.0], [3.0, 4.0]]
    assert bank.steps.tolist() == [6, 5, 5]
    assert len(bank) == 3
    assert "b" in bank
    assert "d" not in bank


def test_later_step_wins_whatever_comes_last():
    bank = ActivationBank(1)
    bank.update(["a"], torch.tensor([[1.0]]), 10)
    bank.update(["a"], torch.tensor([[2.0]]), 9)
    assert content(bank) == {"a": ([1.0], 10)}
    bank.update(["a"], torch.tensor([[3.0]]), 10)
    assert content(bank) == {"a": ([3.0], 10)}


def test_last_row_of_a_repeated_key_wins():
    bank = ActivationBank(1)
    bank.update(["a", "b", "a"], torch.tensor([[1.0], [2.0], [3.0]]), 0)
    assert content(bank) == {"a": ([3.0], 0), "b": ([2.0], 0)}


@settings(max_examples=40, deadline=None)
@given(
    calls=st.lists(
        st.tuples(st.lists(st.sampled_from("abcdefgh"), max_size=6), st.integers(0, 5)),
        max_size=12,
    )
)
def test_against_a_dictionary(calls):
    bank = ActivationBank(2)
    expected: dict[str, tuple[list[float], int]] = {}
    value = 0.0
    for keys, step in calls:
        rows = []
        new = {}
        for key in keys:
            value += 1
            rows.append([value, -value])
            new[key] = ([value, -value], step)
        bank.update(keys, torch.tensor(rows).reshape(-1, 2), step)
        for key, entry in new.items():
            if key not in expected or step >= expected[key][1]:
                expected[key] = entry
    assert content(bank) == expected
    assert bank.keys == sorted(expected)


def test_rows_are_detached_float32_and_copies():
    bank = ActivationBank(2)
    given_rows = torch.tensor([[0.5, 0.25]], dtype=torch.float64, requires_grad=True)
    bank.update(["a"], given_rows, 0)
    with torch.no_grad():
        given_rows.zero_()  # what the giver does later is no matter
    rows = bank.rows
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    rows.zero_()
    assert bank.rows.tolist() == [[0.5, 0.25]]


def test_rows_are_rounded_as_they_arrive():
    bank = ActivationBank(3)
    # Between 0.5 and 1 half precision steps by 2^-11, and to the even one from the middle.
    bank.update(["a"], torch.tensor([[0.5 + 2**-12, 0.5 + 3 * 2**-12, 1e6]]), 0)
    assert bank.rows.tolist() == [[0.5, 0.5 + 2**-10, 65504.0]]
    state = bank.state_dict()
    assert state["rows"].dtype == torch.float16
    other = ActivationBank(3)
    other.load_state_dict(state)
    assert other.rows.equal(bank.rows)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_stay_out(bad, caplog):
    bank = ActivationBank(2)
    bank.update(["a", "b"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0)
    broken = torch.tensor([[5.0, bad], [6.0, 7.0], [bad, bad]])
    bank.update(["a", "b", "c"], broken, 1)
    assert content(bank) == {"a": ([1.0, 2.0], 0), "b": ([6.0, 7.0], 1)}
    assert "Step 1: 2 of 3 activations are not finite" in caplog.text
    # Of a key that occurs twice the last whole row counts.
    bank.update(["d", "d"], torch.tensor([[8.0, 9.0], [bad, 0.0]]), 2)
    assert content(bank)["d"] == ([8.0, 9.0], 2)


def test_rows_wait_until_somebody_asks(monkeypatch):
    seen = []
    looked = torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda t: seen.append(len(t)) or looked(t))
    bank = ActivationBank(1)
    for step in range(63):
        bank.update([f"{step:02}"], torch.zeros(1, 1), step)
    assert not seen
    bank.update(["63"], torch.zeros(1, 1), 63)  # so many do not wait for ever
    assert len(seen) == 64
    assert len(bank) == 64


def test_what_training_needs_is_no_tensor_of_inference_mode():
    bank = ActivationBank(1)
    with torch.inference_mode():
        bank.update(["a"], torch.ones(1, 1), 0)
        assert len(bank) == 1
        bank.clear()
        bank.update([f"{i:03}" for i in range(300)], torch.ones(300, 1), 1)
        assert len(bank) == 300
    bank.update(["000"], torch.zeros(1, 1), 2)
    assert bank.rows.sum() == 299
    assert not bank.rows.is_inference()


def test_renamed_rows_and_dropped_ones():
    bank = ActivationBank(1)
    bank.update(["x", "y", "z"], torch.tensor([[1.0], [2.0], [3.0]]), 0)
    bank.update(["y"], torch.tensor([[4.0]]), 5)
    bank.rename({"x": "new", "y": "new", "z": "b"})
    assert content(bank) == {"b": ([3.0], 0), "new": ([4.0], 5)}
    bank.update(["b"], torch.tensor([[3.0]]), 6)
    bank.rename({"b": "b", "new": "b"})
    assert content(bank) == {"b": ([3.0], 6)}
    bank.replace(["b", "new"], torch.tensor([[3.0], [4.0]]), 5)
    bank.discard(["b", "nobody"])
    assert content(bank) == {"new": ([4.0], 5)}
    bank.update(["b"], torch.tensor([[6.0]]), 4)
    bank.forget_before(5)
    assert content(bank) == {"new": ([4.0], 5)}


def test_growth_keeps_rows_and_rarely_allocates(monkeypatch):
    bank = ActivationBank(3)
    storages = set()
    for i in range(3000):
        bank.update([f"{i:05d}"], torch.full((1, 3), i / 4096), i)
        assert len(bank) == i + 1
        storages.add(len(bank._storage))
    assert bank.rows[:, 1].tolist() == [(torch.tensor(i) / 4096).half() for i in range(3000)]
    # 256, 512, 1024, 2048, 4096.
    assert len(storages) <= 5


def test_replace_forgets_the_rest():
    bank = ActivationBank(1)
    bank.update(["a", "b"], torch.tensor([[1.0], [2.0]]), 9)
    bank.replace(["b", "c"], torch.tensor([[3.0], [4.0]]), 5)
    assert content(bank) == {"b": ([3.0], 5), "c": ([4.0], 5)}
    bank.clear()
    assert len(bank) == 0
    assert bank.rows.shape == (0, 1)
    assert bank.steps.shape == (0,)


def test_without_a_process_group_synchronise_changes_nothing():
    bank = ActivationBank(1)
    bank.update(["a"], torch.tensor([[1.0]]), 9)
    bank.synchronise()
    assert content(bank) == {"a": ([1.0], 9)}


@pytest.mark.parametrize("shape", [(1, 2), (2, 3), (2,)])
def test_rows_must_fit(shape):
    with pytest.raises(ValueError, match="Expected rows"):
        ActivationBank(2).update(["a", "b"], torch.zeros(shape), 0)


def test_rows_need_a_length():
    with pytest.raises(ValueError, match="length 1"):
        ActivationBank(0)


def test_state_survives_a_safe_file():
    bank = ActivationBank(2)
    bank.update(["b", "a"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 7)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other = ActivationBank(2)
    other.update(["z"], torch.zeros(1, 2), 100)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert content(other) == content(bank)
    # It can be written to afterwards.
    other.update(["a"], torch.tensor([[9.0, 9.0]]), 8)
    assert other.rows[0].tolist() == [9.0, 9.0]


def test_state_of_another_length():
    with pytest.raises(CheckpointError, match=r"length 3.*has 2"):
        ActivationBank(2).load_state_dict(ActivationBank(3).state_dict())


def test_state_that_is_damaged():
    bank = ActivationBank(2)
    bank.update(["a"], torch.zeros(1, 2), 0)
    state = bank.state_dict()
    state["keys"] = ["a", "b"]
    other_rows = {**bank.state_dict(), "rows": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="damaged"):
        bank.load_state_dict(other_rows)
    with pytest.raises(CheckpointError, match="damaged"):
        bank.load_state_dict(state)
    assert len(bank) == 1


def test_state_of_before():
    """Rows of full precision, some of which were broken, and paths as keys."""
    state = {
        "dim": 1,
        "keys": ["/data/a.png", "/data/b.png"],
        "rows": torch.tensor([[0.5 + 2**-12], [float("nan")]]),
        "steps": torch.tensor([3, 4]),
    }
    bank = ActivationBank(1)
    bank.load_state_dict(state)
    assert content(bank) == {"/data/a.png": ([0.5], 3)}
    assert bank.former_keys
    again = ActivationBank(1)
    again.load_state_dict(bank.state_dict())  # as a study hands it on
    assert again.former_keys
    again.update(["/data/c.png"], torch.zeros(1, 1), 5)
    again.discard(["/data/c.png"])
    assert again.former_keys
    assert len(again) == 1
    again.rename({"/data/a.png": "set/a.png"})
    assert not again.former_keys
    assert not ActivationBank(1).former_keys


def _bank_worker(rank: int, folder: str) -> None:
    join(rank, folder)
    sent = []
    original = dist.all_gather_object

    def counting(gathered, payload):
        sent.append(list(payload[0]))
        original(gathered, payload)

    dist.all_gather_object = counting
    bank = ActivationBank(1)
    # Different arrival orders, a newer step on either side, and a tie.
    if rank == 0:
        bank.update(["tie", "old", "zero"], torch.tensor([[10.0], [11.0], [12.0]]), 5)
        bank.update(["new"], torch.tensor([[13.0]]), 9)
    else:
        bank.update(["new", "one"], torch.tensor([[20.0], [21.0]]), 2)
        bank.update(["old"], torch.tensor([[22.0]]), 6)
        bank.update(["tie"], torch.tensor([[23.0]]), 5)
    bank.synchronise()
    first = content(bank)
    if rank == 1:
        bank.update(["one"], torch.tensor([[30.0]]), 12)
    bank.synchronise()
    second = content(bank)
    bank.replace([f"part{rank}", "gone"], torch.tensor([[float(rank)], [7.0]]), 20)
    bank.discard(["gone"])
    bank.synchronise()
    bank.load_state_dict(bank.state_dict())
    bank.synchronise()
    torch.save((first, second, content(bank), sent), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_merge(tmp_path):
    start_two(_bank_worker, str(tmp_path))
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    merged = {
        "new": ([13.0], 9),
        "old": ([22.0], 6),
        "one": ([21.0], 2),
        "tie": ([10.0], 5),
        "zero": ([12.0], 5),
    }
    for first, second, third, _ in results:
        assert first == merged
        assert second == {**merged, "one": ([30.0], 12)}
        assert third == {"part0": ([0.0], 20), "part1": ([1.0], 20)}
    # Only what changed travels.
    assert results[0][3] == [["new", "old", "tie", "zero"], [], ["part0"], []]
    assert results[1][3] == [["new", "old", "one", "tie"], ["one"], ["part1"], []]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_follow_the_device():
    bank = ActivationBank(2)
    bank.update(["a"], torch.ones(1, 2), 0)
    bank.to("cuda").update(["b"], torch.zeros(1, 2, device="cuda"), 1)
    assert bank.rows.is_cuda
    assert bank.rows.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert not bank.state_dict()["rows"].is_cuda


def test_noting_waits_for_nothing_and_reading_once():
    bank = ActivationBank(4)
    with HostWaits() as device:
        for step in range(50):
            rows = torch.full((3, 4), float(step), device="cuda")
            device.waits.clear()
            bank.update([f"{step % 7}", f"{step}", "last"], rows, step)
            assert device.waits == [], device.places
        len(bank)
        # Which of the rows are finite.
        assert device.waits == ["tolist"], device.places
    assert len(bank) == 51
    assert bank.rows[bank.keys.index("last")].tolist() == [49.0] * 4
    assert bank.steps[bank.keys.index("3")] == 45
