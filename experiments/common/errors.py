"""What can go wrong in a run through no fault of the code: each ends the command with one clear line."""


class ExperimentError(Exception):
    """Base class of the errors that a command reports as one line.

    Attributes:
        exit_code: what the command returns to the shell.
    """

    exit_code = 1


class ConfigError(ExperimentError):
    """Settings that no run could meet, or that contradict each other."""

    exit_code = 2


class OutputError(ExperimentError):
    """The output folder cannot be written."""


class DataError(ExperimentError):
    """A data set is unknown, not prepared, damaged or too small."""


class CheckpointError(ExperimentError):
    """A checkpoint does not belong to this run."""


class DivergedError(ExperimentError):
    """The loss or a parameter became NaN or infinite."""

    exit_code = 3

    def __init__(self, what: str):
        """Says what became so, and what may help."""
        super().__init__(
            f"{what}: the training diverged. A lower optimizer.learning_rate, more optimizer.warmup_epochs or an "
            "optimizer.clip_norm may help"
        )


class Interrupted(ExperimentError):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, message: str, signal_number: int):
        """Remembers the signal, from which the shell's usual exit code follows."""
        super().__init__(message)
        self.exit_code = 128 + signal_number
