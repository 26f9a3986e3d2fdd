"""Planned experiments: rows of `tables.yaml` with a seed, each with what it sets and all parameters that result."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from flowprior.config.messages import ParamsError
from flowprior.config.presets import resolve
from flowprior.config.schema import STAGES, Params
from flowprior.config.yaml12 import read_yaml
from flowprior.core.registry import plugin_digests
from flowprior.experiments.tables_file import TablesFile


class Experiment(NamedTuple):
    """One run of the pipeline.

    Attributes:
        name: What DVC, results and logs call it: the first row that it stands for, and the seed (`semantic-s0`).
        preset: Its preset.
        seed: Its seed.
        settings: `key=value` as for `dvc exp run -S`, each key once.
        params: All parameters that a stage's result depends on, by stage; see `Params.tracked`.
        plugins: Sha256 of the file of each plugin that the parameters name.
        images: Fixes which images there are today; empty for the digits, and where they cannot be opened here.
    """

    name: str
    preset: str
    seed: int
    settings: tuple[str, ...]
    params: Mapping[str, Mapping[str, Any]]
    plugins: Mapping[str, str]
    images: str = ""


class Entry(NamedTuple):
    """A row of a table with a seed, and the experiment that belongs there; several entries may share one."""

    table: str
    row: str
    seed: int
    experiment: Experiment


def entries(tables: TablesFile, root: Path) -> list[Entry]:
    """All rows with all seeds, table by table and, within one, seed by seed, so that what is cut off has whole rows.

    Rows that lead to the same parameters share the experiment of the first of them.

    Args:
        tables: The rows.
        root: The repository, for params.yaml, presets/ and plugins/.

    Raises:
        ParamsError: A setting is wrong, or one name would stand for two different experiments.
    """
    tree = read_yaml(root / "params.yaml")
    known: list[Experiment] = []
    listed = []
    for name, table in tables.tables.items():
        for seed in tables.seeds:
            for row, own in table.rows.items():
                settings = (
                    f"preset={tables.preset}",
                    f"seed={seed}",
                    *table.sets.split(),
                    *own.split(),
                )
                try:
                    new = experiment(f"{row}-s{seed}", settings, root, tree)
                except ParamsError as error:
                    raise ParamsError(f"tables.{name}.rows.{row}: {error}") from None
                same = next((old for old in known if old.params == new.params), None)
                if same is None:
                    if any(old.name == new.name for old in known):
                        raise ParamsError(
                            f"tables.{name}.rows.{row}: another table has a row {row!r} that sets something else; "
                            "give one of the two another name"
                        )
                    known.append(new)
                listed.append(Entry(name, row, seed, same or new))
    return listed


def experiments(of: Iterable[Entry]) -> list[Experiment]:
    """The experiments of entries, each once, in order."""
    return list({entry.experiment.name: entry.experiment for entry in of}.values())


def experiment(name: str, settings: Sequence[str], root: Path, tree: object = None) -> Experiment:
    """An experiment from its settings.

    Args:
        name: Its name.
        settings: `key=value`; of a key that is set twice, the last.
        root: The repository.
        tree: What params.yaml says; None reads it.

    Raises:
        ParamsError: A setting cannot be read, or the parameters are not valid with it.
    """
    tree = read_yaml(root / "params.yaml") if tree is None else tree
    values = parse_settings(settings)
    params = resolve(root, with_settings(tree, values)).params
    tracked = {stage: params.tracked(stage) for stage in STAGES}
    texts = {key: setting.removeprefix("+") for setting in settings for key in [_key(setting)]}
    return Experiment(
        name,
        params.preset,
        params.seed,
        tuple(texts.values()),
        tracked,
        plugin_digests(tracked, root),
        "" if params.on_digits else _images_of(json.dumps(params.image_source, sort_keys=True)),
    )


@cache
def _images_of(source: str) -> str:
    """Digest of images, by the arguments of `open_both_splits` as JSON; looked at once in a process."""
    from flowprior.images.opening import images_digest, open_both_splits

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return images_digest(*open_both_splits(json.loads(source)))
    except Exception as error:  # also what a source of one's own raises
        place = json.loads(source)["path"]
        warnings.warn(
            f"the images of {place} cannot be opened ({error}): whether results are of them is not known",
            stacklevel=2,
        )
        return ""


def params_with(settings: Sequence[str], root: Path) -> Params:
    """The parameters of a repository with settings in place.

    Raises:
        ParamsError: As of `experiment`.
    """
    tree = with_settings(read_yaml(root / "params.yaml"), parse_settings(settings))
    return resolve(root, tree).params


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Values by dotted key, read by the grammar of `dvc exp run -S`, which is Hydra's.

    Raises:
        ParamsError: A setting is no `key=value` with one value.
    """
    # Takes half a second to import, which `flowprior --help` need not wait for.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    values = {}
    for setting in settings:
        expected = "expected key=value with one value, as for dvc exp run -S"
        try:
            override = parser.parse_override(setting)
        except HydraException as error:
            why = str(error).splitlines()[0]
            raise ParamsError(f"{setting!r} cannot be read ({why}); {expected}") from None
        if override.is_sweep_override() or override.is_delete():
            raise ParamsError(f"{setting!r} sets no value, or several; {expected}")
        values[_key(setting)] = override.value()
    return values


def with_settings(tree: object, values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of params.yaml's tree with values in place; a section that is not there is made."""
    changed: dict[str, Any] = deepcopy(dict(tree)) if isinstance(tree, Mapping) else {}
    for key, value in values.items():
        *sections, last = key.split(".")
        here = changed
        for name in sections:
            if not isinstance(here.get(name), dict):
                here[name] = {}
            here = here[name]
        here[last] = value
    return changed


def dvc_overrides(settings: Sequence[str], tree: object) -> list[str]:
    """The settings as `dvc exp run -S` takes them: `+key=value` where params.yaml lacks the key."""
    return [setting if has_key(tree, _key(setting)) else f"+{setting}" for setting in settings]


def _key(setting: str) -> str:
    return setting.partition("=")[0].removeprefix("+")


def has_key(tree: object, key: str) -> bool:
    """Whether nested mappings have a dotted key."""
    for name in key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
