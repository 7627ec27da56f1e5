"""Files of data sets that nobody would write: each is used rightly, or told of in a sentence."""

from hypothesis import HealthCheck, given, settings

from fuzz import annotations, labels

common = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@common
@given(annotations.changes())
def test_annotation_files(tmp_path, actions):
    annotations.check_one(tmp_path, actions)


@common
@given(labels.files())
def test_label_files(tmp_path, file):
    labels.check_one(tmp_path, file)
