"""A registration: the callbacks that one part of a rank, such as a role, adds to its node and removes together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mpips.cluster.view import View
from mpips.transport.message import Command, Message

Handler = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Registration:
    """The callbacks of one part of a rank; the node calls those of one kind in the order of registration."""

    handlers: Mapping[Command, Handler] = field(default_factory=dict)
    """For requests to this rank, by command. A rank without any executes no request: it waits for its next role."""
    controls: Mapping[Command, Handler] = field(default_factory=dict)
    """For control messages, by command."""
    ticks: tuple[Callable[[], None], ...] = ()
    """Called every few milliseconds, between messages."""
    glances: tuple[Callable[[], None], ...] = ()
    """Called inside a program's call, whenever it has handled what has arrived."""
    views: tuple[Callable[[View, View], None], ...] = ()
    """Called with each change of the view: before, after."""
