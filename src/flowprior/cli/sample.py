"""`flowprior sample`: draw images of some classes into one picture, from finished artifacts."""

import math
from pathlib import Path
from typing import Annotated

import typer

from flowprior.cli.options import number, whole_number

SMALL = 64
"""Images of a smaller width are shown enlarged."""


def sample(
    label: Annotated[
        list[str],
        typer.Option(
            help="Class to draw, by name or number; may be given more than once, each is a row of the picture."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Picture to write, .png or the like.")],
    num: Annotated[int, whole_number(1, "Images of every class.")] = 16,
    guidance: Annotated[float, number(1.0, "Scale of the guidance; 1 is none.")] = 1.0,
    data: Annotated[Path, typer.Option(help="The folder with autoencoder/ and mar/.")] = Path(
        "data"
    ),
    seed: Annotated[int, whole_number(0, "Equal seeds draw equal images.")] = 0,
    iterations: Annotated[
        int | None, whole_number(1, "Passes of MAR; by default all tokens one by one.")
    ] = None,
    steps: Annotated[int, whole_number(1, "Steps of the head's ODE for each token.")] = 50,
) -> None:
    """Draw images of some classes into one picture.

    They come from the artifacts of a finished pipeline.
    """
    _check_out(out)
    from flowprior.core.device import start_accelerator
    from flowprior.figures.grid import by_row, picture
    from flowprior.generation.loaded import Generator

    generator = Generator.load(data, start_accelerator().device)
    try:
        classes = [generator.number_of(one) for one in label]
    except ValueError as error:
        raise ValueError(f"--label: {error}") from None
    labels = [one for one in classes for _ in range(num)]
    images = generator.sample(labels, guidance, seed=seed, iterations=iterations, steps=steps)
    columns = num if len(label) > 1 else math.ceil(math.sqrt(num))
    picture(by_row(images, columns), smallest=SMALL).save(out)
    typer.echo(f"{out}: {len(labels)} images")


def _check_out(out: Path) -> None:
    """Make sure, before anything is drawn, that the picture can be written.

    Raises:
        ValueError: It is a folder, lies in none, or its name has no ending of a picture's.
    """
    from PIL import Image

    if out.is_dir():
        raise ValueError(f"--out {out} is a directory; name a file in it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the directory {out.parent} does not exist")
    if out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {out}: name a picture, for instance {out.stem or 'grid'}.png")
