"""Views: who is there and who owns which keys, as of one epoch (paper, section 4.3).

The scheduler owns the view, everyone else caches it. A request carries the epoch of the view that its sender used to
find the owner; a node that is at another epoch refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpips.layout import Layout
from mpips.ring import Ring


@dataclass(frozen=True)
class View:
    """The cluster at one epoch: the ring over the servers that are alive, and the workers in worker order."""

    epoch: int
    ring: Ring
    servers: tuple[int, ...]
    workers: tuple[int, ...]


def first_view(layout: Layout, virtual_servers: int = 0) -> View:
    """Give the view that every rank starts from; it needs no message, since the layout is known to all."""
    ring = Ring.of(layout.servers, virtual_servers)
    return View(0, ring, layout.servers, layout.workers)
