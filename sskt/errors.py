"""The errors that a user can act on: one sentence with the culprit, what was found, what was expected, the
remedy.
"""


class SsktError(Exception):
    """Base of every error that the method and the pipeline raise on purpose; the command line prints its
    text.
    """


class SourceError(SsktError):
    """A source network or its weights cannot be used as asked."""


class DownloadError(SsktError):
    """A file could not be fetched, or what was fetched is not what was published."""


class TargetError(SsktError):
    """A target dataset is missing, incomplete or damaged."""


class RunError(SsktError):
    """A training or evaluation run cannot be done as asked."""
