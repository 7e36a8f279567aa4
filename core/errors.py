"""Exceptions that a user can fix.

Each message names the thing (file, sample token, camera, field) and the fix, on one line where it can: the command
line prints it as `error: ...` and leaves with exit code 2. Anything else that escapes is a bug of ours.
"""


class DrivestackError(Exception):
    """Base class of all errors that drivestack raises on purpose."""


class DataError(DrivestackError):
    """A data set is missing, incomplete or unreadable."""


class ConfigError(DrivestackError):
    """A config file or an override cannot be used."""


class CheckpointError(DrivestackError):
    """A checkpoint is missing, broken, or belongs to another model."""


class SubmissionError(DrivestackError):
    """A submission file breaks the rules of its benchmark."""


class TrainingError(DrivestackError):
    """Training met a number that is not finite."""


class OutputError(DrivestackError):
    """A folder or file cannot be written."""
