"""Errors that a user can act on; command-line tools print their sentence, not a traceback."""


class DivdrError(RuntimeError):
    """Something in the user's data, configuration or checkpoint is not as it must be."""


class ConfigError(DivdrError, ValueError):
    """A setting is unknown, contradicts another one, or does not suit the data."""


class DataError(DivdrError):
    """A file of a data set is missing, unreadable or holds values that cannot be right."""


class CheckpointError(DivdrError):
    """A checkpoint is damaged or belongs to another model."""


class NonFiniteLossError(DivdrError):
    """A loss became infinite or not a number."""
