"""Errors of storage that pass by themselves, and how long they are waited for."""

import time
from collections.abc import Callable

from fsspec import AbstractFileSystem

# Seconds between tries. Within each, s3fs tries for about 10 s, and gcsfs for half a minute: together they outlast an
# outage of two minutes, and a job that is going to fail does so before anyone would call it hung.
DELAYS = (2.0, 8.0, 30.0, 60.0)


def retry(work: Callable[[], None], fs: AbstractFileSystem, on_wait: Callable[[], None]) -> None:
    """Do `work`, which may be begun again, and again after errors that may pass. Raises the one that doesn't."""
    for wait in DELAYS:
        try:
            return work()
        except Exception as error:  # each file system has its own
            if not is_transient(error, fs):
                raise
        on_wait()
        time.sleep(wait)
    return work()


def is_transient(error: Exception, fs: AbstractFileSystem) -> bool:
    """Whether to try again may help: a lost connection, a time-out, a store that is busy or broken.

    Nothing passes on a disk. Nor do refusals: no permission, no such bucket, credentials that have expired.
    """
    if "s3" in fs.protocol:
        import botocore.exceptions
        import s3fs.core

        # s3fs makes its errors of the answer, which it keeps; 429 and 5xx speak of the store, others of the request.
        response = getattr(error.__cause__, "response", None) or {}
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        kinds = (*s3fs.core.S3_RETRYABLE_ERRORS, botocore.exceptions.ConnectionError, ConnectionError, TimeoutError)
        return status == 429 or status >= 500 or isinstance(error, kinds)
    if "gs" in fs.protocol:
        from gcsfs.retry import is_retriable

        # Its list has credentials that were refused, too: they come back only where their issuer says so.
        refused = getattr(error, "code", None) == 401 or not getattr(error, "retryable", True)
        return isinstance(error, ConnectionError | TimeoutError) or (is_retriable(error) and not refused)
    return False
