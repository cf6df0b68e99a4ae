"""The scheduler's decisions between the passes of the delayed block proximal method: pure functions.

A pass visits every block once; delay, or many features of a block in one example, can make its steps too
long. Three mechanisms ensure that the objective F decreases for any data, any partition into blocks and any delay:

* The workers' bound (`kernels`) measures how features of the blocks in flight occur together in examples; `theta`
  scales this term. After each pass the slope of F along the pass's step shows how much longer or shorter
  the step should have been, and theta is adjusted accordingly.
* After each pass F is minimised over the subspace of the last `MEMORY` passes' steps: margins and weights
  are linear in w, so each rank combines its stored margins or weights at the starts of these passes, and
  now, linearly (a mixture), and only a few scalars are sent. This is sequential subspace optimisation
  (Narkiss and Zibulevsky 2005); it shortens the slow tail of coordinate descent where features are strongly
  correlated, and it shortens or undoes a pass whose step was too long.
* A pass that raises F even after this search is undone, and theta is multiplied by 8.

The decisions do not depend on the distribution of keys over servers: sums over keys are exact, and sums over
examples are added in worker order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]

MEMORY = 5
"""Number of passes whose steps span the subspace that is searched after each pass."""

LEAST_GAIN = 0.1
"""Least gain of a mixture, as a fraction of the pass's own gain, for it to be tried and to be accepted."""

THETA_START, THETA_LOW, THETA_HIGH = 0.3, 0.02, 64.0
FEATURES_OF_A_BLOCK = 2.0
"""Mean number of active features of a block in an example without delay, for `block_count`."""
LEAST_NONZEROS = 1 << 14
"""Non-zeros of a block on each worker for which the block's messages cost half as much as its computations, about."""

MOST_NOISE = 1e7
"""Largest amplification of rounding errors by mixtures: with tiny steps, a mixture would consist of errors only."""
RESET_NOISE = 1e-2 * MOST_NOISE
"""The amplification at which a reset is due, which recomputes the margins from the weights."""

MOST_PATIENCE = 32

LEAST_PAY, MOST_PATIENT = 0.5, 8
"""A search pays if it gains this fraction of the pass's own gain; there is one after at most so many passes."""

SETTLED_PASSES = 10
"""Least number of passes over which F must have fallen little for a run to have settled, without Newton steps."""
GAP_PASSES = 4
"""Least number of passes over which F must have fallen little before the restricted gap is measured."""

MOST_BLOCKS = 1024
CUT_AGAIN = 0.1
"""Change of the active non-zeros, as a fraction, after which blocks are cut anew: until then key lists are reused."""
SKETCH = 4096
"""Number of groups of features in a worker's report of non-zeros."""

RESET_SHARE = 0.1
"""A reset reactivates every feature with |g| >= (1 - RESET_SHARE) l1."""

FAR_SHARE = 0.5
"""A feature with |g| < FAR_SHARE l1 is not examined again until the run seems to have settled."""


class Proposal(NamedTuple):
    """The possible results of a pass: as it is, or one of several mixtures."""

    objective: float
    """F at the end of the pass."""
    excess: float
    """By the model, F along the pass's step has its minimum at 1 + excess times the step."""
    mixtures: F8
    """f8[c, K+1]: the mixtures to try."""
    good: int = 1
    """The pass started this many saved states ago; with passes that overlap, F may have risen in the one before."""


class Choice(NamedTuple):
    """The chosen result of a pass. `mixture` f8[K+1] is None when the weights stay as they are."""

    objective: float
    mixture: F8 | None
    outcome: str
    """"kept", "mixed", or "undone"."""


