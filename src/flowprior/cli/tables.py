"""`flowprior tables`: run the experiments of tables.yaml that have no result yet, here or as a Slurm array."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowprior.cli.options import whole_number
from flowprior.core.root import find_root

if TYPE_CHECKING:
    from flowprior.experiments.planned import Experiment

FAILED = 1


def tables(
    show: Annotated[
        bool, typer.Option("--list", help="Say how each experiment stands, and run nothing.")
    ] = False,
    run: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Run this experiment alone, whatever result there is."),
    ] = None,
    collect: Annotated[
        bool, typer.Option("--collect", help="Take the results of what DVC has, and run nothing.")
    ] = False,
    slurm: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what is missing as a Slurm array; - prints it."),
    ] = None,
    workers: Annotated[
        int, whole_number(0, "Experiments at a time; 0: one for each GPU or core, at most 4.")
    ] = 0,
    only: Annotated[
        str, typer.Option(metavar="REGEX", help="Experiments whose name it matches somewhere.")
    ] = "",
    keep_outdated: Annotated[
        bool, typer.Option("--keep-outdated", help="Results that would be others today will do.")
    ] = False,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help="Of the Slurm array, such as --gpus=1; repeatable."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another list than tables.yaml.")
    ] = None,
) -> None:
    """Run the experiments of tables.yaml that lack a result.

    They start from what is committed. Ctrl-C stops it, the same command goes on. The exit status is 1 where one
    failed.
    """
    actions = {"--list": show, "--run": run is not None, "--collect": collect, "--slurm": slurm}
    if len(asked := [option for option, given in actions.items() if given]) > 1:
        raise ValueError(f"{' and '.join(asked)} do not go together")
    if sbatch and slurm is None:
        raise ValueError("--sbatch has no effect without --slurm")
    root = find_root()

    from flowprior.experiments.git import GitError
    from flowprior.experiments.runner import ExperimentError

    try:
        if show:
            _show(root, file, only)
        elif run is not None:
            _run_one(root, file, run)
        elif collect:
            _collect(root, file, only)
        elif slurm is not None:
            _write_job(root, file, only, keep_outdated, slurm, sbatch or ())
        else:
            _run_missing(root, file, only, keep_outdated, workers)
    except (ExperimentError, GitError) as error:
        typer.echo(f"flowprior: {error}", err=True)
        raise typer.Exit(FAILED) from None


def _show(root: Path, file: Path | None, only: str) -> None:
    from flowprior.experiments.status import survey

    for one in survey(root, file, only):
        typer.echo(one.line)


def _run_one(root: Path, file: Path | None, name: str) -> None:
    from flowprior.experiments.campaign import run_one
    from flowprior.experiments.status import check_tree, survey

    known = {one.experiment.name: one.experiment for one in survey(root, file)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ", see flowprior tables --list"
        raise ValueError(f"--run {name!r}: there is no such experiment{hint}")
    check_tree(root)
    result = run_one(root, known[name])
    typer.echo(f"{name}: done, metrics/experiments/{result.name}.json")


def _collect(root: Path, file: Path | None, only: str) -> None:
    from flowprior.experiments.collect import collect
    from flowprior.experiments.status import missing

    taken = collect(root, missing(root, file, only), typer.echo)
    for name in taken:
        typer.echo(f"{name}: taken from DVC")
    typer.echo(f"{len(taken)} result{'s' * (len(taken) != 1)} taken")


def _write_job(
    root: Path,
    file: Path | None,
    only: str,
    keep_outdated: bool,
    job: Path,
    sbatch: Sequence[str],
) -> None:
    from flowprior.experiments.slurm import slurm_script
    from flowprior.experiments.status import check_tree, missing

    todo = missing(root, file, only, keep_outdated)
    check_tree(root)
    script = slurm_script(root, todo, sbatch, file)
    if str(job) == "-":
        typer.echo(script, nl=False)
        return
    job.write_text(script, encoding="utf-8")
    typer.echo(f"{job}: {_experiments(todo)}; submit it with sbatch {job}")


def _run_missing(
    root: Path, file: Path | None, only: str, keep_outdated: bool, workers: int
) -> None:
    from flowprior.experiments.campaign import run_all
    from flowprior.experiments.collect import collect
    from flowprior.experiments.status import check_tree, missing, survey

    wanted = len(survey(root, file, only))
    check_tree(root)
    for name in collect(root, missing(root, file, only), typer.echo):
        typer.echo(f"{name}: taken from DVC")
    todo = missing(root, file, only, keep_outdated)
    typer.echo(f"{wanted - len(todo)} of {wanted} results are there, {len(todo)} to run")
    if not todo:
        return
    outcome = run_all(root, todo, workers, typer.echo)
    if outcome.elsewhere:
        typer.echo(f"another process is running {', '.join(outcome.elsewhere)}", err=True)
    if outcome.failed:
        count, names = len(outcome.failed), ", ".join(outcome.failed)
        typer.echo(f"{count} failed: {names}", err=True)
        raise typer.Exit(FAILED)


def _experiments(of: "Sequence[Experiment]") -> str:
    return f"{len(of)} experiment{'s' * (len(of) != 1)}"
