"""Errors that a user can act on: one sentence with the culprit, what was found, what was expected, and the
remedy.
"""


class SsktError(Exception):
    """Base class of all errors that the method and the pipeline raise on purpose; the CLI prints its text."""


class SourceError(SsktError):
    """A source network or its weights cannot be used as requested."""


class DownloadError(SsktError):
    """A file could not be downloaded, or is not the published one."""


class TargetError(SsktError):
    """A target dataset is missing, incomplete or damaged."""


class RunError(SsktError):
    """A training or evaluation run cannot be done as requested."""