def propose(model: F8, sizes: F8, l1: float, before: float, noise: float = 1.0, good: int = 1) -> Proposal:
    """Propose mixtures of the last passes.

    model: the workers' `margin_model`, summed, f8[K+2, K]. sizes: the servers' `size_terms`, summed over
    keys, f8[K+1]. before: F at the pass's start, `good` passes ago. noise: as in `Control`. A mixture's entry k weighs
    the state before pass k of the K remembered; the last one weighs the state now.
    """
    steps = model.shape[1]
    objective = float(model[steps + 1, 0] + l1 * sizes[steps])
    slopes = model[steps] + l1 * sizes[:steps]
    curvatures = model[:steps]
    own = float(curvatures[-1, -1])
    excess = float(-slopes[-1] / own) if own > 0.0 else 0.0
    mixtures = []
    if not objective < before:
        mixtures += [_mixture(steps, 0.5, good), _mixture(steps, 0.15, good)]
    norms = np.sqrt(np.maximum(np.diag(curvatures), 1e-300))
    scaled = curvatures / np.outer(norms, norms) + 1e-8 * np.eye(steps)
    if np.isfinite(scaled).all() and np.isfinite(slopes).all():
        newton = _solve(scaled, -slopes / norms) / norms
        promised = -0.5 * float((newton * slopes).sum())
        if np.isfinite(newton).all() and promised > LEAST_GAIN * (before - objective):
            for length in (1.0, 0.5):
                mixture = np.append(-length * newton, 1.0 + length * newton.sum())
                if noise * np.abs(mixture).sum() <= MOST_NOISE:
                    mixtures.append(mixture)
    return Proposal(objective, excess, np.array(mixtures).reshape(-1, steps + 1), good)


def _solve(matrix: F8, right: F8) -> F8:
    """Solve matrix x = right for a symmetric positive definite matrix f8[n, n]; NaN if it is not positive definite.

    A linear algebra library chooses the order of its operations by the processor, and with it the last bits of x. Here
    it is fixed: Cholesky's LDL' row by row (Golub and Van Loan, Matrix Computations, 4.1.2), so that a run has the same
    bits on all machines whose C library has the same exp and log.
    """
    n = len(right)
    lower, d, x = matrix.tolist(), [0.0] * n, right.tolist()
    for j in range(n):
        for i in range(j):
            for k in range(i):
                lower[j][i] -= lower[j][k] * d[k] * lower[i][k]
            lower[j][i] /= d[i]
        d[j] = lower[j][j]
        for k in range(j):
            d[j] -= lower[j][k] * d[k] * lower[j][k]
            x[j] -= lower[j][k] * x[k]
        if not d[j] > 0.0:
            return np.full(n, np.nan)
    for j in reversed(range(n)):
        x[j] /= d[j]
        for k in range(j + 1, n):
            x[j] -= lower[k][j] * x[k]
    return np.array(x)


def _mixture(steps: int, length: float, good: int = 1) -> F8:
    """Return the mixture that takes `length` of the step of the last `good` passes."""
    weights = np.zeros(steps + 1)
    weights[-1 - good], weights[-1] = 1.0 - length, length
    return weights


def choose(proposal: Proposal, before: float, objectives: Sequence[float]) -> Choice:
    """Choose the result of a pass, given F of every proposed mixture: F never increases.

    A mixture makes weights non-zero that are zero at the optimum, so it is accepted only if its gain is at least
    `LEAST_GAIN` of the pass's own gain.
    """
    objective = proposal.objective
    fell = objective < before
    best = min(range(len(objectives)), key=lambda c: objectives[c], default=None)
    if best is not None and objectives[best] < before:
        gain = objective - objectives[best]
        if not fell or gain > LEAST_GAIN * (before - objective):
            return Choice(objectives[best], proposal.mixtures[best], "mixed")
    if fell:
        return Choice(objective, None, "kept")
    return Choice(before, _mixture(proposal.mixtures.shape[1] - 1, 0.0, proposal.good), "undone")


