from tqdm import tqdm

from divdr.studies.execution import advance, latest, planned_iterations


def test_the_last_values_of_a_run_that_is_writing(tmp_path):
    assert latest(tmp_path) == {}
    lines = ['{"iteration": 19, "total_loss": 2.0}', '{"iteration": 39}', '{"iterat']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert latest(tmp_path) == {"iteration": 39, "total_loss": 2.0}


def test_a_bar_counts_from_the_fork_and_never_beyond_its_end(tmp_path):
    with tqdm(total=30, disable=True) as bar:
        assert advance(bar, tmp_path, start=10) == 0
        for iteration, done in ((9, 0), (24, 15), (60, 30)):
            (tmp_path / "metrics.json").write_text(f'{{"iteration": {iteration}}}\n')
            assert advance(bar, tmp_path, start=10) == done


def test_planned_iterations_are_those_of_the_schedule(tmp_path):
    assert planned_iterations(tmp_path) == 0
    (tmp_path / "config.yaml").write_text("SOLVER:\n  MAX_ITER: 900\n  STOP_ITER: 0\n")
    assert planned_iterations(tmp_path) == 900
