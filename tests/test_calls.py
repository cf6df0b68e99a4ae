"""The names of mpips' own calls are all listed, and refused for those of a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mpips.calls import BuiltInCall
from mpips.config.program import load_program
from mpips.errors import JobError, RemoteError, UsageError
from mpips.rank.simulation import simulate
from mpips.server.server import Server
from mpips.server.shard_functions import BUILT_IN as SHARDS
from mpips.storage.updates import call, update
from mpips.worker.worker import CallExecutor, Context

PROGRAM = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    pass

def schedule(cluster, settings):
    return {}

class Worker:
    def __init__(self, context):
        pass
"""


def load(folder: Path, methods: str) -> None:
    (folder / "mine.py").write_text(PROGRAM + methods)
    load_program("mine.py", folder)


@pytest.mark.parametrize("name", list(BuiltInCall))
def test_a_worker_whose_method_mpips_would_not_call_does_not_load(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        JobError, match=rf"mine\.py.*Worker\.{name} \(.*mine\.py:15\).*{', '.join(BuiltInCall)}"
    ):
        load(tmp_path, f"\n    def {name}(self, folder):\n        return 1\n")


def test_the_methods_by_which_a_worker_takes_part_in_checkpoints_load(tmp_path: Path) -> None:
    load(
        tmp_path,
        "    def state(self): return {}\n    def restore(self, **arrays): pass\n    def rebuild(self, n=3): pass\n",
    )


@pytest.mark.parametrize("name", [str(name) for name in BuiltInCall])
def test_a_function_for_shards_has_no_such_name(name: str) -> None:
    with pytest.raises(JobError, match=f"'{name}': the name is reserved"):
        call(name)(lambda segment, args: {})


def test_the_list_has_all_served_calls_of_all_workers() -> None:
    served: set[str] = set(SHARDS)

    def look(cluster: Any) -> None:
        served.update(Server(cluster.node)._built_in)

    class Mine:
        def account(self) -> int:
            return 1

    class Looks:
        def __init__(self, context: Context) -> None:
            if type(self) is Looks:
                served.update(CallExecutor(context.node, type("Other", (Looks,), {}), None)._own)
                with pytest.raises(JobError, match=r"Worker\.account \(.*test_calls\.py:"):
                    CallExecutor(context.node, lambda context: Mine(), None)  # made by a function

    simulate(look, Looks)
    assert served | {BuiltInCall.WRITTEN} == set(BuiltInCall)


@pytest.mark.parametrize(
    "how", ["def schedule(*given):\n    yield 1", "async def schedule(*given):\n    pass"]
)
def test_functions_that_do_not_run_when_they_are_called_are_refused(tmp_path: Path, how: str) -> None:
    with pytest.raises(JobError, match=r"schedule \(.*mine\.py:15\).*does not run"):
        load(tmp_path, f"\n{how}\n")
    space: dict[str, Any] = {}
    exec(how, space)
    idle = space["schedule"]
    for register in (
        call("idle"),
        update("idle"),
        lambda f: update("idle", apply_range=f)(lambda *given: None),
    ):
        with pytest.raises(UsageError, match="does not run"):
            register(idle)
    worker = type("Worker", (), {"__init__": lambda self, context: None, "idle": idle})
    with pytest.raises(RemoteError, match=r"Worker\.idle .*does not run"):
        simulate(lambda cluster: cluster.workers.call("idle"), worker)
