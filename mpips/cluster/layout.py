"""The layout of a job: the role of each rank, and the communicators of the roles (paper, section 3).

Roles follow from the rank and the job file alone, so every rank computes the same layout without messages.
Schedulers come first (rank 0 leads and prints), then servers, workers group by group, then spares.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mpips.errors import LayoutError

if TYPE_CHECKING:
    from mpi4py import MPI

WORKERS = "workers"
"""The name of the one worker group of a job whose `workers` is a number."""


class Role(enum.StrEnum):
    """What a rank does."""

    SCHEDULER = "scheduler"
    SERVER = "server"
    WORKER = "worker"
    SPARE = "spare"


class Cause(enum.StrEnum):
    """How a rank was lost."""

    DIED = "died"
    HUNG = "hung"

    @property
    def text(self) -> str:
        """Return it as an error message."""
        return (
            "it hung: no heartbeat for [heartbeat] patience; a call into C that keeps the GIL looks the same"
            if self is Cause.HUNG
            else "it ended without a message: killed, crashed, or out of memory"
        )


MOST = 1 << 20
"""Upper bound for the ranks of a role, beyond any machine's size."""


@dataclass(frozen=True, slots=True)
class LayoutSpec:
    """The job file's table [layout]: how many ranks take each role.

    Raises LayoutError, whose text begins with the key, for a number that no world satisfies.
    """

    servers: int = 1
    """Ranks that hold the parameters."""

    workers: int | dict[str, int] = 1
    """Ranks that compute: a number, or numbers by the name of the worker group."""

    spares: int = 0
    """Ranks that can replace a dead one."""

    schedulers: int = 1
    """Scheduler ranks: the first leads, the others can succeed it."""

    hand_over: bool = False
    """Reassign data parts that are not started, of the worker with most, to idle workers. sparse_lr's darlin: move
    parts between passes from slow workers to fast ones, by their seconds of work."""

    exact_sums: bool = False
    """Exact summation: a sequential run gives the same bits for any number of workers too, also when some die,
    join or leave. An error for a program that does not support it."""

    def __post_init__(self) -> None:
        _check(self)

    def groups(self) -> dict[str, int]:
        """Return the number of workers of each group, in the order of the job file."""
        return dict(self.workers) if isinstance(self.workers, dict) else {WORKERS: self.workers}

    def size(self) -> int:
        """Return the number of ranks that the job needs."""
        return self.schedulers + self.servers + sum(self.groups().values()) + self.spares


@dataclass(frozen=True, slots=True)
class Place:
    """One rank's role, its index among all ranks of that role, and for a worker its group ("" for others)."""

    rank: int
    role: Role
    index: int
    group: str

    def __str__(self) -> str:
        return f"{self.role} {self.index}"


def _check(spec: LayoutSpec) -> None:
    """Raise LayoutError, naming the key of the job file, for a number that no world can satisfy."""
    groups = spec.groups()
    named = isinstance(spec.workers, dict)
    counts = {
        "schedulers": (spec.schedulers, 1),
        "servers": (spec.servers, 1),
        **{f"workers.{name}" if named else "workers": (count, 1) for name, count in groups.items()},
        "spares": (spec.spares, 0),
    }
    if not groups or "" in groups:
        raise LayoutError("workers names no group; a job needs at least one worker: --set layout.workers=1")
    for key, (count, least) in counts.items():
        if count < least:
            what = f"a job needs at least {least}" if least else "it cannot be negative"
            raise LayoutError(f"{key} is {count}; {what}: use --set layout.{key}={least}")
        if count > MOST:
            raise LayoutError(f"{key} is {count}; a job has at most {MOST:,} of them")


def assign(size: int, spec: LayoutSpec) -> tuple[Place, ...]:
    """Return the place of each of `size` ranks, by rank; LayoutError if the job needs another number."""
    if size != spec.size():
        raise LayoutError(_size_error(size, spec))
    roles = [(Role.SCHEDULER, "")] * spec.schedulers + [(Role.SERVER, "")] * spec.servers
    for name, count in spec.groups().items():
        roles += [(Role.WORKER, name)] * count
    roles += [(Role.SPARE, "")] * spec.spares
    first = {role: next((r for r, (taken, _) in enumerate(roles) if taken is role), 0) for role in Role}
    return tuple([Place(rank, role, rank - first[role], group) for rank, (role, group) in enumerate(roles)])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size_error(size: int, spec: LayoutSpec) -> str:
    """Return the error text: ranks needed, ranks started, and the launch or setting that fits."""
    workers = sum(spec.groups().values())
    parts = [_count(spec.schedulers, "scheduler"), _count(spec.servers, "server"), _count(workers, "worker")]
    if spec.spares:
        parts.append(_count(spec.spares, "spare"))
    text = f"this job needs {spec.size()} ranks ({' + '.join(parts)}), {size} "
    text += f"{'was' if size == 1 else 'were'} started: use `mpirun -n {spec.size()}`"
    room = size - (spec.size() - workers)
    if room >= 1 and not isinstance(spec.workers, dict):
        text += f", or --set layout.workers={room}"
    return text


