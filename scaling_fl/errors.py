"""Exceptions that end a run early."""


class UserError(Exception):
    """A problem that the user can fix. The message names the thing and the remedy; no stack trace is shown."""


class JobFailed(Exception):
    """A process of the job failed. The message says which process, where it ran, and why."""


class NodeLost(JobFailed):
    """Another node of the job is gone, so restarting the processes here can't help."""


class OutOfMemory(JobFailed):
    """A process needs more memory than there is, so restarting it can't help."""


class PeerLost(JobFailed):
    """A collective failed because another process is gone: a consequence, never the cause of a failure."""
