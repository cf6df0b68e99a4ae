"""The end of a server whose disk of rows is full, or fails, or whose memory has no room for rows."""

from __future__ import annotations

from mpips.errors import LayoutError


class StoreFull(LayoutError):
    """Key indexes and the like leave no memory for rows, on this server: others may have room."""


class StoreFailed(BaseException):
    """Rows cannot be written, or read: the server ends as a dead one does, so that copies of its shards take over.

    It is no error of the request, which might be applied on some servers only, so whoever catches an `Exception` of a
    request does not catch it. Its text is one line.
    """
