"""Cost model: predicts a job's cost on other layouts and machines from a few measured costs.

A step of an algorithm (a pass, a sweep) is `rounds` rounds of work, in each of which: workers compute; each sends every
server its part; servers apply it and answer. So for S servers and W workers of which p(n) = min(n, cores) run at a
time:

    seconds = compute / p(W)                        all the data's work, shared
            + message * M (1 / p(W) + 1 / p(S))     M = rounds W S messages, handled at both ends
            + byte * B (1 / p(W) + 1 / p(S))        B bytes, likewise
            + round * rounds                        the fixed cost of a round
            + network                               the busiest link, and the round trips, between nodes

With a delay, and a core for each rank, servers work while workers compute: the longer of the two counts, and the fixed
cost of rounds is divided by tau + 1. The four costs are fitted to finished runs on small layouts, none below 0
(`fit_costs`). A worker's bytes fall as W to the power of -`decay`, since it touches fewer keys with less data (the
paper's Fig. 3).

Effects that a mean does not show are simulated: slow workers (`straggling`) by the recurrence of rounds, of which the
slowest worker ends each; failures (`lifetime`) are expected losses at a given rate, after Young (1974) where one ends
the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.errors import InputError

DETECTION = 0.03
"""Seconds until MPI reports a killed rank, as `mpips bench faults` measures."""


class RankCounts(NamedTuple):
    """Numbers of ranks by role; `replicas` copies of each server's keys; a delay of `tau` rounds."""

    servers: int
    workers: int
    replicas: int = 0
    tau: int = 0

    @property
    def copies(self) -> int:
        """Return the number of copies besides the primary, as far as there are servers for them."""
        return min(self.replicas, self.servers - 1)


@dataclass(frozen=True)
class Machine:
    """`nodes` with `cores` each, joined by links of `bandwidth` bytes/s and one-way `latency` s."""

    cores: int
    nodes: int = 1
    bandwidth: float = math.inf
    latency: float = 0.0


class Measured(NamedTuple):
    """Measurements of a finished run, per step except for the memory (bytes) and the load time (s)."""

    layout: RankCounts
    cores: int
    rounds: float
    seconds: float
    worker_bytes: float
    """Of all workers together."""
    server_bytes: float
    """Of all servers together."""
    server_memory: float
    """Peak of one server."""
    load: float


@dataclass(frozen=True)
class Costs:
    """The costs of a job on the cores that it was measured on; see the module."""

    compute: float
    message: float
    byte: float
    round: float
    rounds: float
    decay: float
    """Exponent of the decrease of a worker's bytes."""
    worker_bytes: float
    """Bytes that a single worker sends in a step."""
    server_bytes: float
    """Bytes of the answers to it."""
    base: float
    """Bytes of a server without rows."""
    held: float
    """Bytes of all rows together."""
    load: float
    """Seconds for one worker to read all data."""
    error: float
    """The largest relative error on the runs that the costs were fitted to."""

    def scaled(self, data: float, keys: float) -> Costs:
        """Return the costs for `data` times as much data and `keys` times as many keys."""
        return replace(
            self,
            compute=self.compute * data,
            worker_bytes=self.worker_bytes * keys,
            server_bytes=self.server_bytes * keys,
            held=self.held * keys,
            load=self.load * data,
        )


class Prediction(NamedTuple):
    """The prediction for a layout: seconds of a step and their parts; bytes of a step; bytes of a server."""

    layout: RankCounts
    seconds: float
    compute: float
    messages: float
    bytes: float
    rounds: float
    network: float
    worker_sent: float
    server_sent: float
    server_memory: float
    recovery: float
    """Seconds until a lost server's keys have all their copies again."""
    reread: float
    """Seconds until the others have read a lost worker's data."""


# --- The model -------------------------------------------------------------------------------------------------------


def _shares(layout: RankCounts, cores: int) -> tuple[float, float, float]:
    """Return 1 / p(W), 1 / p(S), and whether servers work while workers compute (1) or not (0)."""
    workers, servers = min(layout.workers, cores), min(layout.servers, cores)
    apart = layout.tau > 0 and cores >= layout.workers + layout.servers
    return 1 / workers, 1 / servers, float(apart)


def _features(layout: RankCounts, cores: int, rounds: float, sent: float) -> NDArray[np.float64]:
    """Return the multiples of (compute, message, byte, round) in the cost of a step."""
    at_workers, at_servers, apart = _shares(layout, cores)
    ends = at_workers + (1 - apart) * at_servers
    messages = rounds * layout.workers * layout.servers
    return np.array([at_workers, messages * ends, sent * ends, rounds / (1 + layout.tau * apart)])


def fit_costs(runs: Sequence[Measured]) -> Costs:
    """Fit the costs to finished runs of one job, on at least three layouts with different numbers of workers and
    servers.

    Minimises relative errors with no cost below 0: of all subsets of the costs it takes the best non-negative fit.

    Raises:
        InputError: there are too few, or too similar, runs.
    """
    if len({run.layout[:2] for run in runs}) < 3 or len({run.layout.workers for run in runs}) < 2:
        raise InputError("a plan needs runs on at least three layouts with different numbers of workers")
    seconds = np.array([run.seconds for run in runs])
    sent = [run.worker_bytes + run.server_bytes for run in runs]
    rows = np.stack([_features(r.layout, r.cores, r.rounds, b) for r, b in zip(runs, sent, strict=True)])
    weighted = rows / seconds[:, None]
    best, least = np.zeros(4), math.inf
    for size in range(1, 5):
        for chosen in combinations(range(4), size):
            found, *_ = np.linalg.lstsq(weighted[:, chosen], np.ones(len(runs)), rcond=None)
            costs = np.zeros(4)
            costs[list(chosen)] = found
            error = float(((weighted @ costs - 1) ** 2).sum())
            if (found >= 0).all() and error < least - 1e-12:
                best, least = costs, error
    decay, first = _power([(run.layout.workers, run.worker_bytes / run.layout.workers) for run in runs])
    _, answered = _power([(run.layout.workers, run.server_bytes / run.layout.workers) for run in runs], decay)
    base, held = _line([((1 + r.layout.copies) / r.layout.servers, r.server_memory) for r in runs])
    compute, message, byte, each_round = best.tolist()
    return Costs(
        compute=compute,
        message=message,
        byte=byte,
        round=each_round,
        rounds=float(np.mean([run.rounds for run in runs])),
        decay=decay,
        worker_bytes=first,
        server_bytes=answered,
        base=base,
        held=held,
        load=float(np.mean([run.load * min(run.layout.workers, run.cores) for run in runs])),
        error=float(np.abs(weighted @ best - 1).max()),
    )


