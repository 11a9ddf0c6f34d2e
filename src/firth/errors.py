"""Every error that firth raises on purpose, and the exit code each gives on the command line.

FirthError (1)
├── ConfigError (2)       a setting, flag or column name that cannot be used
├── UnsupportedError (2)  a request this model or device cannot serve
├── DataError (3)         a file whose content is not what was expected
├── CheckpointError (1)   a run directory that cannot be read or written
├── DivergedError (4)     training that broke down, or a degenerate run
├── Interrupted (130/143) Ctrl-C or SIGTERM, after a checkpoint was saved
└── ResourceError (5)     not enough memory or disk

A message says where (file and row), what was found, what was expected, and what to do next.
"""


class FirthError(Exception):
    """Base of all errors that firth raises on purpose."""

    exit_code = 1


class ConfigError(FirthError, ValueError):
    """A setting, flag or column name that cannot be used."""

    exit_code = 2


class UnsupportedError(FirthError):
    """A request that this model, tokenizer or device cannot serve."""

    exit_code = 2


class DataError(FirthError, ValueError):
    """A file whose content is not what was expected."""

    exit_code = 3


class CheckpointError(FirthError):
    """A run directory that cannot be read or written."""


class DivergedError(FirthError):
    """Training that broke down: a loss that is not finite or keeps rising, or a degenerate run."""

    exit_code = 4


class ResourceError(FirthError):
    """Not enough memory or disk for what was asked."""

    exit_code = 5


class Interrupted(FirthError):
    """Training that Ctrl-C or SIGTERM ended, after its checkpoint was saved."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal
