"""Which storage errors are transient, and how long they are retried."""

import time
from collections.abc import Callable

from fsspec import AbstractFileSystem

# Seconds between attempts. Within an attempt s3fs retries for about 10 s, and gcsfs for half a minute. Together they
# outlast an outage of two minutes, and a job that must fail does so well within the default stall_timeout.
DELAYS = (2.0, 8.0, 30.0, 60.0)


def retry(work: Callable[[], None], fs: AbstractFileSystem, on_wait: Callable[[], None]) -> None:
    """Call `work`, which must be repeatable, and call it again after transient errors.

    Raises permanent errors at once, and a transient one after the last attempt.
    """
    for wait in DELAYS:
        try:
            return work()
        except Exception as error:  # every file system raises its own exceptions
            if not is_transient(error, fs):
                raise
        on_wait()
        time.sleep(wait)
    return work()


def is_transient(error: Exception, fs: AbstractFileSystem) -> bool:
    """Whether a retry may help: a lost connection, a time-out, a store that is busy or reports an internal error.

    Errors of a local disk are permanent. So are refusals: no permission, no such bucket, expired credentials.
    """
    if "s3" in fs.protocol:
        import botocore.exceptions
        import s3fs.core

        # s3fs translates botocore's error and keeps it as the cause. 429 and 5xx are the store's fault, other statuses
        # the request's.
        response = getattr(error.__cause__, "response", None) or {}
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        kinds = (*s3fs.core.S3_RETRYABLE_ERRORS, botocore.exceptions.ConnectionError, ConnectionError, TimeoutError)
        return status == 429 or status >= 500 or isinstance(error, kinds)
    if "gs" in fs.protocol:
        from gcsfs.retry import is_retriable

        # gcsfs also retries refused credentials. A retry helps only if their issuer says so.
        refused = getattr(error, "code", None) == 401 or not getattr(error, "retryable", True)
        return isinstance(error, ConnectionError | TimeoutError) or (is_retriable(error) and not refused)
    return False
