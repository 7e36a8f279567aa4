"""Exceptions that a user can fix.

Each message names the thing (file, sample token, camera, field) and the fix, on one line where it can: the command
line prints it as `error: ...` and leaves with exit code 2. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DrivestackError(Exception):
    """Base class of all errors that drivestack raises on purpose."""


class DataError(DrivestackError):
    """A data set is missing, incomplete or unreadable."""


class NoLabelsError(DataError):
    """The data have no labels of a task, or not on every frame; those of other tasks can be scored."""


class ConfigError(DrivestackError):
    """A config file or an override cannot be used."""


class CheckpointError(DrivestackError):
    """A checkpoint is missing, broken, or belongs to another model."""


class SubmissionError(DrivestackError):
    """A submission file breaks the rules of its benchmark."""


class ModelError(DrivestackError):
    """A model failed on a batch: memory, or parts that do not fit one another."""


class TrainingError(ModelError):
    """Training met a number that is not finite, or a model, hook or step that failed."""


class PredictionError(DrivestackError):
    """A model's outputs are not finite."""


class OutputError(DrivestackError):
    """A folder or file cannot be written."""


LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What libraries raise when a file's content is not what they expect; OSError already names its path."""


@contextmanager
def library_errors(kind: type[DrivestackError], where: object, fix: str) -> Iterator[None]:
    """Within, whatever a library raises about the content of ``where`` (a file, sample or field) becomes one line.

    kind: of the error raised instead, with the library's own as its cause; fix: what the user can do. Our own errors
    pass unchanged. Put it around calls that hand foreign content to other people's code, not around our own logic:
    it would call our mistakes the user's.
    """
    try:
        yield
    except LIBRARY_ERRORS as error:
        text = " ".join(str(error).split())[:300]
        raise kind(f"{where}: {type(error).__name__}{': ' * bool(text)}{text}; {fix}") from error