class Control(NamedTuple):
    """The state of the control between passes."""

    objectives: tuple[float, ...]
    """F at w = 0 and after each pass."""
    theta: float = THETA_START
    threshold: float = 0.0
    reset_below: float = 0.05
    """Relative gain of a pass under which the active set is reset next."""
    since_reset: int = 0
    settled: int = 0
    """Passes since the reset at which the run had first settled, 0 if it has not."""
    resets: int = 0
    """Number of resets."""
    noise: float = 1.0
    """Bound of the amplification of the margins' rounding errors by mixtures since the last reset."""
    since: int = 0
    """The first pass whose F tells whether the run has settled: before it, the loss of a worker has increased F."""
    exact: int = 0
    """Number of next passes in which no filter may round the workers' pushes."""
    patience: int = 1
    """Number of passes for which rounding is forbidden after the next pass that increases F."""
    full_at: int = 0
    """The pass after which the last full reset was due, 0 if none was."""
    unsearched: int = 0
    """With passes that overlap: those since the last search along the last passes' steps."""
    patient: int = 1
    """... and after how many of them the next search is due."""
    gap_at: int = 0
    """The pass from which the restricted gap is measured next, if the run stops by it."""
    newton_at: int = 0
    """The pass that a Newton step may follow next."""
    newton_wait: int = 1
    """The number of passes from the last one to that one."""
    sweeps: int = 1
    """With a delay: the sweeps of the next local step (`local_steps`); 0: Newton steps are taken instead."""


class PassReport(NamedTuple):
    """The results of a pass."""

    proposal: Proposal
    choice: Choice
    violation: float
    """The largest of all servers."""
    examples: int


class Decision(NamedTuple):
    """The next action: another pass, which may `reset` the active set first, or `stop`.

    A `full` reset computes the gradient of every feature that may ever be active; any other reset only of the features
    that were close to becoming active at the last full one.
    """

    reset: bool
    stop: bool
    full: bool = False


def start(objective: float) -> Control:
    """Return the control before the first pass, F being `objective`."""
    return Control((objective,))


