"""Errors that a user can act on; command-line tools print their sentence, not a traceback."""


class DivdrError(RuntimeError):
    """Something in the user's data, configuration or checkpoint is not as it must be."""


class ConfigError(DivdrError, ValueError):
    """A setting is unknown, contradicts another one, or does not suit the data."""


class DataError(DivdrError):
    """A file of a data set is missing, unreadable or holds values that cannot be right.

    Args:
        problems: a sentence for each; the first is the error's first line.

    Attributes:
        problems: the sentences.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        if not self.problems:
            return ""
        first, *others = (str(problem) for problem in self.problems)
        if not others:
            return first
        return "\n".join([f"{first}; and {len(others)} more:", *(f"  - {o}" for o in others)])


class CheckpointError(DivdrError):
    """A checkpoint is damaged or belongs to another model."""


class NonFiniteLossError(DivdrError):
    """A loss became infinite or not a number."""
