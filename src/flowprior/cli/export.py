"""`flowprior export`: what the pipeline made, in the files of other projects."""

import re
from pathlib import Path
from typing import Annotated

import typer

export = typer.Typer(help="Hand what the pipeline made to other projects.", rich_markup_mode=None)

LIGHTNINGDIT = (
    "in its config data.data_path, and model.in_chans {dim}; it normalises by latents_stats.pt"
)
MAR = (
    "with --use_cached, --cached_path and --vae_embed_dim {dim}; its code multiplies latents by 0.2325: put "
    "{factor:.4g} there, and these have unit variance"
)
"""What to tell the other project."""


@export.callback()
def _group() -> None:
    """Keeps `latents` a command of its own, though it is the only one."""


@export.command()
def latents(
    format: Annotated[str, typer.Option(help="lightningdit or mar: whose loader is to read them.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist, or be empty.")],
    data: Annotated[Path, typer.Option(help="The folder with latents/.")] = Path("data"),
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Places of the tokens; by default a square, or else one row."
        ),
    ] = None,
) -> None:
    """Write the latents of a finished pipeline as LightningDiT or MAR cache theirs.

    So a generator of theirs trains on them without code of flowprior. What it draws, [b, d, h, w], is decoded by
    flowprior.Autoencoder.load("data/autoencoder").decode(drawn.flatten(2).transpose(1, 2)).
    """
    from flowprior.autoencoder.exporting import FORMATS, export_latents

    chosen = next((name for name in FORMATS if name == format), None)
    if chosen is None:
        raise ValueError(f"--format {format!r} is unknown; use one of {', '.join(FORMATS)}")
    found = export_latents(data / "latents", out, chosen, split=split, grid=_grid(grid))
    dim, height, width = found.shape
    files = "1 file" if found.num_files == 1 else f"{found.num_files} files"
    typer.echo(f"{out}: {found.num_images} images, [{dim}, {height}, {width}], in {files}")
    if grid is None and height == 1 < width:
        typer.echo(f"{width} tokens are no square, so they are one row; --grid HxW names another")
    hint = LIGHTNINGDIT if chosen == "lightningdit" else MAR
    typer.echo(hint.format(dim=dim, factor=1 / found.std if found.std else 1.0))


def _grid(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if found is None:
        raise ValueError(f"--grid {text!r} is not HxW, for instance 8x8")
    return int(found[1]), int(found[2])
