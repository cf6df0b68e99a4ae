"""Faults of Open MPI when MPI is initialized are avoided."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpips.process.mpi.open_mpi import await_world, leave_out_ofi


def selection(environ: dict[str, str], **options: object) -> str | None:
    leave_out_ofi(environ, **{"fabrics": [], "files": [], **options})  # type: ignore[arg-type]
    return environ.get("OMPI_MCA_btl")


def test_it_is_left_out_where_no_fabric_has_rdma(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folders = [str(tmp_path / "empty"), str(tmp_path / "missing")]
    assert selection({}, fabrics=folders) == "^ofi"
    assert selection({}) == "^ofi"


def test_a_machine_with_rdma_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "mlx5_0").mkdir()
    assert selection({}, fabrics=[str(tmp_path)]) is None


def test_the_selection_of_a_user_stands() -> None:
    assert selection({"OMPI_MCA_btl": "self,tcp"}) == "self,tcp"
    assert selection({"OMPI_MCA_mca_base_param_files": "/site/params.conf"}) is None


@pytest.mark.parametrize(
    ("line", "kept"),
    [("btl = ^uct", True), ("  btl=self,sm", True), ("btl_tcp_if_include = lo", False), ("# btl", False)],
)
def test_the_selection_of_a_site_stands(tmp_path: Path, line: str, kept: bool) -> None:
    file = tmp_path / "mca-params.conf"
    file.write_text(f"# ours\n{line}\n")
    assert selection({}, files=[tmp_path / "missing", file]) == (None if kept else "^ofi")


@pytest.mark.parametrize(
    ("environ", "waits"),
    [
        ({}, False),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, True),
        ({"SLURM_STEP_NUM_NODES": "1"}, False),
        ({"SLURM_STEP_NUM_NODES": "3"}, True),
    ],
)
def test_ranks_of_several_hosts_send_nothing_at_first(environ: dict[str, str], waits: bool) -> None:
    slept: list[float] = []
    await_world(environ, slept.append)
    assert bool(slept) == waits
