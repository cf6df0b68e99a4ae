"""`mpips render`: write the batch script of a job for Slurm."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mpips.process.argument_parser import add_command, add_layout, add_survive
from mpips.provenance import output_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpips.cluster.layout import LayoutSpec
    from mpips.launch.sbatch import Batch
    from mpips.launch.slurm_parts import Component
    from mpips.launch.slurm_site import Site

SCRIPT = rb"#!.*\n# .*: written by mpips .* render\n"
"""The beginning of a batch script."""
MOST = 1 << 20
"""The largest number of ranks, cores, restarts or tasks in an option."""

DESCRIPTION = """\
Write the batch script of a job for Slurm. `mpips submit` has the same options, and submits the script.

  mpips render JOB.toml --nodes 2 --time 02:00:00
  mpips render JOB.toml --nodes 4 --servers 4 --workers 27 --ntasks-per-node 8 --launcher srun -o job.sbatch
  mpips render JOB.toml --nodes 2 --time 02:00:00 --requeue --set checkpoint.every_seconds=300
                                stops with a checkpoint before the time limit, is requeued, and continues from it;
                                also after the loss of a node or rank
  mpips render JOB.toml --nodes 2-4 --ntasks-per-node 8 --requeue
                                on as many nodes as Slurm gives; all remaining ranks are workers
  mpips render JOB.toml --nodes 1 --seeds 1,2,3,4
  mpips render JOB.toml --nodes 1 --sweep sparse_lr.l1=0.1,1,10 --sweep layout.hand_over=true,false
                                a job array: one task for each seed, or for each combination
  mpips render JOB.toml --nodes 8 --server-nodes 2 --server-sbatch=--constraint=bigmem
                                scheduler and servers on 2 nodes, workers on 8 nodes of another kind (srun)
  mpips render JOB.toml --nodes 4 --spares 2 --replicas 1 --launcher srun
                                continues when ranks or nodes die (Open MPI 5); spares replace ranks
  mpips render JOB.toml --nodes 2 --reproduce
                                records the run, repeats it from its record, and compares the two
"""

EPILOG = """\
Settings that are the same for all jobs (partition, account, modules, launcher ...) are in a site file: --site FILE,
$MPIPS_SITE or ~/.config/mpips/site.toml; `mpips render --site-keys` lists its keys.
The job runs in the current folder, which all nodes must see; the run folder is runs/NAME-JOBID in it."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "render", "write a batch script for Slurm", DESCRIPTION, command, EPILOG, prints_data=True
    )
    add_options(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write; default: standard output")
    output_file.add_force(parser)
    parser.add_argument("--site-keys", action=SiteKeys, nargs=0, help="list the keys of a site file and exit")


class SiteKeys(argparse.Action):
    """The option that lists the keys of a site file."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        """Print the keys and exit."""
        from mpips.launch.slurm_site import Site
        from mpips.typed import documented

        for key in documented(Site):
            print(f"{key.name} ({key.type}; default: {key.default})\n    {key.doc}")
        parser.exit()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of render and submit."""
    parser.add_argument("job", metavar="JOB.toml", help="the job file")
    places = parser.add_argument_group("nodes and time")
    places.add_argument("--nodes", required=True, metavar="N|MIN-MAX", help="the number of nodes")
    places.add_argument("--ntasks-per-node", type=int, metavar="K", help="ranks on a node, at most")
    places.add_argument("--cpus-per-task", type=int, default=1, metavar="C", help="cores of each rank (1)")
    places.add_argument("--time", default="", metavar="TIME", help="time limit, as 02:00:00 or 1-12:00:00")
    places.add_argument("--partition", metavar="P", help="instead of the site's")
    places.add_argument("--account", metavar="A", help="instead of the site's")
    places.add_argument("--qos", metavar="Q", help="instead of the site's")
    places.add_argument("--sbatch", action="append", default=[], metavar="--NAME=VALUE",
                        help="another option of sbatch, as in --sbatch=--mem=0; repeatable")  # fmt: skip
    places.add_argument("--launcher", choices=("mpirun", "srun"), help="instead of the site's")
    places.add_argument("--site", metavar="FILE", help="the site file")
    layout = parser.add_argument_group("ranks and keys of the job, as for mpips run")
    add_layout(layout)
    layout.add_argument("--run-dir", metavar="DIR", help="the run's folder instead of runs/NAME-JOBID")
    layout.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="the checkpoint that the first start continues from",
    )
    restart = parser.add_argument_group("time limits and failures")
    restart.add_argument(
        "--requeue",
        action="store_true",
        help="requeue the job after the time limit or a failure, and continue",
    )
    restart.add_argument(
        "--restarts", type=int, default=50, metavar="N", help="maximum number of restarts (50)"
    )
    add_survive(restart)
    restart.add_argument("--grace", type=int, metavar="SECONDS",
                         help="stop this long before the time limit (120, or a quarter of it)")  # fmt: skip
    many = parser.add_argument_group("many runs: a job array")
    many.add_argument("--seeds", metavar="A,B,C", help="one task for each seed (job.seed)")
    many.add_argument("--sweep", action="append", default=[], metavar="TABLE.KEY=A,B,C",
                      help="one task for each value; repeatable: one for each combination")  # fmt: skip
    many.add_argument("--sweep-file", metavar="FILE", help="one task for each line of TABLE.KEY=VALUE words")
    many.add_argument(
        "--at-once", type=int, default=0, metavar="N", help="maximum number of concurrent tasks"
    )
    mixed = parser.add_argument_group("servers on nodes of another kind: a heterogeneous job, by srun")
    mixed.add_argument("--server-nodes", type=int, metavar="N", help="nodes for scheduler and servers")
    mixed.add_argument("--server-sbatch", action="append", default=[], metavar="--NAME=VALUE",
                       help="an option of sbatch for those nodes; repeatable")  # fmt: skip
    mixed.add_argument("--worker-sbatch", action="append", default=[], metavar="--NAME=VALUE",
                       help="an option of sbatch for the others; repeatable")  # fmt: skip
    parser.add_argument("--reproduce", action="store_true", help="record the run, repeat it, and compare")


