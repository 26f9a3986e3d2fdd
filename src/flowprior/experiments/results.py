"""Results of experiments: one small JSON each under `metrics/experiments/`, taken from DVC's commit of the experiment.

A result says by what parameters, code and machine it was made. It is found by its key, the hash of
the parameters; one that other code made than a commit's is told by `older_stages`.
"""

import base64
import csv
import io
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from flowprior.config import params
from flowprior.core.io import ArtifactError, digest, read_json, write_json
from flowprior.experiments.listing import Experiment, resolve

FOLDER = Path("metrics/experiments")
SCHEMA = 1
CURVES = ("alignment",)
SHEETS = ("samples", "reconstructions")


class Result(NamedTuple):
    """What an experiment gave.

    Attributes:
        key: Hash of its parameters.
        name: As DVC calls it.
        seed: Its seed.
        preset: Of its sizes.
        settings: What it sets.
        code: Hash of the code of every stage.
        machine: What it ran on; empty where that is not known, or nothing ran.
        ran: Stages that ran there; the others came from the cache, whatever machine filled it.
        metrics: Of every stage, by `stage.name`.
        curves: Tables over training, by name: columns by name.
        sheets: PNGs by name.
    """

    key: str
    name: str
    seed: int
    preset: str
    settings: tuple[str, ...]
    code: Mapping[str, str]
    machine: Mapping[str, Any]
    ran: Sequence[str]
    metrics: Mapping[str, Any]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    sheets: Mapping[str, bytes]


def git(root: Path, *command: str) -> bytes:
    """What git prints.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"git {command[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def code_of(root: Path, revision: str) -> dict[str, str]:
    """Hash of the code of every stage at a commit: of the files that dvc.yaml names there, but for data."""
    stages = yaml.safe_load(git(root, "show", f"{revision}:dvc.yaml"))["stages"]
    listing = git(root, "ls-tree", "-r", "-z", revision, "src", "stages").decode()
    blobs = {}
    for line in filter(None, listing.split("\0")):
        facts, path = line.split("\t", 1)
        blobs[path] = facts.split()[2]
    found = {}
    for stage in params.SCIENCE:
        facts = stages[stage]
        deps = tuple(dep for dep in facts["deps"] if not dep.startswith("data/"))
        mine = {
            p: blob
            for p, blob in blobs.items()
            if p in deps or p.startswith(tuple(f"{d}/" for d in deps))
        }
        found[stage] = digest([facts["cmd"], mine])[:12]
    return found


def dvc_experiments(root: Path) -> dict[str, str]:
    """Commit of every DVC experiment of this repository, by name; the newest of a name."""
    order = "--sort=creatordate"
    lines = git(
        root, "for-each-ref", order, "--format=%(objectname) %(refname)", "refs/exps"
    ).decode()
    found = {}
    for line in lines.splitlines():
        revision, ref = line.split(" ", 1)
        parts = re.fullmatch(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(.+)", ref)
        if parts:
            found[parts[1]] = revision
    return found


def taken_from(
    root: Path,
    revision: str,
    one: Experiment,
    machine: Mapping[str, Any] | None = None,
    ran: Sequence[str] = (),
) -> Result:
    """The result of an experiment from DVC's commit of it, and where it ran, if that is known and any stage did.

    Raises:
        ArtifactError: The commit lacks a metrics file or picture, or other parameters made it.
    """

    def blob(path: str) -> bytes:
        try:
            return git(root, "show", f"{revision}:{path}")
        except RuntimeError as error:
            raise ArtifactError(f"experiment {one.name}: {error}") from None

    made_with = resolved_at(root, revision)
    if digest(made_with)[:12] != one.key:
        raise ArtifactError(f"experiment {one.name} of DVC was made with other parameters")
    metrics = {
        f"{stage}.{name}": value
        for stage in one.resolved
        for name, value in json.loads(blob(f"metrics/{stage}.json")).items()
    }
    curves = {}
    for name in CURVES:
        rows = list(csv.DictReader(io.StringIO(blob(f"metrics/curves/{name}.csv").decode())))
        curves[name] = {k: [float(row[k]) for row in rows] for k in (rows[0] if rows else ())}
    return Result(
        key=one.key,
        name=one.name,
        seed=made_with["train_ae"]["seed"],
        preset=one.settings[0].partition("=")[2],
        settings=one.settings,
        code=code_of(root, revision),
        machine=dict(machine or {}) if ran else {},
        ran=list(ran),
        metrics=metrics,
        curves=curves,
        sheets={name: blob(f"metrics/sheets/{name}.png") for name in SHEETS},
    )


def resolved_at(root: Path, revision: str) -> dict[str, Any]:
    """What the stages' results depend on at a commit."""
    where = f"{revision}:params.yaml"
    return resolve((), params.read_text(git(root, "show", where).decode(), where))


def save(root: Path, result: Result) -> Path:
    """Write a result into the repository; where it is."""
    path = root / FOLDER / f"{result.key}.json"
    sheets = {name: base64.b64encode(png).decode() for name, png in result.sheets.items()}
    write_json(path, {"schema": SCHEMA, **result._asdict(), "sheets": sheets})
    return path


def load(path: Path) -> Result:
    """Read a result.

    Raises:
        ArtifactError: The file is absent, damaged, of another version or under another name than its key.
    """
    kept = read_json(path)
    if not isinstance(kept, dict) or kept.get("schema") != SCHEMA:
        raise ArtifactError(f"{path} is no result of schema {SCHEMA}")
    if missing := set(Result._fields) - set(kept):
        raise ArtifactError(f"{path} lacks {', '.join(sorted(missing))}")
    if kept["key"] != path.stem:
        raise ArtifactError(f"{path} holds the result of {kept['key']}")
    fields = {name: kept[name] for name in Result._fields}
    try:
        fields["sheets"] = {
            k: base64.b64decode(v, validate=True) for k, v in kept["sheets"].items()
        }
        return Result(**fields | {"settings": tuple(kept["settings"])})
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from None


def load_all(root: Path) -> dict[str, Result]:
    """All results of the repository, by key.

    Raises:
        ArtifactError: One cannot be read.
    """
    return {path.stem: load(path) for path in sorted((root / FOLDER).glob("*.json"))}


def older_stages(result: Result, code: Mapping[str, str]) -> list[str]:
    """Stages that other code than the given made."""
    return [stage for stage, now in code.items() if result.code.get(stage) != now]
