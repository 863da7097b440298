"""The errors a user can cause. Each carries one line: what, got, allowed, remedy."""


class HybridSNNError(Exception):
    """Base of every error that is the user's to mend; the command line prints it in one line and exits with 2."""


class ConfigError(HybridSNNError):
    """A setting is unknown, malformed or out of range."""


class ArtifactError(HybridSNNError):
    """An artifact is missing, damaged, or of the wrong kind."""


class ConversionError(HybridSNNError):
    """A network has a part that cannot be turned into a spiking one."""


class DataError(HybridSNNError):
    """A data set is missing, damaged, or does not fit the network."""


class OutOfTimeError(HybridSNNError):
    """The time limit is reached; no fault. The command line exits with 75, and the same command resumes."""