def command(arguments: argparse.Namespace) -> int:
    """Write the script."""
    from mpips.files.safe_open import replacing
    from mpips.launch.sbatch import script

    text = script(collect(arguments))
    if not arguments.output:
        print(text, end="")
        return 0
    read = [arguments.job, *filter(None, (arguments.site, arguments.sweep_file))]
    output_file.check(arguments.output, read, force=arguments.force, own=SCRIPT)
    with output_file.naming_errors(arguments.output), replacing(arguments.output, "w") as file:
        file.write(text)
    return 0


def collect(arguments: argparse.Namespace) -> Batch:
    """Collect the description of a job from the command line, the job file and the site file.

    Raises:
        InputError: one of them is wrong; the text is one line.
    """
    import sys
    from pathlib import Path

    from mpips import __version__
    from mpips.cli.launching.run import overrides
    from mpips.config import job_file
    from mpips.config.program import comes_with_mpips
    from mpips.errors import InputError
    from mpips.launch.sbatch import Batch, grace_before

    settings = overrides(arguments)
    job = job_file.load(arguments.job, settings)
    site = site_of(arguments)
    launcher = arguments.launcher or ("srun" if arguments.server_nodes else site.launcher)
    parts, fixed = places(arguments, job.layout, site)
    check_launcher(launcher, arguments, parts)
    try:
        grace = grace_before(arguments.time, arguments.grace)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not 0 <= arguments.restarts <= MOST:
        raise InputError(f"--restarts {arguments.restarts}: must be from 0 to {MOST:,}")
    kept = job.checkpoint.directory
    own = str(job.resolve(job.program)) if job.program.endswith(".py") else job.program
    own = "" if comes_with_mpips(job.program) else own
    return Batch(
        name=job.name,
        job=str(Path(arguments.job).absolute()),
        directory=str(Path.cwd()),
        python=site.python or sys.executable,
        parts=parts,
        site=site,
        arguments=(
            *(part for setting in settings for part in ("--set", setting)),
            *([] if arguments.survive == "auto" else ["--survive", arguments.survive]),
        ),
        time=arguments.time,
        grace=grace,
        requeue=arguments.requeue,
        restarts=arguments.restarts,
        launcher=launcher,
        outlives_nodes=outlives_nodes(arguments.survive, parts),
        sweep=tasks(arguments, settings, job.layout, elastic=fixed > 0),
        at_once=arguments.at_once,
        fixed=fixed,
        run_dir=str(Path(arguments.run_dir).absolute()) if arguments.run_dir else "",
        checkpoints=str(job.resolve(kept).absolute()) if kept else "",
        resume=checkpoint(arguments.resume),
        exports=python_path(),
        reproduce=arguments.reproduce,
        program=own if arguments.reproduce else "",
        note=f"{job.name}: written by mpips {__version__} render",
    )


