"""What a failure says about another start."""

from __future__ import annotations

import pytest

from mpips.errors import JournalLost, NoWorkerLeft, RemoteError, ShardLost, WorkerLost
from mpips.leader import would_fail_again


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ZeroDivisionError("division by zero"), True),
        (RemoteError(3, "worker 1", "n2", "KeyError: 'x'"), True),
        (WorkerLost("rank 3 died"), False),
        (NoWorkerLeft("no worker is left"), False),
        (JournalLost("its journal is lost"), False),
        (ShardLost("no copy is left"), False),
        (OSError(5, "Input/output error"), False),
        (RemoteError(3, "worker 1", "n2", "OSError: [Errno 116] Stale file handle"), False),
        (RemoteError(3, "worker 1", "n2", "Exception: MPI_ERR_PROC_FAILED: Process Failure"), False),
    ],
)
def test_a_program_fails_again_but_lost_ranks_and_files_may_not(error: Exception, again: bool) -> None:
    assert would_fail_again(error) is again
