"""Figures of image classification, counted by hand."""

import pytest
import torch
from host_waits import HostWaits
from sklearn.metrics import top_k_accuracy_score

from divdr.errors import DataError
from divdr.evaluation import ClassificationEvaluator, ClassifierCostEvaluator, summary_table


def evaluate(evaluator, labels, scores):
    evaluator.reset()
    for label, row in zip(labels, scores, strict=True):
        evaluator.process([{"label": label}], [{"scores": torch.as_tensor(row)}])
    return evaluator.evaluate()


def test_accuracy_in_all_and_of_every_class():
    labels = [0, 0, 1, 2]
    scores = [[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]]
    figures = evaluate(ClassificationEvaluator("abc"), labels, scores)["classification"]
    assert figures == {"images": 4, "top1": 50.0, "top1-a": 50.0, "top1-b": 100.0, "top1-c": 0.0}


def test_top_5_as_scikit_learn_has_it():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 12, generator=generator)
    labels = torch.randint(12, (200,), generator=generator)
    figures = evaluate(ClassificationEvaluator("abcdefghijkl"), labels.tolist(), scores)
    for k in (1, 5):
        expected = 100 * top_k_accuracy_score(labels, scores, k=k, labels=range(12))
        assert figures["classification"][f"top{k}"] == pytest.approx(expected)
    table = summary_table({"set": figures})
    assert "top5" in table
    assert "top1-a" not in table


def test_scores_that_are_no_numbers_count_as_wrong(caplog):
    nan, inf = float("nan"), float("inf")
    scores = [[nan, nan], [0.2, nan], [inf, 0.1], [0.9, 0.1]]
    figures = evaluate(ClassificationEvaluator("ab"), [0, 0, 0, 0], scores)["classification"]
    assert figures["top1"] == 25.0
    assert "scores of 3 images are not finite" in caplog.text


def test_equal_scores_give_no_credit_that_argmax_would_not():
    figures = evaluate(ClassificationEvaluator("ab"), [0, 1], [[0.5, 0.5], [0.5, 0.5]])
    assert figures["classification"]["top1"] == 50.0


def test_a_batch_counts_as_its_images_do_and_lets_the_host_wait_once():
    generator = torch.Generator().manual_seed(1)
    scores = (4 * torch.rand(40, 6, generator=generator)).round()  # many ties
    labels = torch.randint(6, (40,), generator=generator).tolist()
    scores[3, 2] = float("nan")
    alone = evaluate(ClassificationEvaluator("abcdef"), labels, scores)
    together = ClassificationEvaluator("abcdef")
    inputs = [{"label": label} for label in labels]
    with HostWaits() as device:
        together.process(inputs[:30], [{"scores": row} for row in scores[:30]])
        assert device.waits.count("cpu") == len(device.waits) == 1
    together.process(inputs[30:], [{"scores": row} for row in scores[30:]])
    assert together.evaluate() == alone
    # Classes behind the true one with an equal score count against nobody.
    right = sum(int(row.argmax()) == label for row, label in zip(scores, labels, strict=True))
    right -= int(scores[3].argmax()) == labels[3]
    assert alone["classification"]["top1"] == pytest.approx(100 * right / 40)


def test_a_label_that_is_no_class():
    with pytest.raises(DataError, match="has label 3; classes are 0 to 1"):
        evaluate(ClassificationEvaluator("ab"), [3], [[0.5, 0.5]])


def test_mean_of_what_ran():
    evaluator = ClassifierCostEvaluator(1234)
    evaluator.reset()
    outputs = [
        {"macs": 1e6, "ran": torch.tensor([True, False, False])},
        {"macs": 4e6, "ran": torch.tensor([True, True, True])},
    ]
    evaluator.process([{}, {}], outputs)
    assert evaluator.evaluate()["cost"] == {
        "mflops": 2.5,
        "mean_branches": 2.0,
        "parameters": 1234,
    }
    evaluator.reset()
    assert evaluator.evaluate() == {}
    told = [
        {**output, "loaded": numbers} for output, numbers in zip(outputs, (100, 400), strict=True)
    ]
    evaluator.process([{}, {}], told)
    assert evaluator.evaluate()["cost"]["loaded"] == 250.0


def test_images_that_no_expert_saw():
    evaluator = ClassifierCostEvaluator(1, ends_early=True)
    evaluator.reset()
    outputs = [{"macs": 1e6, "ran": torch.tensor([k == 3, False])} for k in range(4)]
    evaluator.process([{}] * 4, outputs)
    figures = evaluator.evaluate()["cost"]
    assert (figures["ended_early"], figures["mean_branches"]) == (75.0, 0.25)