def site_of(arguments: argparse.Namespace) -> Site:
    """Read the site file, and override its values by those of the command line."""
    import os
    from dataclasses import replace

    from mpips.errors import InputError
    from mpips.launch import slurm_site as sites

    found = sites.load(sites.find(arguments.site, os.environ))
    given = {name: getattr(arguments, name) for name in ("partition", "account", "qos")}
    try:
        return replace(found, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise InputError(f"--{error}") from None


def python_path() -> tuple[tuple[str, str], ...]:
    """Return PYTHONPATH with absolute folders, since the job may be submitted from another shell."""
    import os

    paths = [os.path.abspath(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    return (("PYTHONPATH", os.pathsep.join(dict.fromkeys(paths))),) if paths else ()


def checkpoint(named: str | None) -> str:
    """Return the absolute path of the checkpoint to continue from; empty if there is none."""
    from pathlib import Path

    from mpips.checkpoint.manifest import read_manifest
    from mpips.errors import InputError

    if not named:
        return ""
    if named == "latest":
        raise InputError(
            "--resume latest: a new job has no checkpoint yet; name one: --resume checkpoints/step-000120"
        )
    read_manifest(Path(named))
    return str(Path(named).absolute())


def places(
    arguments: argparse.Namespace, layout: LayoutSpec, site: Site
) -> tuple[tuple[Component, ...], int]:
    """Decide which ranks run on which nodes; return the job's components, and the number of ranks that are not workers.

    Raises:
        InputError: the ranks do not fit the nodes.
    """
    from mpips.errors import InputError
    from mpips.launch import slurm_parts

    least, most = slurm_parts.nodes_of(arguments.nodes)
    for option in ("cpus_per_task", "ntasks_per_node"):
        if not 1 <= (1 if (given := getattr(arguments, option)) is None else given) <= MOST:
            raise InputError(f"--{option.replace('_', '-')} {given}: must be from 1 to {MOST:,}")
    each = (arguments.ntasks_per_node or site.ntasks_per_node, arguments.cpus_per_task)
    common = tuple(arguments.sbatch)
    if arguments.server_nodes is None:
        if arguments.server_sbatch or arguments.worker_sbatch:
            raise InputError("--server-sbatch and --worker-sbatch need --server-nodes")
        if most == least:
            return (slurm_parts.uniform(layout, least, *each, common),), 0
        if arguments.workers is not None:
            raise InputError(
                f"--nodes {arguments.nodes}: all remaining ranks are workers: leave out --workers"
            )
        part, fixed = slurm_parts.elastic(layout, least, most, *each, common)
        return (part,), fixed
    if most > least:
        raise InputError(f"--nodes {arguments.nodes}: a heterogeneous job needs one number of nodes")
    special = (*common, *arguments.server_sbatch), (*common, *arguments.worker_sbatch)
    return slurm_parts.split(layout, arguments.server_nodes, least, *each, *special), 0


def outlives_nodes(survive: str, parts: Sequence[Component]) -> bool:
    """Return whether `mpips run` will try to continue without a lost node, if the MPI supports that."""
    several = sum(max(part.nodes, part.most) for part in parts) > 1
    return survive == "nodes" or (survive == "auto" and several)


def check_launcher(launcher: str, arguments: argparse.Namespace, parts: Sequence[Component]) -> None:
    """Raise InputError if the launcher does not support what the command line requests."""
    from mpips.errors import InputError

    if arguments.server_nodes is not None and launcher != "srun":
        raise InputError(
            "--server-nodes: mpirun sees only the first component of a heterogeneous job: use --launcher srun"
        )
    survives = outlives_nodes(arguments.survive, parts) or arguments.survive == "ranks"
    if arguments.spares and launcher == "srun" and not survives:
        raise InputError(
            "--spares replace ranks that die, but srun ends all ranks when one dies: use --launcher mpirun, or "
            "--survive nodes"
        )


def tasks(
    arguments: argparse.Namespace, settings: list[str], layout: LayoutSpec, *, elastic: bool
) -> tuple[tuple[str, ...], ...]:
    """Return the settings of each task of a job array; empty if there is no array.

    Raises:
        InputError: settings that cannot be read, or that do not make a valid job of the same size.
    """
    from mpips.config import job_file
    from mpips.errors import InputError
    from mpips.launch.job_array import from_file, product

    sweeps = [*([f"job.seed={arguments.seeds}"] if arguments.seeds else []), *arguments.sweep]
    if arguments.sweep_file is not None and sweeps:
        raise InputError("--sweep-file excludes --seeds and --sweep")
    found = product(sweeps) if arguments.sweep_file is None else from_file(arguments.sweep_file)
    if found and arguments.server_nodes is not None:
        raise InputError("--server-nodes: Slurm has no arrays of heterogeneous jobs")
    if not 0 <= arguments.at_once <= MOST or (arguments.at_once and not found):
        raise InputError(f"--at-once N: needs --seeds or --sweep, and N from 1 to {MOST:,}")
    for task in found:
        job = job_file.load(arguments.job, [*settings, *task])
        if job.layout.size() != layout.size():
            raise InputError(
                f"{' '.join(task)}: this task has {job.layout.size()} ranks, the job file {layout.size()}"
            )
        if elastic and job.layout != layout:
            raise InputError(
                f"{' '.join(task)}: with --nodes {arguments.nodes} all remaining ranks are workers, so tasks must "
                "have the job file's layout"
            )
        if bad := [
            each for each in task if each.split("=")[0].strip() in ("job.name", "checkpoint.directory")
        ]:
            raise InputError(f"{bad[0]}: each task already has its own name and checkpoint folder")
    return found
