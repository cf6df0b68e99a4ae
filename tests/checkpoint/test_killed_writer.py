"""A process that writes checkpoints is killed at random times: a complete checkpoint always exists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = 20

# Forks the processes that it kills, since to start one anew takes longer than to write a checkpoint.
NURSERY = """
import json, os, random, signal, sys, time
from pathlib import Path
from files.test_error_latching_file import part
from mpips.checkpoint.checkpoint import begin, commit, prune
from mpips.checkpoint.inspection import verify
from mpips.checkpoint.manifest import complete, folders, latest, order_of
from mpips.checkpoint.writing import write_shard
from mpips.checkpoint.background_writer import BackgroundWriter

directory, kills = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(1)

def train(acknowledged):
    found = latest(directory)
    step = order_of(found)[0] if found else 0   # the same step again, as after a resume
    with BackgroundWriter() as background:
        while True:
            folder = begin(directory, step)
            started = background.start(write_shard, folder, 0, {"w": part(2_000 + step)})
            files = [write_shard(folder, 1, {"v": part(100)}), started.result()]
            commit(folder, files, {"step": step})
            os.write(acknowledged, b"%d %d\\n" % order_of(folder))
            prune(directory, 2)
            step += 1

count, last, faults, torn, longest = 0, (-1, 0), [], 0, 0.08
for kill in range(10 * kills):
    # A machine that is busy needs more of them until one is written, and one is torn.
    if kill >= kills and count and torn:
        break
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    time.sleep(rng.random() * longest)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(ours) as pipe:
        said = [tuple(map(int, line.split())) for line in pipe]
    if os.WTERMSIG(status) != signal.SIGKILL:
        faults.append(f"kill {kill}: the writer ended by itself")
    last = max([last, *said])
    count += len(said)
    if not said:
        longest *= 1.1   # a machine that is busy takes longer to write one
    sound = complete(directory)
    torn += len(folders(directory)) - len(sound)
    newest = latest(directory)
    if count and (newest is None or order_of(newest) < last):
        faults.append(f"kill {kill}: {last} was acknowledged, the latest is {newest}")
    if len(sound) < min(count, 2):
        faults.append(f"kill {kill}: only {sound} are left")
    faults += [f"kill {kill}: {problem}" for path in sound for problem in verify(path)]
print(json.dumps({"written": count, "torn": torn, "faults": faults}))
"""


def test_a_writer_that_is_killed_at_any_instant_leaves_a_last_good_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NURSERY, str(tmp_path), str(KILLS)],
        cwd=Path(__file__).parents[1],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(["..", os.environ.get("PYTHONPATH", "")]),
            "OPENBLAS_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["faults"] == []
    assert result["written"] > 0 and result["torn"] > 0
