import csv
import io

import pytest
from small_study import STUDY

from divdr.errors import ConfigError
from divdr.studies import execute
from divdr.studies.tables import collect, pairs_markdown, table_csv, table_markdown, values

NUMBERS = {
    # mIoU: mean 5, deviation 2; inter has one value.
    "DR": {
        0: {"sem_seg.IoU": 3.0, "routing.inter_refit": 0.5},
        1: {"sem_seg.IoU": 5.0},
        2: {"sem_seg.IoU": 7.0, "routing.inter_refit": float("nan")},
    },
    # Differences to DR over seeds 0 and 2: 1 and 2; mean 1.5, deviation 1/√2, standard error 1/2,
    # t of one degree 12.7062: 1.5 ± 6.3531.
    "DivDR": {
        0: {"sem_seg.IoU": 4.0, "routing.inter_refit": 0.75},
        2: {"sem_seg.IoU": 9.0},
        3: {"sem_seg.IoU": 6.5},
    },
}


def cells(markdown):
    rows = [line.strip("| \n").split("|") for line in markdown.splitlines() if "|" in line]
    return [[cell.strip() for cell in row] for row in rows if "--" not in row[0]]


def test_table_has_means_and_deviations(define):
    study, _ = define()
    assert cells(table_markdown(study, NUMBERS)) == [
        ["variant", "seeds", "mIoU [%]", "inter (refit)"],
        ["DR", "3", "5.00 ± 2.00", "0.500"],
        ["DivDR", "3", "6.50 ± 2.50", "0.750"],
    ]
    rows = list(csv.DictReader(io.StringIO(table_csv(study, NUMBERS))))
    assert [row["variant"] for row in rows] == ["DR", "DivDR"]
    assert float(rows[0]["mIoU [%] mean"]) == 5.0
    assert float(rows[1]["mIoU [%] std"]) == pytest.approx(2.5)
    assert rows[0]["inter (refit) std"] == ""


def test_a_number_that_a_variant_lacks_is_a_dash(define):
    study, _ = define()
    numbers = {"DR": {0: {"sem_seg.IoU": 3.0}}, "DivDR": NUMBERS["DivDR"]}
    assert cells(table_markdown(study, numbers))[1:] == [
        ["DR", "1", "3.00", "–"],
        ["DivDR", "3", "6.50 ± 2.50", "0.750"],
    ]
    rows = list(csv.DictReader(io.StringIO(table_csv(study, numbers))))
    assert rows[0]["inter (refit) mean"] == ""
    assert [row[1] for row in cells(pairs_markdown(study, numbers))[1:]] == ["mIoU [%]"]


def test_pairs_take_the_seeds_that_both_have(define):
    study, _ = define()
    text = pairs_markdown(study, NUMBERS)
    assert "everything until 25% of training" in text
    assert cells(text)[1:] == [
        ["DivDR − DR", "mIoU [%]", "+1.50", "-4.85 to +7.85", "2"],
        ["DivDR − DR", "inter (refit)", "+0.250", "–", "1"],
    ]


def test_numbers_come_from_results_and_scores(define, stand_in, tmp_path):
    root, _ = stand_in
    study, runs = define(STUDY + "scores: {held: 'small_study:score'}\n")
    execute([runs["DivDR"][1]], root, tmp_path / "data")
    found = collect(study, runs)
    assert found["DR"] == {}
    # The stand-in's results are 10 · λ2 + seed and λ2, which is 0.1.
    assert found["DivDR"] == {
        1: {"sem_seg.IoU": 2.0, "routing.inter_refit": 0.1, "held.files": 1.0}
    }
    assert values(found["DivDR"], "routing.inter_refit") == {1: 0.1}


def test_a_score_that_is_not_there_is_reported(define):
    study, runs = define(STUDY + "scores: {lost: 'no.such:thing'}\n")
    with pytest.raises(ConfigError, match=r"score lost: 'no\.such:thing' cannot be found"):
        collect(study, runs)


def test_a_metric_that_no_result_has_is_reported(define, stand_in, tmp_path, caplog):
    root, _ = stand_in
    study, runs = define(STUDY.replace("sem_seg.IoU:", "sem_seg.mIoU:"))
    with pytest.raises(ConfigError, match="no run of study study is finished"):
        collect(study, runs)
    execute([runs["DR"][0]], root, tmp_path / "data")
    # DivDR, which is to come, may have it.
    assert collect(study, runs)["DR"][0]["sem_seg.IoU"] == 0.0
    assert "sem_seg.mIoU; did you mean sem_seg.IoU?" in caplog.text
    execute([runs["DivDR"][0]], root, tmp_path / "data")
    with pytest.raises(ConfigError, match=r"sem_seg.mIoU; did you mean sem_seg.IoU\?"):
        collect(study, runs)
