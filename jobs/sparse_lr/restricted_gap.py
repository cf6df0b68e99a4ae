"""The restricted gap: how far F may still fall, by its second-order model over the active features (`quadratic`).

A dual point that is scaled until it is feasible bounds F* too loosely: it costs as much as the worst of all features,
whose weight may need only a tiny change. So F is compared with the minimum of its model M at the present weights. By
the exact gradient of a full reset, no features but those of the model could leave 0. The restricted gap is (F(w) - min
M) / F(w).

It is no proven bound of F(w) - F*: curvatures change with w, and features that are at 0 may be needed once others have
changed. README.md compares it with F / F* - 1.
"""

from __future__ import annotations

from mpips.jobs.sparse_lr import quadratic

LENGTHS = quadratic.STEPS + tuple(4.0**-power for power in range(3, 16))
"""Where features add up to others, as the categories of two columns do, M is flat in some directions but for l1: steps
are far too long, until a weight of each such direction is held at 0."""
EFFORT = quadratic.Effort(searches=8, products=8, least=0.0, lengths=LENGTHS)


def decrease(calls: quadratic.Calls) -> float:
    """Return F(w) - min M, approximately: how much M falls, and how much it would if no sign held a weight."""
    found = quadratic.minimise(calls, EFFORT)
    return found.decrease + found.rest
