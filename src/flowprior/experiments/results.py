"""Results of experiments: one file each, `metrics/experiments/<name>.json`, compared by what made them, not by hashes.

A result holds all parameters and versions of the stages. It is old where these differ from what would be run today,
which an edit of code that leaves behaviour as it is does not change (see `flowprior.config.versions`).
"""

import ast
import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowprior.config.presets import resolve
from flowprior.config.schema import STAGES
from flowprior.config.versions import VERSIONS, without_neutral
from flowprior.core.io import ArtifactError, read_json, write_json
from flowprior.core.registry import plugin_digests, plugin_names
from flowprior.experiments.planned import Experiment

FOLDER = Path("metrics/experiments")
SCHEMA = 2
CURVES = ("alignment",)
"""Files of metrics/curves/ that results keep."""
SHEETS = ("samples", "reconstructions")
"""Files of metrics/sheets/ that results keep."""
IMAGES = "encode_latents.images_digest"
"""Which images a result is of."""
COSTS = Path("metrics/costs")
"""What stages write beside their metrics where they run; a stage that came from DVC's cache writes nothing."""


class Result(NamedTuple):
    """What an experiment gave, and what made it.

    Attributes:
        name: The experiment's name.
        preset: Its preset.
        seed: Its seed.
        settings: What it sets, `key=value`.
        params: All parameters, by stage.
        versions: Version of each stage's behaviour.
        plugins: Sha256 of the file of each plugin that the parameters name.
        commit: The git commit that it started from; empty where that is not known.
        machine: What it ran on (see `ops.machine`); empty where that is not known, or no stage ran.
        ran: Stages that ran there; the others came from DVC's cache, whatever machine filled it.
        resumed: Stages that went on from a checkpoint of other code: the commit that began each.
        metrics: Of every stage, by `stage.name`: functions of inputs, parameters and kind of machine.
        costs: Seconds, rates and memory of the stages that ran, by `stage.name`.
        curves: Tables over training, by name: columns by name.
        sheets: PNGs by name.
    """

    name: str
    preset: str
    seed: int
    settings: Sequence[str]
    params: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, int]
    plugins: Mapping[str, str]
    commit: str
    machine: Mapping[str, Any]
    ran: Sequence[str]
    resumed: Mapping[str, str]
    metrics: Mapping[str, Any]
    costs: Mapping[str, float]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    sheets: Mapping[str, bytes]


def outdated_stages(result: Result, experiment: Experiment) -> list[str]:
    """Stages whose outcome would be another today, in order.

    Those whose version, parameters or plugins differ, and all that follow one of them: every stage reads what the one
    before it wrote. A parameter that one side lacks counts as its neutral value.
    Other images make all of them old.
    """
    if experiment.images and result.metrics.get(IMAGES) != experiment.images:
        return list(STAGES)
    for number, stage in enumerate(STAGES):
        then, now = result.params.get(stage, {}), experiment.params[stage]
        if (
            result.versions.get(stage) != VERSIONS[stage]
            or without_neutral(then) != without_neutral(now)
            or any(result.plugins.get(p) != experiment.plugins[p] for p in plugin_names(now))
        ):
            return list(STAGES)[number:]
    return []


def read_workspace(root: Path, experiment: Experiment, commit: str) -> Result:
    """The result of an experiment from the files of the folder in which it ran, or of DVC's commit of it.

    Args:
        root: The folder.
        experiment: What should have run there.
        commit: What it started from.

    Raises:
        ArtifactError: A file is missing or damaged, or something else than the experiment was run there.
        ParamsError: The parameters there are not valid.
    """
    params = resolve(root).params
    tracked = {stage: params.tracked(stage) for stage in STAGES}
    costs = _read_costs(root)
    machines = [facts.pop("machine") for facts in costs.values()]
    began = {stage: facts.pop("began_at", None) for stage, facts in costs.items()}
    for facts in costs.values():
        facts.pop("commit", None)
    result = Result(
        name=experiment.name,
        preset=params.preset,
        seed=params.seed,
        settings=experiment.settings,
        params=tracked,
        versions=_read_versions(root),
        plugins=plugin_digests(tracked, root),
        commit=commit,
        machine=machines[-1] if machines else {},
        ran=list(costs),
        resumed={stage: commit_before for stage, commit_before in began.items() if commit_before},
        metrics=_by_stage({s: read_json(root / f"metrics/{s}.json") for s in STAGES}),
        costs=_by_stage(costs),
        curves={name: _read_curve(root / f"metrics/curves/{name}.csv") for name in CURVES},
        sheets={name: _read_bytes(root / f"metrics/sheets/{name}.png") for name in SHEETS},
    )
    if outdated := outdated_stages(result, experiment):
        raise ArtifactError(
            f"{experiment.name}: what ran there has other parameters, versions, plugins or images than was to run, "
            f"from {outdated[0]} on"
        )
    return result


def save(root: Path, result: Result) -> Path:
    """Write a result into the repository; returns its file."""
    path = root / FOLDER / f"{result.name}.json"
    sheets = {name: base64.b64encode(png).decode() for name, png in result.sheets.items()}
    write_json(path, {"schema": SCHEMA, **result._asdict(), "sheets": sheets})
    return path


def load(path: Path) -> Result:
    """Read a result.

    Raises:
        ArtifactError: The file is absent, damaged, of another schema, or under another name than its own.
    """
    kept = read_json(path)
    schema = kept.get("schema") if isinstance(kept, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(f"{path} is no result: expected schema {SCHEMA}, found {schema}")
    if missing := set(Result._fields) - set(kept):
        raise ArtifactError(
            f"{path} lacks {', '.join(sorted(missing))}; delete it, and it is made anew"
        )
    if kept["name"] != path.stem:
        raise ArtifactError(
            f"{path} holds the result of {kept['name']}; rename it to {kept['name']}.json"
        )
    fields = {name: kept[name] for name in Result._fields}
    try:
        sheets = {
            name: base64.b64decode(text, validate=True) for name, text in kept["sheets"].items()
        }
        return Result(**fields | {"sheets": sheets, "settings": tuple(kept["settings"])})
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}; delete it, and it is made anew") from None


def load_all(root: Path) -> dict[str, Result]:
    """All results of the repository, by name.

    Raises:
        ArtifactError: One cannot be read.
    """
    return {path.stem: load(path) for path in sorted((root / FOLDER).glob("*.json"))}


def _read_versions(root: Path) -> dict[str, int]:
    """Versions of the stages in the source code of a folder, which need not be the code that is running."""
    path = root / "src/flowprior/config/versions.py"
    for node in ast.parse(_read_bytes(path)).body:
        if (
            isinstance(node, ast.AnnAssign)
            and ast.unparse(node.target) == "VERSIONS"
            and node.value
        ):
            versions: dict[str, int] = ast.literal_eval(node.value)
            return versions
    raise ArtifactError(f"{path} has no VERSIONS")


def _read_costs(root: Path) -> dict[str, dict[str, Any]]:
    """What each stage that ran says of that (see `ops.machine.write_costs`), in order."""
    files = {stage: root / COSTS / f"{stage}.json" for stage in STAGES}
    return {stage: read_json(path) for stage, path in files.items() if path.is_file()}


def _by_stage(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{stage}.{name}": x for stage, inner in values.items() for name, x in inner.items()}


def _read_curve(path: Path) -> dict[str, list[float]]:
    rows = list(csv.DictReader(_read_bytes(path).decode().splitlines()))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else ())}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
