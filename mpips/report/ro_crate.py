"""A run as an RO-Crate: a folder or archive with machine-readable metadata on the run, its inputs and its results.

It follows RO-Crate 1.1 and the Process Run Crate profile 0.5 (https://w3id.org/ro/wfrun/process/0.5): the run is a
CreateAction, whose `instrument` is mpips at its commit, whose `object`s are the job file, the program and the inputs,
and whose `result`s are its outputs. Inputs, checkpoints and large outputs are referenced, not copied: by their SHA-256
(RFC 6920, ``ni:///sha-256;...``) where it is known.

Nothing outside of the run's folder is packed, whatever its files name: neither other paths nor the targets of links. A
user's own program is packed if the caller names it, and it is the one that ran.

A crate is made for publication. The person who ran it is named only by option, and user names and home folders are
removed from the run's own files as far as possible, unless they are to be kept.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mpips.errors import InputError, cannot_write
from mpips.files.fingerprint import fingerprint, stat_facts
from mpips.files.safe_open import inside
from mpips.process.printable import printable, printable_in
from mpips.provenance.input_hashes import altered_output
from mpips.provenance.run_json import state_line
from mpips.report import crate_files
from mpips.report.diff import RUN_SPECIFIC
from mpips.rundir.folder import RunFolder

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
TERMS = "https://w3id.org/ro/terms/workflow-run/context"
LIMIT = 100e6
"""Size in bytes above which an output is referenced and not copied."""
TYPES = {
    ".toml": "application/toml", ".json": "application/json", ".jsonl": "application/jsonl", ".txt": "text/plain",
    ".tsv": "text/tab-separated-values", ".h5": "application/x-hdf5", ".npz": "application/zip", ".png": "image/png",
    ".svg": "image/svg+xml",
    ".py": "text/x-python", ".html": "text/html", ".svm": "text/plain", ".gz": "application/gzip",
    ".xz": "application/x-xz", ".zst": "application/zstd", ".bz2": "application/x-bzip2", ".hdf5": "application/x-hdf5",
}  # fmt: skip
UNLICENSED = "None is stated: ask whoever made this crate what it may be used for."


class Agent(NamedTuple):
    """The person who ran it, as they want to be named."""

    name: str
    orcid: str = ""
    affiliation: str = ""


def export(
    run: Path,
    target: Path,
    *,
    agent: Agent | None = None,
    license: str = "",
    title: str = "",
    limit: float = LIMIT,
    personal: bool = False,
    program: Path | None = None,
) -> int:
    """Write a run's crate: an archive if `target` ends in .zip, else a folder. Return its number of files.

    Args:
        run: the run's folder; the run must have ended.
        target: the path of the crate; it must not exist.
        agent: the person who ran it.
        license: the licence of the crate, as a URL or SPDX name.
        title: the crate's name.
        limit: bytes above which an output is referenced and not copied.
        personal: keep user names and home folders.
        program: the file of a program that does not come with mpips; without it only its hash is given.

    Raises:
        InputError: no run, no result yet, the target exists, the program is not the one that ran, an output is not what
            the run has written, or the library is missing.
    """
    folder = RunFolder(run)
    facts, result = folder.read_run(), folder.read_result()
    if facts is None:
        raise InputError(f"{run}: is not a run's folder: it has no run.json")
    if result is None:
        raise InputError(f"{run}: the run has no result.json: it has not ended, or was killed")
    if os.path.lexists(target):
        raise InputError(f"{target}: exists; name another with -o")
    with _room_beside(target) as room:
        made, staged = Path(room) / "crate", Path(room) / "files"
        staged.mkdir()
        try:
            crate_files.stage(folder, facts, staged, personal)
            # JSON-LD is UTF-8, and read by people.
            shown, came = printable_in(facts), printable_in(result)
            words = printable(title), printable(license)
            who = agent and Agent(*map(printable, agent))
            crate = _Maker(folder, shown, came, staged, limit, *words, program).crate(who)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InputError(f"{folder.run}: is not what a run writes ({what})") from error
        if target.suffix == ".zip":
            made = made.with_suffix(".zip")
            crate.write_zip(made)
        else:
            crate.write(made)
        os.replace(made, target)
    return sum(1 for each in crate.data_entities if _is_local(each.id))


def _room_beside(target: Path) -> tempfile.TemporaryDirectory[str]:
    parent = target.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{target}: there is no folder {parent}")
    try:
        return tempfile.TemporaryDirectory(prefix=".crate-", dir=parent)
    except OSError as error:
        raise cannot_write(target, error) from None


def _is_local(name: str) -> bool:
    return ":" not in name and name not in ("./", crate_files.METADATA)


# --- the crate ----------------------------------------------------------------------------------------


def reference(file: Mapping[str, Any]) -> str:
    """Return the URI of a file by the hash of its contents, or of its other facts."""
    if sha := file.get("sha256"):
        digest = base64.urlsafe_b64encode(bytes.fromhex(sha)).decode().rstrip("=")
        return f"ni:///sha-256;{digest}"
    known = [file.get(key) for key in ("sample_sha256", "bytes", "modified", "path", "name")]
    return uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(known)).urn


class _Maker:
    """Builds a crate."""

    def __init__(
        self,
        folder: RunFolder,
        facts: dict[str, Any],
        result: dict[str, Any],
        staged: Path,
        limit: float,
        title: str,
        license: str,
        program: Path | None,
    ) -> None:
        self.folder, self.facts, self.result, self.staged, self.limit = folder, facts, result, staged, limit
        self.program = program
        self.crate_ = _empty()
        self._root(title, license)

    def crate(self, agent: Agent | None) -> Any:
        """Return the whole crate."""
        crate, facts = self.crate_, self.facts
        made = [*self._own(("metrics.jsonl", "result.json")), *self._outputs(), *self._checkpoints()]
        used = [*self._own(("job.toml",)), *self._program(), *self._inputs()]
        described = [*self._own(("run.json",))]
        completed = self.result.get("status") != "failed"
        action = self._add(
            f"#{facts.get('id', 'run')}",
            "CreateAction",
            name=f"{facts['program']['name']} on {len(facts['ranks'])} ranks"
            if "program" in facts
            else "run",
            description=f"{self.result.get('status')}: {facts.get('exit', {}).get('reason', '')}".rstrip(
                ": "
            ),
            startTime=facts.get("started"),
            endTime=facts.get("ended"),
            actionStatus=f"http://schema.org/{'Completed' if completed else 'Failed'}ActionStatus",
            error=None if completed else self.result.get("error"),
            instrument=self._software(),
            object=used,
            result=made,
            subjectOf=described,
            environment=[self._value("environment", k, v) for k, v in self._environment().items()],
            resourceUsage=self._resources(),
        )
        if agent is not None:
            action["agent"] = crate.root_dataset["author"] = self._agent(agent)
        crate.root_dataset["mentions"] = action
        return crate

    def _root(self, title: str, license: str) -> None:
        root, facts = self.crate_.root_dataset, self.facts
        what = facts.get("program", {}).get("name", "mpips")
        root["name"] = title or f"{printable(self.folder.path.name)}: a run of {what}"
        metrics = self.result.get("metrics") or {}
        said = ", ".join(
            f"{key} {value:.6g}" for key, value in metrics.items() if isinstance(value, int | float)
        )
        root["description"] = (
            f"A run of {what} by mpips, a parameter server on MPI, started {facts.get('started')}: "
            f"{self.result.get('status')}." + (f" {said}." if said else "")
        )
        root["datePublished"] = facts.get("ended") or facts.get("started")
        root["license"] = self._license(license) if license else UNLICENSED
        self._add(PROFILE, "CreativeWork", name="Process Run Crate", version="0.5")
        root["conformsTo"] = {"@id": PROFILE}

    def _license(self, name: str) -> Any:
        where = name if "://" in name else f"https://spdx.org/licenses/{name}"
        return self._add(where, "CreativeWork", name=name, description="what this crate may be used for")

    def _add(self, name: str, kind: str | list[str], /, **properties: Any) -> Any:
        from rocrate.model.contextentity import ContextEntity

        given = {
            key: value
            for key, value in properties.items()
            if value is not None and value != [] and value != ""
        }
        entity = ContextEntity(self.crate_, name, properties={"@type": kind})
        for key, value in given.items():
            entity[key] = value[0] if isinstance(value, list) and len(value) == 1 else value
        return self.crate_.add(entity)

    def _value(self, kind: str, name: str, value: object) -> Any:
        return self._add(
            f"#{kind}-{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}", "PropertyValue", name=name, value=value
        )

    def _own(self, names: Iterable[str]) -> list[Any]:
        """Add the run's existing own files."""
        about = {
            "job.toml": "the job, as resolved",
            "run.json": "provenance: sources, versions, ranks, inputs, outputs, exit",
            "result.json": "the result: status, metrics, traffic, recoveries",
            "metrics.jsonl": "a line per pass",
        }
        return [
            self._copy(self.staged / name, about[name]) for name in names if (self.staged / name).is_file()
        ]

    def _copy(self, path: Path, description: str = "", kind: str | list[str] = "File") -> Any:
        known = stat_facts(path) | fingerprint(path, float("inf"))
        properties = {
            "@type": kind,
            "name": path.name,
            "contentSize": str(known["bytes"]),
            "sha256": known["sha256"],
            "dateModified": known["modified"],
        }
        if description:
            properties["description"] = description
        if path.suffix in TYPES:
            properties["encodingFormat"] = TYPES[path.suffix]
        return self.crate_.add_file(str(path), path.name, properties=properties)

    def _reference(self, file: Mapping[str, Any], description: str, kind: str = "File") -> Any:
        """Add a file that is not in the crate, by its facts."""
        sample = file.get("sample_sha256")
        changed = "; it was changed while the run was under way" if file.get("changed") else ""
        properties: dict[str, Any] = {
            "@type": kind,
            "name": Path(str(file.get("path") or file.get("name"))).name,
            "description": description + changed + (f"; sample_sha256 {sample}" if sample else ""),
            "contentSize": str(file["bytes"]) if "bytes" in file else None,
            "sha256": file.get("sha256"),
            "dateModified": file.get("modified"),
        }
        suffix = Path(properties["name"]).suffix
        given = {key: value for key, value in properties.items() if value is not None}
        given |= {"encodingFormat": TYPES[suffix]} if suffix in TYPES else {}
        return self.crate_.add_file(reference(file), properties=given)

    def _outputs(self) -> list[Any]:
        outputs = self.facts.get("outputs", {})
        listed = [*outputs.get("own", []), *outputs.get("files", [])]
        added = []
        for file in listed:
            # Of the run's own files, the copies may lack personal data.
            own = file["name"] in crate_files.COPIED
            path = None
            if own and (altered := altered_output(self.folder.path, file)):
                raise InputError(altered)
            if own:
                continue
            with suppress(OSError):
                path = crate_files.take(inside(self.folder.path, file["name"]), self.staged, self.limit)
            if path is not None:
                if altered := altered_output(self.staged, file):
                    raise InputError(altered.replace(str(path), str(self.folder.path / path.name), 1))
                added.append(self._copy(path, "written by the run"))
            else:
                added.append(self._reference(file, "written by the run; not in this crate"))
        return added

    def _checkpoints(self) -> list[Any]:
        added = []
        for each in self.facts.get("outputs", {}).get("checkpoints", []):
            # It is not a hash of a file.
            name = uuid.uuid5(uuid.NAMESPACE_URL, each["manifest_sha256"]).urn
            text = f"a checkpoint; the sha256 in its manifest is {each['manifest_sha256']}; not in this crate"
            added.append(self._add(name, "CreativeWork", name=Path(each["folder"]).name, description=text))
        if sha := self.facts.get("outputs", {}).get("parameters_sha256"):
            added.append(self._value("result", "parameters_sha256", sha))
        return added

    def _inputs(self) -> list[Any]:
        return [
            self._reference(each, f"input: {each['role']}; not in this crate")
            for each in self.facts.get("inputs", [])
        ]

    def _program(self) -> list[Any]:
        """Add a program that does not come with mpips: the file if it was named, else its hash."""
        program = self.facts.get("program", {})
        if not str(program.get("name", "")).endswith(".py") or not program.get("sha256"):
            return []
        tree = self.facts.get("repository")
        text = "the program" + (f"; its tree: {state_line(tree)}" if tree else "")
        if self.program is None:
            known = {"path": str(program.get("file")), "sha256": program["sha256"]}
            return [self._reference(known, f"{text}; not in this crate")]
        path = crate_files.take(self.program, self.staged, LIMIT, follow=True)
        if path is None or fingerprint(path, float("inf")).get("sha256") != program["sha256"]:
            raise InputError(
                f"{self.program}: is not the program that ran, whose sha256 is {program['sha256']}"
            )
        return [self._copy(path, text, ["File", "SoftwareSourceCode"])]

    def _software(self) -> Any:
        """Add mpips, and the packages that it uses."""
        facts = self.facts
        state = facts.get("source") or {}
        versions = {**facts.get("packages", {})}
        version = versions.pop("mpips", "")
        needed = [self._package(f"pkg:pypi/{name}@{each}", name, each) for name, each in versions.items()]
        for name in ("python", "hdf5"):
            if facts.get(name):
                needed.append(self._package(f"pkg:generic/{name}@{facts[name]}", name, facts[name]))
        if facts.get("mpi"):
            found = re.search(r"\d+(\.\d+)+", facts["mpi"])
            number = found[0] if found else ""
            name = re.split(r"[\s:]*(?:v|[Vv]ersion)?:?\s*\d", facts["mpi"])[0]
            needed.append(self._package(f"pkg:generic/mpi@{number}", name, number, description=facts["mpi"]))
        commit = state.get("commit")
        return self._package(
            f"swh:1:rev:{commit}" if commit else uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(state)).urn,
            "mpips",
            f"{version} {commit or ''}".strip() or "unknown",
            description=state_line(state) if state else None,
            url=state.get("remote"),
            softwareRequirements=needed,
        )

    def _package(self, name: str, title: str, version: str, **more: Any) -> Any:
        return self._add(name, "SoftwareApplication", name=title, softwareVersion=version, **more)

    def _environment(self) -> dict[str, str]:
        """Return the variables that can affect numerical results: threads, and the modules."""
        kept = ("_NUM_THREADS", "NUMBA_", "PYTHONHASHSEED", "OMPI_MCA_", "UCX_", "FI_", "MPICH_")
        found = {
            key: value
            for key, value in self.facts.get("environment", {}).items()
            if any(each in key for each in kept) and "/" not in value and not RUN_SPECIFIC.match(key)
        }
        loaded = [each["name"] for each in self.facts.get("modules", [])]
        return found | ({"LOADEDMODULES": ":".join(loaded)} if loaded else {})

    def _resources(self) -> list[Any]:
        ranks = self.facts.get("ranks", [])
        roles = [rank["role"] for rank in ranks]
        added = [self._value("ranks", role, roles.count(role)) for role in dict.fromkeys(roles)]
        hosts = [rank["host"] for rank in ranks]
        added += [self._value("host", host, f"{hosts.count(host)} ranks") for host in dict.fromkeys(hosts)]
        if self.facts.get("cpu"):
            added.append(self._value("machine", "cpu", self.facts["cpu"]))
        seconds = self.result.get("seconds") or {}
        return added + [self._value("seconds", key, value) for key, value in seconds.items()]

    def _agent(self, agent: Agent) -> Any:
        name = f"https://orcid.org/{agent.orcid}" if agent.orcid else "#agent"
        where = None
        if agent.affiliation:
            where = self._add("#affiliation", "Organization", name=agent.affiliation)
        return self._add(name, "Person", name=agent.name, affiliation=where)


def _empty() -> Any:
    try:
        from rocrate.rocrate import ROCrate
    except ImportError as error:
        raise InputError(f"crates need rocrate ({error}): pip install 'mpips[crate]'") from None
    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(TERMS)
    return crate
