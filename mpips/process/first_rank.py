"""Whether this process prints messages for the whole run: the first rank of a run, or a process that is not a rank."""

from __future__ import annotations

import os

SUPERVISED = "MPIPS_SUPERVISED"
"""The environment variable with the claim of the process that supervises ranks: it starts them, reads their result and
reports it. Ranks that end in order then exit with 0, so no launcher reports an error. Ranks that are started in another
way from inside such a run have another claim, or none."""
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PMI_ID")


def seems_first() -> bool:
    """Return whether the launcher's environment says that this is rank 0, or has no rank."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)
