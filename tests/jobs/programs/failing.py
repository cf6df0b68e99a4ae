"""A small job that fails at a place, time and in a manner that its settings name; workers sum ones into a vector."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpips import DataError, VectorSpec, call, update

RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


@dataclass(frozen=True)
class Settings:
    """The table [failing]."""

    at: str = ""
    """Where: in `schedule`, `Worker`, or at the servers."""
    how: str = "raise"
    """How: see `fail`."""
    index: int = 0
    """Which worker."""
    rounds: int = 3
    """How many rounds; 0: until asked to stop."""
    up: str = ""
    """A file to touch once the first round is over."""


def fail(how: str) -> None:
    """Fail in one of many manners."""
    if how == "raise":
        raise RuntimeError("as it was told")
    if how == "input":
        raise DataError("some.svm, line 3: as it was told")
    if how == "exit":
        raise SystemExit(0)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "memory":
        np.empty(1 << 60, np.uint8)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "leave":
        os._exit(0)
    if how == "hang":
        time.sleep(600)
    if how == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()


if os.environ.get("FAIL_IMPORT"):
    number, _, manner = os.environ["FAIL_IMPORT"].partition(":")
    if number in ("all", next((os.environ[name] for name in RANKS if name in os.environ), "")):
        fail(manner)


@update("ones")
def ones(values, state, slots, rows, settings):
    """Add, or fail."""
    if settings.get("fail"):
        fail(settings["fail"])
    values[slots] += rows


@call("touch")
def touch(segment, args):
    """Do nothing, or fail."""
    fail(args["fail"])
    return {"slots": len(segment)}


def schedule(cluster, settings):
    """Sum ones, some rounds long."""

    def reported(*places):
        return settings.how if settings.at in places else ""

    with cluster.phase("load"):
        cluster.workers.call("load", {"fail": reported("load")}, only=[settings.index])
    update_settings = {"fail": reported("update")} if reported("update") else {}
    w = cluster.create_vector(VectorSpec("w", update="ones", settings=update_settings, aggregate=True))
    number = 0
    with cluster.phase("train"):
        while not settings.rounds or number < settings.rounds:
            number += 1
            place = settings.at if settings.at in ("call", "callback", "late_callback") else ""
            task = cluster.workers.start("sum", {"round": number, "at": place})
            if settings.at == "round":  # the others wait in a round that never fills
                cluster.workers.start("lone", {"round": 10**6}, only=[0])
                time.sleep(0.2)
            fail(reported("schedule", "round"))
            task.result()
            cluster.servers.call("touch", {"fail": reported("server_call")}, vector=w)
            cluster.event("pass", number=number)
            cluster.say(f"round {number}")
            if settings.up:
                Path(settings.up).touch()
            if settings.at == "deaf":  # the others fail while one worker looks up from nothing
                cluster.workers.start("deaf", only=[0])
                fail("raise")
            if settings.at != "hang" and cluster.stopping():
                break
    if settings.at == "shutdown":
        cluster.workers.call("last", only=[settings.index])
    if settings.at == "groups":
        parts = {name: len(cluster.group(name).call("whoami")) for name in ("train", "query")}
        return {"groups": {**parts, "all": len(cluster.workers)}}
    return {"rounds": number}


class Worker:
    """Pushes ones, and fails."""

    def __init__(self, context):
        self.node, self.context, self.settings = context.node, context, context.job.settings
        if self.settings.at == "constructor":
            self.fail()

    def fail(self):
        if self.context.index == self.settings.index:
            fail(self.settings.how)

    def load(self, fail):
        if fail:
            self.fail()

    def sum(self, round, at):
        self.context.step(round)
        if at == "call":
            self.fail()
        w = self.context.vectors["w"]
        task = w.push(np.arange(8, dtype=np.uint64), np.ones(8), round=round)
        if at == "late_callback":  # runs when no call is being executed
            task.then(lambda _: self.fail())
            return
        if at == "callback":
            task.then(lambda _: self.fail())
        task.result()

    def lone(self, round):
        w = self.context.vectors["w"]
        w.push(np.arange(8, dtype=np.uint64), np.ones(8), round=round).result()

    def last(self):
        self.fail()

    def deaf(self):
        fail("hang")

    def whoami(self):
        return {"index": self.context.index}
