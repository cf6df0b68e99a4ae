"""Slurm's description of an allocation: lists, times, and environments for other jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.launch.slurm_env import (
    ask_end_time,
    end_time,
    facts,
    node_count,
    nodes,
    numbers,
    parts,
    without_slurm,
)

NODES = {
    "n1": ["n1"],
    "n[1-3]": ["n1", "n2", "n3"],
    "n[1-3,07],login": ["n1", "n2", "n3", "n07", "login"],
    "r[1-2]c[08-10]": ["r1c08", "r1c09", "r1c10", "r2c08", "r2c09", "r2c10"],
    "a-b.example,n[5]-ib": ["a-b.example", "n5-ib"],
}


@pytest.mark.parametrize("text", NODES)
def test_a_list_of_nodes_is_spelt_out(text: str) -> None:
    assert nodes(text) == NODES[text]


@pytest.mark.parametrize(
    "text", ["", "n[", "n[]", "n[1-]", "n[3-1]", "n]", "n[1-2", "n1,,n2", "a b", "n[1-9999999999]"]
)
def test_invalid_node_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a list|not a range"):
        nodes(text)


def test_a_list_of_more_nodes_than_there_are_is_refused_before_it_is_made() -> None:
    with pytest.raises(ValueError, match="more than"):
        nodes("n[0-999]x[0-999]y[0-999]z[0-999]")


@given(st.text("n[]0123456789,-", max_size=20))
def test_any_text_is_a_list_of_nodes_or_refused(text: str) -> None:
    try:
        found = nodes(text)
    except ValueError:
        return
    assert found and not any(set("[],") & set(name) for name in found)


def test_numbers_are_repeated_as_often_as_it_says() -> None:
    assert numbers("2(x3),1") == [2, 2, 2, 1]
    assert numbers("8") == [8]
    for wrong in ("", "x", "2(x)", "2(3)", "-1"):
        with pytest.raises(ValueError, match="not a list of numbers"):
            numbers(wrong)


TOLD = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NAME": "a job",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_TASKS_PER_NODE": "3(x2)",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_JOB_PARTITION": "batch",
    "SLURM_JOB_END_TIME": "1700000000",
    "SLURM_ARRAY_JOB_ID": "15",
    "SLURM_ARRAY_TASK_ID": "3",
}


def test_the_facts_of_an_allocation() -> None:
    assert facts({}) == {} == facts({"SLURM_NODELIST": "n1"})
    found = facts(TOLD, 1.7e9)["slurm"]
    assert found == {
        "job_id": "17",
        "job_name": "a job",
        "array_job_id": "15",
        "array_task_id": "3",
        "cluster": None,
        "partition": "batch",
        "submit_directory": None,
        "restart_count": 2,
        "nodes": ["n1", "n2"],
        "tasks_per_node": [3, 3],
        "step_id": None,
        "het_size": None,
        "end": "2023-11-14T22:13:20+00:00",
    }
    assert facts({"SLURM_JOB_ID": "1"})["slurm"]["restart_count"] == 0, "Slurm does not say so the first time"


def test_the_nodes_of_a_heterogeneous_job_are_those_of_all_components() -> None:
    lists = {"SLURM_JOB_NODELIST_HET_GROUP_0": "n[1-2]", "SLURM_JOB_NODELIST_HET_GROUP_1": "big1"}
    found = facts(TOLD | lists | {"SLURM_HET_SIZE": "2"})["slurm"]
    assert (found["nodes"], found["het_size"], found["tasks_per_node"]) == (["n1", "n2", "big1"], 2, [3, 3])


def test_an_unreadable_fact_is_none_and_the_others_are_kept() -> None:
    odd = facts(TOLD | {"SLURM_JOB_NODELIST": "n[", "SLURM_TASKS_PER_NODE": "?"})["slurm"]
    assert odd["nodes"] is odd["tasks_per_node"] is odd["end"] is None
    assert odd["job_id"] == "17"


MANY = 5000 * "9"


@pytest.mark.parametrize(
    "odd",
    [
        {"SLURM_HET_SIZE": "9" * 12},
        {"SLURM_HET_SIZE": MANY, "SLURM_RESTART_COUNT": MANY, "SLURM_JOB_NUM_NODES": MANY},
        {"SLURM_JOB_END_TIME": MANY, "SLURM_JOB_START_TIME": MANY},
        {"SLURM_JOB_END_TIME": 15 * "9"},
        {"SLURM_TASKS_PER_NODE": ",".join(1000 * ["2(x999999)"]), "SLURM_JOB_NODELIST": f"n[{MANY}]"},
    ],
)
def test_no_number_in_the_environment_is_too_large(odd: dict[str, str]) -> None:
    environ = {"SLURM_JOB_ID": "17", **odd}
    found = facts(environ, end_time(environ, NOW))["slurm"]
    assert found["end"] is found["nodes"] is found["tasks_per_node"] is None
    assert node_count(environ) == 1 and 1 <= parts(environ) <= 1024


NOW = 1_699_999_000.0


def test_the_end_is_asked_for_where_the_environment_does_not_say(tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    show = """#!/bin/sh
[ "$4" = 17 ] && printf "JobId=%%s JobName=x JobState=%%s EndTime=%%s A=b\\n" %s
"""
    end = "2023-11-14T23:13:20"

    def says(job: str, state: str, end: str) -> None:
        scontrol.write_text(show % f"18 RUNNING 2020-01-01T00:00:00 {job} {state} {end}")
        scontrol.chmod(0o755)

    silent = {name: value for name, value in TOLD.items() if name != "SLURM_JOB_END_TIME"}
    says("17", "RUNNING", end)
    asked = ask_end_time(silent, NOW, str(scontrol))
    assert asked is not None and abs(asked - 1_700_003_600) <= 14 * 3600, "local time, wherever this is"
    assert ask_end_time(TOLD, NOW, str(scontrol)) == end_time(TOLD, NOW) == 1_700_000_000
    assert ask_end_time({}, NOW, str(scontrol)) is None
    assert ask_end_time(silent | {"SLURM_JOB_ID": "18"}, NOW, str(scontrol)) is None
    assert ask_end_time(silent, NOW, str(tmp_path / "none")) is None
    says("17", "COMPLETED", end)
    assert ask_end_time(silent, NOW, str(scontrol)) is None, "this shell's allocation is over"
    says("17", "RUNNING", "Unknown")
    assert ask_end_time(silent, NOW, str(scontrol)) is None, "no limit"


def test_an_end_that_is_left_from_another_allocation_is_none() -> None:
    assert end_time(TOLD, 1_700_000_000) is None, "it is over"
    assert end_time(TOLD, 1_800_000_000) is None
    alone = {"SLURM_JOB_END_TIME": "1700000000"}
    assert end_time(alone, NOW) is None, "nothing else says that this is an allocation"
    assert end_time(TOLD | {"SLURM_JOB_START_TIME": "1699998000"}, NOW) == 1_700_000_000
    assert end_time(TOLD | {"SLURM_JOB_START_TIME": "1699999500"}, NOW) is None
    for odd in ("soon", "-1", "0", "", "\u0663"):
        assert end_time(TOLD | {"SLURM_JOB_END_TIME": odd}, NOW) is None


@pytest.mark.parametrize(
    ("reported", "count"),
    [
        ({}, 1),
        ({"SLURM_NNODES": "4"}, 1),
        ({"SLURM_JOB_ID": "1", "SLURM_NNODES": "4"}, 4),
        ({"SLURM_JOB_ID": "1", "SLURM_NNODES": "2-4"}, 1),
        ({"SLURM_JOB_ID": "1", "SLURM_NNODES": "2-4", "SLURM_JOB_NUM_NODES": "3"}, 3),
        ({"SLURM_JOB_ID": "1", "SLURM_NNODES": "2-4", "SLURM_JOB_NODELIST": "n[1-3]"}, 3),
        ({"SLURM_JOB_ID": "1", "SLURM_NNODES": "x", "SLURM_JOB_NODELIST": "n["}, 1),
    ],
)
def test_the_number_of_nodes_is_that_of_the_allocation(reported: dict[str, str], count: int) -> None:
    assert node_count(reported) == count


def test_a_job_is_submitted_without_variables_of_the_surrounding_job() -> None:
    around = {
        "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_RESTART_COUNT": "2",
        "PMIX_RANK": "3",
        "OMPI_COMM_WORLD_RANK": "3",
    }
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "a", "PATH": "/bin", "OMPI_MCA_btl": "tcp"}
    assert without_slurm(around | kept) == kept
