"""`flowprior preflight`: look, before a run, whether all is there that it will need."""

from typing import Annotated

import typer

from flowprior.cli.mistakes import unusable
from flowprior.config.messages import ParamsError
from flowprior.core.root import find_root
from flowprior.costs.preset import params_with


def preflight(
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A file of presets/; by default that of params.yaml."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="images.path; by default that of params.yaml."),
    ] = None,
) -> None:
    """Look whether all is there that a run will need.

    Images, plugins, weights, packages and room on the disk; weights that have to be downloaded are downloaded now. The
    exit status is 1 where something is missing.
    """
    try:
        cfg = params_with(find_root(), preset, images)
    except ParamsError as error:
        raise unusable(error) from None

    from flowprior.costs.preflight import preflight as look

    missing = 0
    for finding in look(cfg):
        missing += not finding.is_there
        state = "ok     " if finding.is_there else "MISSING"
        typer.echo(f"  {state}  {finding.name}: {finding.says}")
    typer.echo(f"{missing} missing" if missing else f"all there for preset {cfg.preset}")
    if missing:
        raise typer.Exit(1)
