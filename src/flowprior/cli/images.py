"""`flowprior images`: data sets of other kinds become shards; what a place holds."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from flowprior.cli.options import whole_number

images = typer.Typer(
    help="Import data sets into shards, and see what a place of images holds.",
    rich_markup_mode=None,
)
MANY = 20
"""Classes that are listed."""


@images.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="idx:DIR, torchvision:NAME, hf:NAME-or-folder or array:FILE."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder to write, for instance data/images/NAME; must be new.")
    ],
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes in their order, with commas between.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="array: a .npy with the class of each image.")
    ] = None,
    range: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="array: black and white of fractions: 0,1 or -1,1."),
    ] = None,
) -> None:
    """Write a data set of another kind as webdataset shards, once.

    idx reads files as MNIST's; torchvision downloads what it knows; hf takes a data set of Hugging Face, or a folder
    that its package datasets can load; array takes .npy, .npz or .safetensors with images [n, h, w] or [n, h, w, c].
    """
    from flowprior.images.importing import import_images

    found = import_images(
        source,
        out,
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
        labels=labels,
        value_range=_range(range),
    )
    counts = ", ".join(f"{count} {split}" for split, count in found.counts.items())
    typer.echo(f"{out}: {counts}")
    if len(found.counts) == 1:
        typer.echo("there is one split; a fifth of each class will be held out")
    typer.echo(f"-S images.source=webdataset -S images.path={out}")


@images.command()
def show(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder, or a pattern of shards.")],
    out: Annotated[
        Path | None, typer.Option(help="Write a contact sheet, too: a row for each class.")
    ] = None,
    size: Annotated[int, whole_number(1, "Pixels of an image on the sheet.")] = 64,
) -> None:
    """Say what a place of images holds: splits, classes, sizes, modes, what is passed over and why."""
    from flowprior.images.looking import look

    found, splits = look(Path(path).expanduser(), size)
    counts = " and ".join(
        f"{count} {name}"
        for name, count in zip(("training", "held-out"), found.counts.values(), strict=False)
    )
    number = len(found.classes)
    kind = "1 class" if number == 1 else f"{number} classes"
    colours = "grey" if found.channels == 1 else "in colour"
    typer.echo(f"{path} ({found.source}): {counts} images, {kind}, {colours}")
    for name, (train, held_out) in list(found.classes.items())[:MANY]:
        typer.echo(f"  {name}: {train} + {held_out}")
    if number > MANY:
        typer.echo(f"  ... and {number - MANY} more")
    if found.sizes:
        typer.echo(f"sizes of {len(found.sizes)}: {_sizes(found.sizes)}")
        modes = ", ".join(f"{mode} {count}" for mode, count in sorted(found.modes.items()))
        typer.echo(f"modes: {modes}")
    for kind, count in sorted(found.passed_over.items()):
        typer.echo(f"passed over: {count} {kind}")
    for problem in found.problems:
        typer.echo(f"problem: {problem}")
    if out is not None:
        from flowprior.figures.grid import picture
        from flowprior.figures.sheets import SHEET_COLUMNS, real_panel

        out.parent.mkdir(parents=True, exist_ok=True)
        picture(real_panel(splits["train"], 2 * SHEET_COLUMNS), smallest=64).save(out)
        typer.echo(f"{out}: the first images of {min(number, 10)} classes")
    if found.problems:
        raise typer.Exit(1)


def _sizes(sizes: list[tuple[int, int]]) -> str:
    (most, times), *others = Counter(sizes).most_common()
    if not others:
        return f"all {most[0]} x {most[1]}"
    sides = [math.sqrt(width * height) for width, height in sizes]
    small, large = (sizes[sides.index(edge)] for edge in (min(sides), max(sides)))
    return f"{small[0]} x {small[1]} to {large[0]} x {large[1]}, most often {most[0]} x {most[1]} ({times})"


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    number = r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?"
    found = re.fullmatch(rf"({number}),({number})", text.replace(" ", ""))
    if found is None or not float(found[1]) < float(found[2]):
        raise ValueError(f"--range {text!r} is not LOW,HIGH, for instance 0,1")
    return float(found[1]), float(found[2])