def _power(points: Sequence[tuple[int, float]], slope: float | None = None) -> tuple[float, float]:
    """Fit y = b x**-a with a in [0, 1] to points (x, y); return (a, b). `slope` fixes a."""
    x = np.log([point[0] for point in points])
    y = np.log([max(point[1], 1.0) for point in points])
    if slope is None:
        across = x - x.mean()
        fall = -float(across @ (y - y.mean())) / max(float(across @ across), 1e-300)
        slope = min(max(fall, 0.0), 1.0)
    return slope, float(np.exp((y + slope * x).mean()))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit y = a + b x, neither below 0; return (a, b)."""
    x, y = np.array(points).T
    across = x - x.mean()
    slope = max(float(across @ (y - y.mean())) / max(float(across @ across), 1e-300), 0.0)
    return max(float(y.mean() - slope * x.mean()), 0.0), slope


def predict(costs: Costs, machine: Machine, layout: RankCounts, repair: float = 200e6) -> Prediction:
    """Predict a step of a job; each server restores copies at `repair` bytes/s."""
    cores = machine.nodes * machine.cores
    worker_sent = costs.worker_bytes * layout.workers ** (1 - costs.decay)
    server_sent = costs.server_bytes * layout.workers ** (1 - costs.decay)
    sent = worker_sent + server_sent
    paid = _features(layout, cores, costs.rounds, sent)
    compute, messages, moved, rounds = (
        paid * (costs.compute, costs.message, costs.byte, costs.round)
    ).tolist()
    busy = compute + messages + moved
    # Servers work at the same time: the longer of the two counts.
    if _shares(layout, cores)[2]:
        at_server = costs.message * costs.rounds * layout.workers + costs.byte * sent / layout.servers
        busy = max(busy, at_server)
    network = _network(machine, layout, costs.rounds, worker_sent, server_sent)
    held = costs.held * (1 + layout.copies) / layout.servers
    return Prediction(
        layout=layout,
        seconds=busy + rounds + network,
        compute=compute,
        messages=messages,
        bytes=moved,
        rounds=rounds,
        network=network,
        worker_sent=worker_sent,
        server_sent=server_sent,
        server_memory=costs.base + held,
        recovery=DETECTION + held / repair,
        reread=costs.load / min(layout.workers, cores) / max(layout.workers - 1, 1),
    )


def _network(
    machine: Machine, layout: RankCounts, rounds: float, worker_sent: float, server_sent: float
) -> float:
    """Return the seconds that the busiest node's link is in use, plus those of the round trips."""
    if machine.nodes == 1:
        return 0.0
    fullest = max(
        -(-layout.servers // machine.nodes) / layout.servers,
        -(-layout.workers // machine.nodes) / layout.workers,
    )
    busiest = max(worker_sent, server_sent) * fullest
    return busiest / machine.bandwidth + 2 * machine.latency * rounds / (1 + layout.tau)


def best(costs: Costs, machine: Machine, ranks: int, layout: RankCounts) -> list[Prediction]:
    """Predict every split of `ranks`, one of which schedules, into servers and workers, fastest first.

    Of `layout` only `replicas` and the delay are used. InputError for fewer than 3 ranks.
    """
    if ranks < 3:
        raise InputError(f"a job needs at least 3 ranks (a scheduler, a server, a worker), got {ranks}")
    counts = sorted({max(1, round((ranks - 1) * share)) for share in np.linspace(0.01, 0.6, 60)})
    splits = [layout._replace(servers=s, workers=ranks - 1 - s) for s in counts if ranks - 1 - s >= 1]
    return sorted((predict(costs, machine, split) for split in splits), key=lambda each: each.seconds)


# --- Stragglers ------------------------------------------------------------------------------------------------------


class Straggling(NamedTuple):
    """The effect of slow workers on a step: the factor on its time, and the fraction of time that a worker waits."""

    longer: float
    waiting: float


def straggling(
    workers: int, tau: int, busy: float, fixed: float, sigma: float, *, rounds: int = 400, seed: int = 0
) -> Straggling:
    """Simulate rounds in which a worker takes `busy` seconds times a lognormal factor of mean 1, and a round `fixed`.

    A worker starts round t when it has ended its own last one, and all workers have ended round t - tau - 1.
    """
    rng = np.random.default_rng(seed)
    own, done, worked = np.zeros(workers), np.zeros(rounds), 0.0
    for number in range(rounds):
        before = done[number - tau - 1] if number > tau else 0.0
        factors = rng.lognormal(-(sigma**2) / 2, sigma, workers)
        worked += busy * float(factors.mean())
        own = np.maximum(own, before) + busy * factors
        done[number] = own.max() + fixed
    even = rounds * (busy + fixed / (tau + 1))
    whole = float(done[-1])
    return Straggling(whole / even, max(0.0, 1 - worked / whole))
