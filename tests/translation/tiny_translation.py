"""A tiny model and a tiny text, which several test files share."""

import torch

from divdr.settings.translation import (
    TransformerSettings,
    TranslationExpertSettings,
    TranslationSettings,
    TranslationTrainingSettings,
)
from divdr.translation import ExpertTransformer, ParallelText

TINY = TransformerSettings(
    vocabulary=120,
    encoder_layers=1,
    decoder_layers=2,
    width=16,
    feedforward=24,
    heads=2,
    dropout=0.0,
    max_tokens=40,
)
# Numbers, whose names are put together in the other order, as the languages do.
TENS = {"twenty": "zwanzig", "thirty": "dreißig", "forty": "vierzig", "ninety": "neunzig"}
ONES = {"two": "zwei", "three": "drei", "four": "vier", "nine": "neun"}


def text(count: int = 10) -> ParallelText:
    """Sentences of unlike length and their translations."""
    pairs = []
    for ten, zehn in TENS.items():
        for one, eins in ONES.items():
            pairs.append((f"It is {ten}-{one}.", f"Es ist {eins}und{zehn}."))
            pairs.append((f"{ten} or {one}, said she", f"{zehn} oder {eins}, sagte sie"))
    chosen = [*pairs[0::3], *pairs[1::3], *pairs[2::3]][:count]
    return ParallelText([a for a, _ in chosen], [b for _, b in chosen])


def settings(experts: int = 2, **training) -> TranslationSettings:
    """Of a tiny run."""
    given = {"steps": 8, "batch_tokens": 90, "warmup": 4, "checkpoint_period": 2, "averaged": 3}
    return TranslationSettings(
        model=TINY,
        coe=TranslationExpertSettings(experts=experts),
        training=TranslationTrainingSettings(**(given | training)),
    )


def model(experts: int = 2, seed: int = 0, **changed) -> ExpertTransformer:
    """With weights at random, larger than a fresh model's, so that its choices differ."""
    torch.manual_seed(seed)
    made = ExpertTransformer(30, experts, TINY, **changed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.7).add_(0.1 * torch.randn_like(parameter))
    return made.eval()
