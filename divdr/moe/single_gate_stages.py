"""Stages in which a single-gated mixture trains, and settings that contradict each other.

"Revisiting single-gated Mixtures of Experts" (Royer et al.), Algorithm 1.
"""

from __future__ import annotations

from ..errors import ConfigError
from ..routing import to_iterations
from ..settings import SingleGateSettings
from .system import Stage

NO_EXPERT = -2
"""``EXPERT`` for a run that trains base and gate alone."""


def stages_of(settings: SingleGateSettings, iterations: int = 1_000_000) -> tuple[Stage, ...]:
    """Stages of training (Algorithm 1).

    Base, gate, experts, for each round of EM the last two again, and stacking. Experts have what
    the others leave, each round the same; without experts the base has all.

    Args:
        settings: with their lengths; without ``base_stage`` where ``base`` names a trained one.
        iterations: of the whole training.

    Raises:
        ConfigError: nothing is left for the experts.
    """
    if not settings.experts:
        return (Stage("base", 0.0),)
    base = 0 if settings.base else to_iterations(settings.base_stage, iterations)
    gate = to_iterations(settings.gate_stage, iterations)
    stacked = settings.ensembler == "stacking"
    stacking = to_iterations(settings.stacking_stage, iterations) if stacked else 0
    rounds = 1 + settings.em_rounds
    each = (iterations - base - stacking) // rounds - gate
    if each < 1:
        raise ConfigError(f"{settings.KEY}: the other stages leave no iteration to the experts")
    stages = [Stage("base", 0.0)] if base else []
    for number in range(rounds):
        start = base + number * (gate + each)
        stages.append(Stage("gate", start / iterations))
        stages.append(Stage("experts", (start + gate) / iterations))
    if stacking:
        stages.append(Stage("stacking", (iterations - stacking) / iterations))
    return tuple(stages)


def check_settings(settings: SingleGateSettings, experts: int) -> None:
    """See that settings suit each other and the number of experts.

    Raises:
        ConfigError: they do not.
    """
    key = settings.KEY
    if settings.ensembler == "top2" and experts < 2:
        raise ConfigError(f'{key}.ENSEMBLER "top2" needs two experts, not {experts}')
    if settings.oracle and settings.partition != "class":
        raise ConfigError(f'{key}.ORACLE knows classes alone: it needs PARTITION "class"')
    if settings.expert >= experts:
        raise ConfigError(f"{key}.EXPERT {settings.expert}: there are {experts} experts, from 0")
    if settings.expert >= 0 and settings.em_rounds:
        raise ConfigError(f"{key}.EM_ROUNDS needs all experts together: leave EXPERT at -1")
