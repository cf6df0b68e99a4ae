"""Whether this process prints messages for the whole run: the first rank of a run, or a process that is not a rank."""

from __future__ import annotations

import os

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PMI_ID")


def seems_first() -> bool:
    """Return whether the launcher's environment says that this is rank 0, or says nothing."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)
