"""`flowprior sync`: send to MLflow what stages could not send."""

from pathlib import Path
from typing import Annotated

import typer


def sync(
    root: Annotated[
        Path, typer.Option(help="The repository whose .ckpt/tracking it is in.")
    ] = Path(),
) -> None:
    """Send to MLflow what stages could not send."""
    from flowprior.ops.tracking import KEPT, send_kept

    root = root.resolve()
    try:
        count = send_kept(root)
    except Exception as error:  # of MLflow, its database or its server
        raise ValueError(
            f"MLflow does not take what is in {root / KEPT}, where it stays: {type(error).__name__}: {error}"
        ) from error
    typer.echo(f"{count} run{'s' * (count != 1)} sent")
