"""Training: schedule, exact continuation, averaged checkpoints, and a text learned by heart."""

import json
import math

import pytest
import sacrebleu
import torch
from tiny_translation import settings, text

from divdr.errors import CheckpointError, ConfigError, DataError, NonFiniteLossError
from divdr.settings.translation import (
    TranslationExpertSettings,
    TranslationSettings,
    TranslationTrainingSettings,
)
from divdr.translation import (
    Batch,
    ParallelText,
    TranslationRun,
    Translator,
    checkpoint_files,
    corpus_bleu,
    encode_pairs,
    epoch_batches,
    evaluate,
    learning_rate,
    load_trained,
    mean_weights,
    model_settings,
    selection_quality,
    translation_losses,
)


def same(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_learning_rate_by_hand():
    rates = [learning_rate(step, 0.5, 4) for step in (1, 2, 4, 16, 100)]
    assert rates == pytest.approx([0.125, 0.25, 0.5, 0.25, 0.1])
    # The Transformer's own rule: d^-0.5 · min(s^-0.5, s · w^-1.5), of d 512 and w 4000.
    for step in (100, 4000, 50000):
        own = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert learning_rate(step, 512**-0.5 * 4000**-0.5, 4000) == pytest.approx(own)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_goes_on_exactly_where_it_was(tmp_path, stop):
    """Dropout, batches, optimiser and α go on; so does a run that was stopped off its period."""
    wanted = settings(2)
    wanted = TranslationSettings(
        model=type(wanted.model)(**(vars(wanted.model) | {"dropout": 0.2})),
        coe=wanted.coe,
        training=wanted.training,
    )
    whole = TranslationRun(tmp_path / "whole", text(), wanted)
    whole.train()
    first = TranslationRun(tmp_path / "parts", text(), wanted)
    first.train(stop)
    torch.manual_seed(77)  # another process
    second = TranslationRun(tmp_path / "parts", text(), wanted)
    assert second.step == stop
    second.train()
    same(second.model.state_dict(), whole.model.state_dict())
    same(load_trained(tmp_path / "whole", 1).model.state_dict(), whole.model.state_dict())
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0].splitlines()[-1] == logs[1].splitlines()[-1]
    second = TranslationRun(tmp_path / "parts", text(), wanted)
    second.train()  # nothing is left to do
    same(second.model.state_dict(), whole.model.state_dict())


def test_a_run_that_ended_between_its_two_files_goes_on(tmp_path):
    """The checkpoint was written, what goes on from it was not."""
    run = TranslationRun(tmp_path / "cut", text(), settings())
    run.train(2)
    before = (tmp_path / "cut" / "last.pth").read_bytes()
    run.train(4)
    (tmp_path / "cut" / "last.pth").write_bytes(before)
    cut = TranslationRun(tmp_path / "cut", text(), settings())
    assert (cut.step, list(checkpoint_files(tmp_path / "cut"))) == (2, [2])
    cut.train()
    log = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [2, 8]  # 4 was taken again
    whole = TranslationRun(tmp_path / "whole", text(), settings())
    whole.train()
    same(cut.model.state_dict(), whole.model.state_dict())


def test_every_step_gets_the_next_batch_and_how_far_training_is(tmp_path, monkeypatch):
    seen = []

    def noted(model, batch, coe, label_smoothing, progress):
        seen.append((batch.source.tolist(), progress))
        return translation_losses(model, batch, coe, label_smoothing, progress)

    monkeypatch.setattr("divdr.translation.translation_run.translation_losses", noted)
    run = TranslationRun(tmp_path, text(), settings(seed=5, steps=12))
    run.train()
    assert [progress for _, progress in seen] == [step / 12 for step in range(12)]
    plan = [rows for epoch in range(12) for rows in epoch_batches(run.pairs, 90, 5, epoch)]
    assert plan[:3] != plan[3:6]  # there are three to an epoch
    expected = [Batch.of([run.pairs[row] for row in rows]) for rows in plan[:12]]
    assert [source for source, _ in seen] == [batch.source.tolist() for batch in expected]


def test_the_optimiser(tmp_path):
    run = TranslationRun(tmp_path, text(), settings(clip_norm=0.01))
    assert (run.optimizer.defaults["betas"], run.optimizer.defaults["eps"]) == ((0.9, 0.98), 1e-9)
    run.train(1)
    gradients = [p.grad.flatten() for p in run.model.parameters() if p.grad is not None]
    assert float(torch.cat(gradients).norm()) == pytest.approx(0.01, rel=1e-3)
    assert run.optimizer.param_groups[0]["lr"] == learning_rate(1, 7e-4, 4)


def test_seeds_differ(tmp_path):
    runs = [TranslationRun(tmp_path / str(s), text(), settings(seed=s)) for s in (0, 1)]
    for run in runs:
        run.train(2)
    first, second = (run.model.state_dict()["selector.weight"] for run in runs)
    assert not torch.equal(first, second)


