"""Every error a user can meet: a status, a stable code, a sentence, and the parameter at fault.

Subclass one of these when a caller must tell the case apart; otherwise raise the nearest with a
code of its own. Codes are part of the API: once published they do not change.
"""

import errno


class GraftworkError(Exception):
    """Base of the tree; `status` is what HTTP answers, `code` what programs compare."""

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.param = param


class InvalidRequest(GraftworkError):
    """The request cannot be carried out as sent, now or later."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class InvalidData(InvalidRequest):
    """A data set has rows that cannot be trained on; `problems` names the first by line.

    `report` counts all of them.
    """

    code = "invalid_training_file"

    def __init__(
        self,
        message: str,
        *,
        param: str = "training_file",
        problems: list[dict[str, object]],
        report: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.problems = problems
        self.report = report


class Unauthorized(GraftworkError):
    """No key, or one that is unknown or revoked."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class NotFound(GraftworkError):
    """Nothing by that id belongs to the caller; a foreign id reads the same as a missing one."""

    status = 404
    code = "not_found"
    type = "invalid_request_error"


class TooLarge(GraftworkError):
    """The body is over a limit that the message names."""

    status = 413
    code = "too_large"
    type = "invalid_request_error"


class Unavailable(GraftworkError):
    """A part of the system does not answer; the same request may pass later."""

    status = 503
    code = "unavailable"
    type = "server_error"


class StorageFull(GraftworkError):
    """The disk or bucket takes no more bytes."""

    status = 507
    code = "storage_full"
    type = "server_error"


class DatabaseFull(StorageFull):
    """The disk under the database takes no more bytes."""


class Corrupt(GraftworkError):
    """Stored bytes do not match their hash, or a tensor file is not what its name says."""

    code = "corrupt_artifact"


class StaleFence(GraftworkError):
    """Somebody else owns the job now; whatever this worker still wants to write must not count."""

    code = "stale_fence"


def is_disk_full(error: OSError) -> bool:
    """Say whether an operating system's error is that nothing more can be written."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