@dataclass(frozen=True, slots=True)
class Layout:
    """All places of a job, by rank, and the ranks of each role in order of index."""

    places: tuple[Place, ...]
    schedulers: tuple[int, ...] = field(init=False)
    servers: tuple[int, ...] = field(init=False)
    workers: tuple[int, ...] = field(init=False)
    spares: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        for name, role in (
            ("schedulers", Role.SCHEDULER),
            ("servers", Role.SERVER),
            ("workers", Role.WORKER),
            ("spares", Role.SPARE),
        ):
            ranks = tuple([place.rank for place in self.places if place.role is role])
            object.__setattr__(self, name, ranks)

    @classmethod
    def of(cls, size: int, spec: LayoutSpec) -> Layout:
        """Return the layout of a world of `size` ranks; LayoutError if it cannot take `spec`."""
        return cls(assign(size, spec))

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return len(self.places)

    def role(self, rank: int) -> Role:
        """Return the role of a rank."""
        return self.places[rank].role

    def group(self, name: str) -> tuple[int, ...]:
        """Return the ranks of a worker group; KeyError if there is none of that name."""
        ranks = tuple([rank for rank in self.workers if self.places[rank].group == name])
        if not ranks:
            raise KeyError(f"no worker group {name!r}; there are {', '.join(self.groups())}")
        return ranks

    def members(self, workers: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the present workers of each group, in their order.

        A spare that works belongs to the group with most members missing, so it takes a lost worker's place.
        """
        group_of = {rank: self.places[rank].group for rank in workers}
        missing = Counter(self.places[rank].group for rank in self.workers)
        missing.subtract(Counter(group_of.values()))
        names = self.groups()
        for rank in [rank for rank, group in group_of.items() if group not in names]:
            group_of[rank] = max(names, key=lambda name: missing[name])
            missing[group_of[rank]] -= 1
        return {name: tuple([rank for rank in workers if group_of[rank] == name]) for name in names}

    def groups(self) -> tuple[str, ...]:
        """Return the names of the worker groups, in the order of the job file."""
        return tuple(dict.fromkeys([self.places[rank].group for rank in self.workers]))


class Communicators(NamedTuple):
    """The communicators of the roles; COMM_NULL for the roles that this rank does not have.

    A rank in one of them is the place's index. `free` frees all.
    """

    scheduler: MPI.Comm
    server: MPI.Comm
    worker: MPI.Comm
    spare: MPI.Comm
    group: MPI.Comm
    """The worker group of this rank; the same ranks as `worker` when there is one group."""

    def free(self) -> None:
        """Free the communicators of this rank: collective within each."""
        for communicator in self:
            if communicator:
                communicator.Free()


def split(communicator: MPI.Comm, layout: Layout) -> Communicators:
    """Split `communicator`, which has the ranks of `layout`, by role and worker group: collective.

    LayoutError if the sizes differ.
    """
    from mpi4py import MPI

    if communicator.Get_size() != layout.size:
        raise LayoutError(f"the layout has {layout.size} ranks, the communicator {communicator.Get_size()}")
    mine = layout.places[communicator.Get_rank()]
    own = communicator.Split(list(Role).index(mine.role), mine.rank)
    names = layout.groups()
    color = names.index(mine.group) if mine.role is Role.WORKER else MPI.UNDEFINED
    group = communicator.Split(color, mine.rank)
    of_role = {role: own if role is mine.role else MPI.COMM_NULL for role in Role}
    return Communicators(
        of_role[Role.SCHEDULER], of_role[Role.SERVER], of_role[Role.WORKER], of_role[Role.SPARE], group
    )


_STARTED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables in which a launcher passes the size of the world."""


def check_singleton(size: int, environ: Mapping[str, str]) -> None:
    """Raise LayoutError, with advice, if COMM_WORLD has one rank but the launcher started several.

    A launcher and an MPI with different PMIs start n worlds of one rank each, which all do the same work and succeed.
    `size` is that of COMM_WORLD, `environ` the environment of this process.
    """
    if size != 1:
        return
    sizes = {name: _number(environ.get(name)) for name in _STARTED}
    launched, steps = max(sizes.values()), _number(environ.get("SLURM_STEP_NUM_TASKS"))
    by_srun = steps > 1 and (sizes["PMI_SIZE"] == steps or not any(name in environ for name in _STARTED))
    if by_srun:
        raise LayoutError(
            f"srun started {steps} ranks (SLURM_STEP_NUM_TASKS), but MPI sees a world of 1: give srun "
            "--mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH), or use mpirun in the allocation; see `mpips doctor`"
        )
    if launched > 1:
        name = max(sizes, key=lambda each: sizes[each])
        raise LayoutError(
            f"the launcher started {launched} ranks ({name}), but MPI sees a world of 1: the launcher "
            "belongs to another MPI than mpi4py loads; start the job by `mpips run`, or see `mpips doctor`"
        )


def _number(text: str | None) -> int:
    """Return the number in a variable; 0 if it is not set or not a number."""
    return int(text) if text and text.isdecimal() else 0
