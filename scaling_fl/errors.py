"""The ways in which a run ends early."""


class UserError(Exception):
    """Something that the user can mend. The message names the thing and the remedy; no traceback is shown."""


class JobFailed(Exception):
    """A process of the job failed. The message tells which one, where it ran, and why."""


class NodeLost(JobFailed):
    """Another node of the job is gone, so that starting again here can't help."""


class PeerLost(JobFailed):
    """A collective broke off because another process is gone: a consequence, never the cause."""
