"""The commands of `python -m flowprior`: a picture from finished artifacts; sending what MLflow did not get."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

BATCH = 64
BORDER = 1
GREY = 160
SMALL = 64
"""Images below this height are shown enlarged."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run; a mistake is one line and exit status 2, missing artifacts likewise."""
    parser = argparse.ArgumentParser(prog="python -m flowprior", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("sample", help="draw images of some classes into one picture")
    command.add_argument(
        "--label",
        type=_number(int, 0),
        action="append",
        required=True,
        help="class to draw; may be given more than once, each is a row of the picture",
    )
    command.add_argument("--num", type=_number(int, 1), default=16, help="images of every class")
    command.add_argument("--guidance", type=_number(float, 1), default=1.0, help="1 is none")
    command.add_argument(
        "--out", type=Path, required=True, help="picture to write, .png or the like"
    )
    command.add_argument("--data", type=Path, default=Path("data"), help="with autoencoder/, mar/")
    command.add_argument("--seed", type=_number(int, 0), default=0)
    command.add_argument(
        "--iterations", type=_number(int, 1), help="passes of MAR; all tokens one by one by default"
    )
    command.add_argument(
        "--steps", type=_number(int, 1), default=50, help="steps of the head's ODE for each token"
    )
    command.set_defaults(run=sample, fail=command.error)
    command = commands.add_parser("sync", help="send to MLflow what stages could not send")
    command.add_argument(
        "--root", type=Path, default=Path(), help="the repository whose .ckpt/tracking it is in"
    )
    command.set_defaults(run=sync, fail=command.error)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        options.fail(str(error))


def sync(options: argparse.Namespace) -> None:
    """Send what is kept and say how much it was.

    Raises:
        ValueError: The store does not take it.
    """
    from flowprior.ops.tracking import KEPT, send_kept

    root: Path = options.root.resolve()
    try:
        count = send_kept(root)
    except Exception as error:  # of MLflow, its database or its server
        raise ValueError(
            f"MLflow does not take what is in {root / KEPT}, where it stays: {type(error).__name__}: {error}"
        ) from error
    sys.stdout.write(f"{count} run{'s' * (count != 1)} sent\n")


def sample(options: argparse.Namespace) -> None:
    """Draw the images and write the picture."""
    out: Path = options.out
    _check_out(out)
    import torch

    from flowprior.core import rng
    from flowprior.core.device import start_accelerator
    from flowprior.generation.sampler import Sampler

    sampler = Sampler(options.data, start_accelerator().device)
    unknown = [label for label in options.label if label >= sampler.num_classes]
    if unknown:
        raise ValueError(
            f"--label {unknown[0]}: {options.data / 'mar'} knows the classes 0 to {sampler.num_classes - 1}"
        )
    labels = torch.tensor(options.label).repeat_interleave(options.num)
    images = [
        sampler(
            part,
            rng.generator(options.seed, "sample", index),
            num_iterations=options.iterations or sampler.num_tokens,
            head_steps=options.steps,
            guidance_scale=options.guidance,
        )
        for index, part in enumerate(labels.split(BATCH))
    ]
    several = len(options.label) > 1
    columns = options.num if several else math.ceil(math.sqrt(options.num))
    picture(torch.cat(images), columns).save(out)
    sys.stdout.write(f"{out}: {len(labels)} images\n")


def picture(images: "Tensor", columns: int) -> "Image":
    """Images [n, c, h, w] in bytes, row by row on a grey page."""
    import torch
    from PIL import Image

    zoom = max(1, SMALL // images.shape[-1])
    images = images.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    n, c, h, w = images.shape
    rows = math.ceil(n / columns)
    height, width = rows * (h + BORDER) + BORDER, columns * (w + BORDER) + BORDER
    page = torch.full((c, height, width), GREY, dtype=torch.uint8)
    for index, image in enumerate(images):
        top = index // columns * (h + BORDER) + BORDER
        left = index % columns * (w + BORDER) + BORDER
        page[:, top : top + h, left : left + w] = image
    pixels = page.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if c == 1 else pixels)


def _check_out(out: Path) -> None:
    """Before anything is drawn."""
    from PIL import Image

    if out.is_dir():
        raise ValueError(f"--out {out} is a directory; name a file in it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the directory {out.parent} does not exist")
    if out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {out}: name a picture, for instance {out.stem or 'grid'}.png")


def _number(kind: type[int] | type[float], least: int) -> Callable[[str], int | float]:
    """Of argparse's type: a finite number, at least `least`."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} of at least {least}")
        return value

    return parse
