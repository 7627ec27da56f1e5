"""True class probabilities, losses and what they reach, against values by hand."""

import pytest
import torch
import torch.nn.functional as F
from tiny_translation import model

from divdr.moe import TeachingSettings, teach
from divdr.settings.translation import TranslationExpertSettings
from divdr.translation import Batch, TokenPair, sentence_scores, translation_losses

PAIRS = [
    TokenPair([7, 9, 11], [12, 13]),
    TokenPair([8, 8], [21, 15, 6, 29]),
    TokenPair([6], [10]),
    TokenPair([22, 17, 9, 9], [5, 8, 19, 24]),
    TokenPair([5, 6, 7], [13, 12, 11]),
]


def test_sentence_scores_by_hand():
    # Three tokens; the features are the logits, as the softmax's matrix is the identity.
    logits = torch.tensor([[[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]], [[0.0, 0.0, 1.0], [9.0, 9.0, 9.0]]])
    wanted = torch.tensor([[2, 1], [1, 0]])  # 0 fills up
    scores = sentence_scores(logits, wanted, torch.eye(3), 0.1)
    e = torch.e
    first, second = e**3 / (1 + e + e**3), e**2 / (2 * e**2 + 1)
    third = 1 / (2 + e)
    torch.testing.assert_close(scores.tcp, torch.tensor([(first + second) / 2, third]))
    plain = [
        F.cross_entropy(logits[r, s : s + 1], wanted[r, s : s + 1], label_smoothing=0.1)
        for r, s in ((0, 0), (0, 1), (1, 0))
    ]
    torch.testing.assert_close(scores.loss, torch.stack([(plain[0] + plain[1]) / 2, plain[2]]))


def test_scores_are_torchs_own_per_sentence():
    torch.manual_seed(2)
    weight = torch.randn(30, 16)
    wanted = Batch.of(PAIRS).wanted
    features = torch.randn(*wanted.shape, 16, requires_grad=True)
    scores = sentence_scores(features, wanted, weight, 0.2)
    logits = features @ weight.T
    for row, pair in enumerate(PAIRS):
        length = len(pair.target) + 1
        expected = F.cross_entropy(logits[row, :length], wanted[row, :length], label_smoothing=0.2)
        torch.testing.assert_close(scores.loss[row], expected)
    assert not scores.tcp.requires_grad
    (gradient,) = torch.autograd.grad(scores.loss.sum(), features)
    assert (gradient[wanted == 0] == 0).all()


def run(made, **changed):
    settings = TranslationExpertSettings(experts=len(made.decoders), **changed)
    return translation_losses(made, Batch.of(PAIRS), settings, 0.1, progress=0.5)


def test_the_teaching_is_that_of_images():
    made = model(2)
    found = run(made, alpha=(0.2, 0.8), selection_weight=0.7)
    batch = Batch.of(PAIRS)
    encoded = made.encode(batch.source)
    weight = made.embedding.weight
    scores = [
        sentence_scores(made.decode(k, batch.given, encoded, weight), batch.wanted, weight, 0.1)
        for k in range(2)
    ]
    tcp = torch.stack([each.tcp for each in scores], dim=1)
    torch.testing.assert_close(found.tcp, tcp)
    lesson = teach(tcp, encoded.selection.softmax(1), 0.5, TeachingSettings())
    assert sorted(lesson.labels.tolist()) == [0, 0, 0, 1, 1]
    expected = sum(
        float(lesson.expert_weights[j, k]) * float(scores[k].loss[j].detach())
        for j in range(5)
        for k in range(2)
    )
    assert float(found.experts.detach()) == pytest.approx(expected, rel=1e-5)
    chosen = encoded.selection.log_softmax(1)[torch.arange(5), lesson.labels]
    selection = -0.7 * float((lesson.selection_weights * chosen).sum().detach())
    assert float(found.selection.detach()) == pytest.approx(selection, rel=1e-5)
    assert float(found.total.detach()) == pytest.approx(expected + selection, rel=1e-5)


def gradients(made, losses, part="total"):
    made.zero_grad()
    getattr(losses, part).backward()
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def test_what_decoders_share_learns_as_under_one():
    """Three decoders alike and of equal weights: each sentence reaches the encoder three times."""
    made, batch = model(3), Batch.of(PAIRS)
    for decoder in made.decoders[1:]:
        decoder.load_state_dict(made.decoders[0].state_dict())
    found = gradients(made, run(made, wgm="none"), "experts")
    made.zero_grad()
    encoded = made.encode(batch.source)
    features = made.decode(0, batch.given, encoded, made.embedding.weight)
    logits = (features @ made.embedding.weight.T)[batch.wanted != 0]
    each = F.cross_entropy(
        logits, batch.wanted[batch.wanted != 0], reduction="none", label_smoothing=0.1
    )
    # Of each token's sentence the tokens, and all sentences.
    lengths = (batch.wanted != 0).sum(1)
    (each / lengths.repeat_interleave(lengths)).sum().div(len(PAIRS)).backward()
    for name in found:
        if "selector" not in name:
            source = name.replace("decoders.1", "decoders.0").replace("decoders.2", "decoders.0")
            expected = made.get_parameter(source).grad
            torch.testing.assert_close(found[name], expected, msg=name)


def test_what_each_loss_reaches():
    made = model(3)
    selection = gradients(made, run(made), "selection")
    assert set(selection) == {"selector.weight", "selector.bias"}
    experts = gradients(made, run(made), "experts")
    assert set(experts) == {n for n, _ in made.named_parameters() if not n.startswith("selector")}
    open_ = model(3, selector_trains_encoder=True)
    reached = gradients(open_, run(open_), "selection")
    assert "encoder.layers.0.linear1.weight" in reached
    assert not [name for name in reached if name.startswith("decoders")]
    torch.testing.assert_close(reached["selector.weight"], selection["selector.weight"])


def test_fewer_sentences_than_decoders_teach_nothing():
    made = model(8)
    assert float(run(made).total.detach()) == 0


def test_one_decoder_learns_the_mean_of_the_sentences():
    made = model(1)
    found = run(made)
    assert found.selection is None
    assert found.lesson is None
    batch = Batch.of(PAIRS)
    encoded = made.encode(batch.source)
    features = made.decode(0, batch.given, encoded, made.embedding.weight)
    scores = sentence_scores(features, batch.wanted, made.embedding.weight, 0.1)
    torch.testing.assert_close(found.total, scores.loss.mean())
