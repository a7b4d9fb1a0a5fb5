"""One tree of exceptions.

Every message says what was got, what was expected, why it matters or the nearest valid value, and what to do. The command line prints
the message without a traceback and exits with 2; `--debug` shows the traceback.
"""


class RewardproofError(Exception):
    """Root of every error that this package raises on purpose."""


class ConfigError(RewardproofError, ValueError):
    """Raised when a setting, recipe or command-line token is unknown, malformed or contradicts another."""


class DataError(RewardproofError, ValueError):
    """Raised when preference data cannot be read as what it claims to be; the message names file and line."""


class ModelError(RewardproofError, TypeError):
    """Raised when a model is of the wrong kind for what was asked: no reward head, unknown family, already dense."""


class CheckpointError(RewardproofError, RuntimeError):
    """Raised when a directory or checkpoint is missing, incomplete, or would be overwritten."""


class EvaluationError(RewardproofError, RuntimeError):
    """Raised when an evaluation cannot be computed honestly: no ordered pairs, scores that are not finite."""


class TrainingError(RewardproofError, ArithmeticError):
    """Raised when training cannot go on: a loss or weights that are no longer finite."""


class StorageError(RewardproofError, OSError):
    """Raised when something cannot be written because its disk is full; what was finished before is kept."""


class MissingExtraError(RewardproofError, ImportError):
    """Raised when an optional dependency is needed; the message names the one command that installs it."""
