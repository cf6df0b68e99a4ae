"""Figures 9 and 10: three systems on the same data and machines: objective against time, and waiting.

The paper's systems A (L-BFGS) and B (block proximal gradient) were never published. Here they consist of the same
parts as the parameter server: A is `lbfgs`; B is darlin without delay, filters and key cache; the parameter server is
darlin with all of them. All have the same stragglers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mpips.bench import _runs
from mpips.bench._paper.experiment import (
    CHANCE,
    SLOW,
    SLOWER,
    WORKERS,
    Claim,
    Picture,
    Section,
    Setup,
    agreement,
    machines,
    table,
)
from mpips.config.job_file import Job, load
from mpips.data import resolve
from mpips.errors import InputError
from mpips.report.charts import Bar, BarPart, Series, bars, lines
from mpips.rundir.progress import bytes_si, seconds, share

ITEM = "Figures 9 and 10"
SYSTEMS = {"A": "A: L-BFGS", "B": "B: block proximal gradient", "PS": "parameter server"}
WITHIN = 1e-3
"""The relative distance of the target objective from the optimum."""
TAU = 1
MOST = 150
"""Maximum number of iterations of L-BFGS."""


def measure(setup: Setup) -> dict[str, Any]:
    """Run the three systems, alternating, to the same objective."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    data = (
        [f"data.train={json.dumps([*setup.train])}", "data.test=[]", "data.crosses=[]"] if setup.train else []
    )
    job, target = load(_runs.job_file(), data), (1.0 + WITHIN) * setup.optimum
    lbfgs = setup.folder / "lbfgs.toml"
    lbfgs.write_text('[job]\nprogram = "mpips.bench._paper.lbfgs"\n')
    for number in range(setup.repeat):
        for name in [*SYSTEMS][:: 1 if number % 2 == 0 else -1]:
            if name == "A" and number > 0:
                # Once: it takes minutes.
                continue
            _runs.note(f"{SYSTEMS[name]}: round {number + 1} of {setup.repeat}")
            file = lbfgs if name == "A" else _runs.job_file()
            own = [*settings(name, job, target), *(data if name != "A" else [])]
            runs[name].append(
                measured(_runs.run(file, setup.folder / f"{name}-{number}", own, setup.launcher), target)
            )
    return {"optimum": setup.optimum, "examples": setup.examples, "runs": runs}


def settings(name: str, job: Job, target: float) -> list[str]:
    """Return the settings of a system."""
    common = ["layout.servers=1", f"layout.workers={WORKERS}", machines(WORKERS)]
    if name == "A":
        spec = resolve(job.data, str(job.base))
        data = [f"data.train={json.dumps(spec.train)}", f"data.crosses={json.dumps(spec.crosses)}"]
        return [
            *common,
            *data,
            f"lbfgs.l1={job.settings.l1!r}",
            f"lbfgs.target={target!r}",
            f"lbfgs.iterations={MOST}",
        ]
    common += [f"sparse_lr.target={target!r}", f"sparse_lr.epsilon={WITHIN / 5!r}"]
    if name == "B":
        return [*common, "consistency.tau=0", "sparse_lr.kkt=false", "ring.key_cache=0"]
    return [*common, f"consistency.tau={TAU}"]


def measured(run: _runs.FinishedRun, target: float) -> dict[str, Any]:
    """Return the objective of a run over time, and its workers' time breakdown."""
    last = run.passes[-1]
    return {
        "seconds": last["seconds"] if last["objective"] <= target else None,
        "passes": last["pass"],
        "course": [[line["seconds"], line["objective"]] for line in run.passes],
        "waiting": _runs.waiting(run),
        "sent": run.sent,
    }


def compare(found: Mapping[str, Any]) -> Section:
    """Compare the measurements with the paper's figures."""
    middle = {name: median_run(runs) for name, runs in found["runs"].items()}
    times = {name: run["seconds"] or math.inf for name, run in middle.items()}
    waits = {name: run["waiting"] for name, run in middle.items()}
    if math.inf in (times["B"], times["PS"]):
        raise InputError("not every system reached the target: check the optimum")
    gain = times["B"] / times["PS"]
    claims = [
        Claim("Fig. 9: time of system B / parameter server", "about 2", f"{gain:.2f}",
              agreement(gain, (1.6, 3.0), (1.2, 100.0))),
        Claim("Fig. 9: A is slower than B", "yes", *2 * ["yes" if times["A"] > times["B"] else "no"]),
        Claim("Fig. 10: system A waits", "32 %", share(waits["A"]), agreement(waits["A"], (0.2, 0.45))),
        Claim("Fig. 10: system B waits", "53 %", share(waits["B"]), agreement(waits["B"], (0.4, 0.65))),
        Claim("Fig. 10: the parameter server waits", "< 2 %", share(waits["PS"]), agreement(waits["PS"], (0.0, 0.04))),
    ]  # fmt: skip
    pictures = {
        "fig9": Picture(
            lines(
                [
                    Series(SYSTEMS[name], [(at, value / found["optimum"] - 1.0) for at, value in run["course"]], colour)
                    for colour, (name, run) in enumerate(middle.items())
                ],
                label="objective against time",
                x="seconds",
                y="F / F* - 1",
                log=True,
                show_y="{:.0e}".format,
            ),
            "How far the objective is above the optimum, against time.",
            [(f"k{colour}", SYSTEMS[name]) for colour, name in enumerate(middle)],
        ),
        "fig10": Picture(
            bars(
                [
                    Bar(SYSTEMS[name].partition(":")[0],
                        [BarPart(times[name] * (1.0 - waits[name]), "busy"),
                         BarPart(times[name] * waits[name], "waiting")],
                        f"{seconds(times[name])}, {share(waits[name])} waiting")
                    for name in middle
                    if times[name] < math.inf
                ],
                label="busy and waiting time by system",
                show=seconds,
            ),
            "The workers' mean time to that objective, busy and waiting.",
            (("busy", "busy"), ("waiting", "waiting")),
        ),
    }  # fmt: skip
    cells = [
        (SYSTEMS[name], seconds(times[name]), f"{run['passes']}", share(waits[name]), bytes_si(run["sent"]))
        for name, run in middle.items()
    ]
    facts = {
        "examples": found["examples"], "within": f"{1 + WITHIN:g}", "workers": WORKERS, "slower": f"{SLOWER:g}",
        "slow": f"{SLOW:g}", "chance": share(CHANCE), "rounds": len(found["runs"]["PS"]), "tau": TAU,
        "gain": f"{gain:.1f}", "waiting": share(waits["PS"]),
        "fewer": f"{middle['B']['sent'] / middle['PS']['sent']:.1f}",
        "passes": middle["PS"]["passes"],
    }  # fmt: skip
    head = ("system", "to the objective", "passes", "waiting", "sent")
    return Section(claims, table(head, cells), facts, pictures)


def median_run(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the run of median time; those that did not reach the objective sort last."""
    return sorted(runs, key=lambda run: run["seconds"] or math.inf)[len(runs) // 2]
