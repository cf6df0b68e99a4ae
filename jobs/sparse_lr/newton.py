"""Newton steps between passes: all active weights go to the minimum of the second-order model of F (`quadratic`).

Block by block, a pass finds which features are needed and the signs of their weights; but where features depend on
each other, it approaches the minimum of F over them only slowly, the more so the more of them are in flight. The
minimum of the model over these features, with their signs, needs no block steps: some products of the data with a
vector, each with one sum over the workers. So it needs few messages, and no delay makes it longer.

A step counts as a part of the pass before it: F is measured, the search along the last steps (`control`) includes it,
and it is shortened or undone if F has risen. A step that gains much less than the pass itself is tried again only after
1, 2, 4 and then 8 passes. With a delay local steps come first (`local_steps`), which follow each pass.

Newton steps of l1-regularised logistic regression: Yuan, Ho and Lin, "An improved GLMNET" (JMLR 2012); steps on the
manifold that proximal steps have found: Bareilles, Iutzeler and Malick (Mathematical Programming 2023).
"""

from __future__ import annotations

from typing import NamedTuple

from mpips.jobs.sparse_lr import control, quadratic


class Newton(NamedTuple):
    """The rule by which Newton steps are taken.

    >>> Newton().due(control.start(1.0))
    False
    """

    effort: quadratic.Effort = quadratic.Effort(searches=2, products=6, least=0.05)
    """How accurately the model is minimised."""
    first: int = 3
    """The first pass that a step may follow: before, most features that are active will not be needed."""
    pays: float = 0.5
    """A step pays if it gains this fraction of what the pass itself has gained."""
    patience: int = 8
    """The largest number of passes after which the next one is tried."""
    settled: int = 6
    """Least number of passes over which F must have fallen little for the run to have settled."""
    share: int = 3
    """... and the share of all its passes, 1 / this."""
    reset: int = 3
    """Least number of passes between two resets of the active set."""

    def due(self, ctl: control.Control) -> bool:
        """Return whether a step follows the last pass."""
        return len(ctl.objectives) - 1 >= max(self.first, ctl.newton_at)

    def due_next(self, ctl: control.Control) -> bool:
        """Return whether a step follows the pass that runs."""
        return len(ctl.objectives) >= max(self.first, ctl.newton_at)

    def taken(self, ctl: control.Control, choice: control.Choice) -> control.Control:
        """Return the control after a step, with the result of the search along it."""
        before, now = ctl.objectives[-2:]
        wait = (
            1
            if now - choice.objective >= self.pays * (before - now)
            else min(2 * ctl.newton_wait, self.patience)
        )
        ctl = control.corrected(ctl, choice.objective)
        return control.amplified(ctl, choice)._replace(
            newton_at=len(ctl.objectives) - 1 + wait, newton_wait=wait
        )

    def taken_locally(self, ctl: control.Control, report: control.PassReport) -> control.Control:
        """Return the control after a local step.

        As long as about the whole step is right, the next one has half as many sweeps more; after one that was far too
        long, half as many. Once F falls slowly by few sweeps, or the most do not pay, Newton steps follow: the workers'
        examples differ too much.
        """
        sweeps, excess, found = ctl.sweeps, report.proposal.excess, report.choice.objective
        slow = ctl.objectives[-2] - found < SLOW * abs(found) or report.choice.outcome == "undone"
        ctl = self.taken(ctl, report.choice)
        if (sweeps <= FEW_SWEEPS and slow) or (sweeps == MOST_SWEEPS and ctl.newton_wait > 1):
            following = 0
        elif excess < TOO_LONG:
            following = max(sweeps // 2, 1)
        elif excess < LONG:
            following = sweeps
        else:
            following = min(sweeps + max(sweeps // 2, 1), MOST_SWEEPS)
        return ctl._replace(newton_at=len(ctl.objectives), newton_wait=1, sweeps=following)


LONG, TOO_LONG = -0.2, -0.5
"""The excess of a local step (`control.Proposal`) that has had enough sweeps, and far too many."""
FEW_SWEEPS, MOST_SWEEPS = 2, 9
SLOW = 0.003
"""The share of F by which a pass and its local step decrease it where Newton steps are faster."""
DELAYED = Newton(first=1, reset=2)
"""With a delay steps are local ones at first: a step costs less than a pass, so it pays from the first one on."""
NEVER = Newton(first=1 << 62, settled=control.SETTLED_PASSES, share=2)
"""No Newton steps."""