def test_evaluation_takes_the_mean_of_the_last_checkpoints(tmp_path):
    run = TranslationRun(tmp_path, text(), settings(averaged=3))
    states = {}
    for stop in (2, 4, 6, 8):
        run.train(stop)
        states[stop] = {name: value.clone() for name, value in run.model.state_dict().items()}
    assert list(checkpoint_files(tmp_path)) == [4, 6, 8]  # older ones are removed
    trained = load_trained(tmp_path)
    assert trained.steps == [4, 6, 8]
    assert trained.settings == run.settings
    for name, value in trained.model.state_dict().items():
        expected = sum(states[step][name] for step in (4, 6, 8)) / 3
        torch.testing.assert_close(value, expected)
    assert load_trained(tmp_path, 2).steps == [6, 8]
    with pytest.raises(CheckpointError, match="different models"):
        mean_weights([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])


def test_other_settings_and_empty_folders_are_told(tmp_path):
    TranslationRun(tmp_path, text(), settings()).train(2)
    with pytest.raises(ConfigError, match=r"holds a run with WARMUP 4, not 5; name another folder"):
        TranslationRun(tmp_path, text(), settings(warmup=5))
    with pytest.raises(CheckpointError, match="holds no checkpoint of a translation run"):
        load_trained(tmp_path / "nothing")
    (tmp_path / "step_00000009.pth").write_bytes(b"\x89PNG")
    with pytest.raises(CheckpointError, match="is a PNG picture, no weight file"):
        load_trained(tmp_path)


def test_models_of_table_5():
    paper = TranslationSettings()
    base, big, coe = (model_settings(name, paper) for name in ("base", "big", "coe"))
    assert (base.coe.experts, big.coe.experts, coe.coe.experts) == (1, 1, 4)
    assert base.model == coe.model == paper.model
    assert (big.model.width, big.model.feedforward, big.model.heads) == (1024, 4096, 16)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Ten sentences learned by heart by two decoders."""
    folder = tmp_path_factory.mktemp("learned")
    made = TranslationSettings(
        model=settings().model,
        coe=TranslationExpertSettings(experts=2),
        training=TranslationTrainingSettings(
            steps=100, batch_tokens=400, learning_rate=0.02, warmup=25, checkpoint_period=10
        ),
    )
    torch.manual_seed(0)
    TranslationRun(folder, text(), made).train()
    return folder


def test_ten_sentences_are_learned_by_heart(learned):
    trained = load_trained(learned)
    assert len(trained.steps) == 5
    translator = Translator(trained.model, trained.vocabulary)
    found = evaluate(translator, text())
    assert found.bleu.score > 95
    # sacreBLEU's own count of what was translated.
    own = sacrebleu.corpus_bleu(found.translations, [text().target])
    assert found.bleu.score == pytest.approx(own.score)
    assert sum(found.shares) == pytest.approx(1)
    log = [json.loads(line) for line in (learned / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [50, 100]
    assert min(log[-1]["tcp"]) > 0.7


def test_how_well_the_selector_chooses(learned):
    trained = load_trained(learned)
    translator = Translator(trained.model, trained.vocabulary)
    vocabulary, some = trained.vocabulary, text()
    found = selection_quality(translator, encode_pairs(some, vocabulary, 40), 3)
    # Sentence by sentence, token by token.
    model, rows = trained.model, []
    for source, target in zip(some.source, some.target, strict=True):
        encoded = model.encode(torch.tensor([[*vocabulary.encode(source), 3]]))
        words = vocabulary.encode(target)
        row = []
        for expert in (0, 1):
            said = model.decode(
                expert, torch.tensor([[2, *words]]), encoded, model.embedding.weight
            )
            each = (said[0] @ model.embedding.weight.T).softmax(1)
            true = [float(each[t, w].detach()) for t, w in enumerate([*words, 3])]
            row.append(sum(true) / len(true))
        rows.append((row, int(encoded.selection.argmax())))
    assert found.best == pytest.approx(sum(max(row) for row, _ in rows) / 10, rel=1e-4)
    assert found.chosen == pytest.approx(sum(row[k] for row, k in rows) / 10, rel=1e-4)
    assert found.mean == pytest.approx(sum(sum(row) for row, _ in rows) / 20, rel=1e-4)
    assert found.right == sum(row[k] == max(row) for row, k in rows) / 10


def test_bleu_by_hand():
    """Four-grams of one sentence: 4/5, 3/4, 2/3, 1/2 of them right, as long as its reference."""
    found = corpus_bleu(["a b c d e"], ["a b c d x"])
    expected = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert found.score == pytest.approx(expected)
    shorter = corpus_bleu(["a b c d"], ["a b c d x"])
    assert shorter.score == pytest.approx(100 * math.exp(1 - 5 / 4))
    assert "tok:13a" in found.signature
    with pytest.raises(DataError, match="2 translations cannot be compared with 1 references"):
        corpus_bleu(["a", "b"], ["a"])


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    run = TranslationRun(tmp_path, text(), settings(1))
    with torch.no_grad():
        run.model.encoder.layers[0].linear1.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="the loss of step 1 is not finite"):
        run.train(1)
    assert not checkpoint_files(tmp_path)


def test_a_text_that_is_too_small_for_its_vocabulary(tmp_path):
    with pytest.raises(ConfigError, match="VOCABULARY 120 is too large for this text"):
        TranslationRun(tmp_path, ParallelText(["a b"], ["c d"]), settings())
