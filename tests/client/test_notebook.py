"""A run in a cell of a notebook: a real Jupyter kernel, and its interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mpips.process.interpreter import python

if TYPE_CHECKING:
    from conftest import TinyData

pytest.importorskip("ipykernel", reason="Jupyter's kernel is not installed: pip install '.[notebook]'")
client = pytest.importorskip("jupyter_client", reason="Jupyter is not installed: pip install '.[notebook]'")
PATIENCE = 90.0
Execute = Callable[[str, Callable[[str], None]], dict[str, Any]]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Any]:
    """Start a kernel of this interpreter in an empty folder."""
    manager = client.KernelManager()
    manager.kernel_spec.argv[:1] = python()
    manager.start_kernel(cwd=str(tmp_path))
    yield manager
    manager.shutdown_kernel(now=True)
    manager.context.destroy(0)


@pytest.fixture
def execute(kernel: Any) -> Iterator[Execute]:
    """Execute a cell; what it prints is passed on, and its reply returned."""
    channels = kernel.client()
    channels.start_channels()
    channels.wait_for_ready(timeout=PATIENCE)

    def reply_to(asked: str) -> dict[str, Any]:
        while True:
            message = channels.get_shell_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") == asked:
                content: dict[str, Any] = message["content"]
                return content

    def execute_it(code: str, on_output: Callable[[str], None]) -> dict[str, Any]:
        asked = channels.execute(code)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            message = channels.get_iopub_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") != asked:
                continue
            if message["msg_type"] == "stream":
                on_output(message["content"]["text"])
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return reply_to(asked)
        raise TimeoutError(code)

    yield execute_it
    channels.stop_channels()


@pytest.mark.ranks
@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
def test_the_interruption_of_a_cell_stops_its_run(kernel: Any, execute: Execute, tiny_data: TinyData) -> None:
    job = {"job": {"program": "sparse_lr"}, "data": {"train": str(tiny_data.train)}}
    job["sparse_lr"] = {"algorithm": "ftrl", "passes": 10**6, "batch": 40}  # type: ignore[dict-item]
    shown: list[str] = []

    def interrupt(text: str) -> None:
        if not shown and "first" in text:
            kernel.interrupt_kernel()
        shown.append(text)

    on_pass = "lambda each: print('first' * (each['pass'] == 1))"
    cell = f"import mpips\nmpips.run({job}, servers=1, workers=1, on_pass={on_pass})"
    reply = execute(cell, interrupt)
    assert reply["status"] == "error" and reply["ename"] == "RunInterrupted", (reply, shown)
    assert reply["evalue"].startswith("stopped with a checkpoint")
    how = "set={'sparse_lr.passes': 1}, resume=mpips.Run(), show=True"
    cell = f"done = mpips.run({job}, {how})\nprint('now', done.status)"
    shown.clear()
    reply = execute(cell, shown.append)
    assert reply["status"] == "ok" and "now completed" in "".join(shown), (reply, shown)
    assert "resumed from" in "".join(shown)