def next_pass(
    control: Control,
    report: PassReport,
    epsilon: float,
    passes: int,
    *,
    kkt: bool = True,
    target: float = 0.0,
    share: int = 2,
    gap: float = 0.0,
    least: int = SETTLED_PASSES,
    reset: int = 3,
) -> tuple[Control, Decision]:
    """Update the control after a pass; decide whether to continue, reset the active set, or stop.

    The run has settled when F decreased by no more than `epsilon` F during the last 1/`share` of its passes (at
    `least` some): where steps are small, and passes therefore many, the test covers more passes. Then a reset follows
    and three more passes (none if the reset reactivated no feature, see `after_reset`), and the run stops if it is
    still settled. Without the filter (`kkt`) no feature can be reactivated: a reset only recomputes the margins and the
    gap. The run stops at once when F <= `target`.

    Where a pass has gained little, a reset follows, `reset` passes after the last one at the earliest.

    A reset is full whenever the number of passes has doubled: a feature that was far from becoming active at the last
    full reset may be needed now.

    With a `gap` > 0 there is also a full reset, at which the restricted gap is measured, as soon as it may be small
    enough: when F has fallen by at most 2 `gap` F over the last third of the passes, and then when `measured` says.
    """
    objective = report.choice.objective
    objectives = (*control.objectives, objective)
    exact, patience = _next_exact(control, report)
    gain = (objectives[-2] - objective) / max(abs(objective), 1e-300)
    control = control._replace(
        objectives=objectives,
        theta=_next_theta(control.theta, report, objectives[-2]),
        threshold=10.0 * report.violation / report.examples if report.examples else 0.0,
        since_reset=control.since_reset + 1,
        exact=exact,
        patience=patience,
    )
    control = amplified(control, report.choice)
    if len(objectives) > passes or objective <= target:
        return control, Decision(reset=False, stop=True)
    done = len(objectives) - 1
    if has_settled(objectives[control.since :], epsilon, share, least):
        if control.settled > 3:
            return control, Decision(reset=False, stop=True)
        if control.settled > 0:
            return control._replace(settled=control.settled + 1), Decision(reset=False, stop=False)
        return _full_reset(control, settled=1)
    if (
        gap > 0.0
        and control.gap_at <= done
        and has_settled(objectives[control.since :], 2.0 * gap, 3, GAP_PASSES)
    ):
        return _full_reset(control, settled=0)
    slow = control.since_reset >= reset + done // 10 and gain < control.reset_below
    if (kkt and (slow or control.since_reset >= 20 + done // 4)) or control.noise > RESET_NOISE:
        below = max(min(control.reset_below, gain) * 0.1, 1e-6)
        full, resets = control.resets == 0 or done >= 2 * control.full_at, control.resets + 1
        control = control._replace(settled=0, reset_below=below, since_reset=0, resets=resets, noise=1.0)
        control = control._replace(full_at=done if full else control.full_at)
        return control, Decision(reset=True, stop=False, full=full)
    return control._replace(settled=0), Decision(reset=False, stop=False)


def _full_reset(control: Control, settled: int) -> tuple[Control, Decision]:
    """Return the control and the decision at a full reset; settled: as in `Control`, after it."""
    done, resets = len(control.objectives) - 1, control.resets + 1
    control = control._replace(settled=settled, since_reset=0, resets=resets, noise=1.0, full_at=done)
    return control, Decision(reset=True, stop=False, full=True)


def searched(control: Control, report: PassReport) -> Control:
    """Return the control after a search, which interrupts passes that overlap: after little gain the next is later."""
    before, found = control.objectives[-2], report.choice.objective
    own = max(before - report.proposal.objective, 0.0)
    pays = report.choice.outcome == "mixed" and report.proposal.objective - found > LEAST_PAY * own
    return control._replace(unsearched=0, patient=1 if pays else min(2 * control.patient, MOST_PATIENT))


def after_reset(
    control: Control, returned: float, gap: float, epsilon: float, *, enough: bool = False
) -> Decision:
    """Decide after a reset that reactivated `returned` wrongly dropped features; gap: (F - dual objective) / F.

    Stop at once when the gap proves the required accuracy, when the restricted gap is small `enough`, or when the run
    has settled and no feature was missed.
    """
    settled = control.settled > 0 and returned == 0.0
    return Decision(reset=False, stop=enough or gap <= epsilon or settled)


def measured(control: Control, found: float, gap: float) -> Control:
    """Return the control after the restricted gap was measured: after how many passes it may be as small as `gap`.

    F approaches its minimum about as the passes to the power of -1.5; a measurement costs as much as some passes.
    """
    done = len(control.objectives) - 1
    further = min((found / gap) ** (2.0 / 3.0), 2.0) if found < math.inf else 2.0
    return control._replace(gap_at=max(math.ceil(done * further), done + 2 + done // 8))


def amplified(control: Control, choice: Choice) -> Control:
    """Return the control with the amplification of rounding errors by a mixture."""
    factor = 1.0 if choice.mixture is None else max(1.0, float(np.abs(choice.mixture).sum()))
    return control._replace(noise=control.noise * factor)


def corrected(control: Control, objective: float) -> Control:
    """Return the control with F at recomputed margins (`kernels.set_margins`)."""
    return control._replace(objectives=(*control.objectives[:-1], objective))


def resumed(control: Control, objective: float) -> Control:
    """Return the control after an interrupted pass: F is `objective`, at recomputed margins."""
    rose = objective > control.objectives[-1] * (1.0 + 1e-9)
    since = len(control.objectives) - 1 if rose else control.since
    return corrected(control, objective)._replace(noise=1.0, since=since)


def has_settled(
    objectives: Sequence[float], epsilon: float, share: int = 2, least: int = SETTLED_PASSES
) -> bool:
    """Return whether F decreased by at most epsilon F over the last 1/`share` of the passes, and at least `least`."""
    done = len(objectives) - 1
    window = max(least, (done + share - 1) // share)
    return done >= window and objectives[-1 - window] - objectives[-1] <= epsilon * abs(objectives[-1])


def _next_theta(theta: float, report: PassReport, before: float) -> float:
    """Adjust theta after a pass whose step should have been (1 + excess) times as long."""
    if report.proposal.objective < before:
        excess = report.proposal.excess
        factor = 1.0 / (1.0 + excess) ** 2 if excess > 0.0 else (1.0 - excess) ** 2
        factor = min(max(factor, 0.25), 4.0)
    else:
        factor = 8.0 if report.choice.outcome == "undone" else 4.0
    return min(max(theta * factor, THETA_LOW), THETA_HIGH)


def _next_exact(control: Control, report: PassReport) -> tuple[int, int]:
    """Return `exact` and `patience` after a pass.

    Rounded rows are right on average, but may be too inexact for rare features as long as frequent ones are far from
    their optimum. So after a pass that increased F, the next passes use exact rows.
    """
    if control.exact > 0:
        return control.exact - 1, control.patience
    if report.proposal.objective < control.objectives[-1]:
        return 0, max(control.patience // 2, 1)
    return control.patience, min(2 * control.patience, MOST_PATIENCE)


# --- Blocks ----------------------------------------------------------------------------------------------


def block_count(weight: float, examples: int, tau: int, workers: int = 1) -> int:
    """Return the number of blocks for `weight` active non-zeros.

    More features in flight need more passes, and more blocks more messages: with a delay, no more than half of the
    blocks are in flight at once. As long as they keep `LEAST_NONZEROS` on each worker, there are 1 + tau times as many:
    no more features are in flight than without a delay.
    """
    if weight <= 0.0:
        return 1
    blocks = math.ceil(weight / (FEATURES_OF_A_BLOCK * max(examples, 1)))
    if tau > 0:
        cheap = min(blocks * (1 + tau), int(weight / (LEAST_NONZEROS * max(workers, 1))))
        blocks = max(blocks, cheap, 2 * (tau + 1))
    return min(blocks, MOST_BLOCKS)


def weight_sketch(
    keys: NDArray[np.uint64], weights: NDArray[np.int64], size: int = SKETCH
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Group sorted `keys` into at most about `size` runs of equal weight: (first key, weight) of every run.

    keys: u64[k], sorted, a worker's active features. weights: i8[k] > 0, their non-zeros.
    """
    if len(keys) <= size:
        return keys, weights
    total = np.cumsum(weights)
    group = (total - weights) * size // total[-1]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    return keys[first], np.add.reduceat(weights, first)


def cut_blocks(
    sketches: Sequence[tuple[NDArray[np.uint64], NDArray[np.int64]]], blocks: int
) -> NDArray[np.uint64]:
    """Return the first keys of blocks of about equal weight: u64[b], strictly ascending, the first 0, b <= blocks.

    Block i is [begins[i], begins[i + 1]), the last one ends with the key space. sketches: one of each worker.
    """
    keys = np.concatenate([keys for keys, _ in sketches]) if sketches else np.empty(0, np.uint64)
    weights = np.concatenate([weights for _, weights in sketches]) if sketches else np.empty(0, np.int64)
    unique, inverse = np.unique(keys, return_inverse=True)
    begins = np.zeros(1, np.uint64)
    if len(unique) == 0 or blocks <= 1:
        return begins
    merged = np.zeros(len(unique), np.int64)
    np.add.at(merged, inverse, weights)
    total = np.cumsum(merged)
    aims = total[-1] * np.arange(1, blocks, dtype=np.int64) // blocks
    cuts = np.searchsorted(total, aims, side="left") + 1
    return np.unique(np.concatenate([begins, unique[cuts[cuts < len(unique)]]]))
