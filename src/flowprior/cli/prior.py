"""`flowprior prior`: fit a prior to a file of features, ask it for likelihoods and samples."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from flowprior.cli.options import positive_number, told_as_options, whole_number

prior = typer.Typer(
    help="Fit a flow prior to a file of features, and put it to use.", rich_markup_mode=None
)

FEATURES = "Vectors [..., D]: .npy, .npz, .safetensors, .csv or .parquet, or - for a .npy on stdin."
PRIOR = "The folder of a prior, of `flowprior prior fit` or the pipeline's data/flow_prior."
STRICT = "Exit status 1 unless the verdict is good."
CHANNEL_DIM = "Axis of the channels, where it is not the last."
OUT = "File to write, .npy or .safetensors, or - for a .npy on stdout."


@prior.command()
def fit(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help=FEATURES)],
    out: Annotated[Path, typer.Option(help="Folder to write the prior to.")],
    dim: Annotated[
        int | None, whole_number(1, "Channels of the latents; by default those of the features.")
    ] = None,
    channel_dim: Annotated[int | None, typer.Option(help=CHANNEL_DIM)] = None,
    operator: Annotated[
        str, typer.Option(help="How to get there: random, avg_pool or pca.")
    ] = "random",
    steps: Annotated[int, whole_number(1, "Steps of the optimiser.")] = 2000,
    seed: Annotated[int, whole_number(0, "Equal seeds give equal priors.")] = 0,
    lr: Annotated[float, positive_number("Peak learning rate.")] = 1e-3,
    width: Annotated[int, whole_number(1, "Hidden width of the flow's network.")] = 256,
    depth: Annotated[int, whole_number(1, "Its residual blocks.")] = 3,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a prior that is in --out.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help=STRICT)] = False,
) -> None:
    """Fit a prior to features, and say how well it fits.

    They are projected to --dim channels of unit variance, and a flow learns them. Latents of an autoencoder with as
    many channels can then be pulled towards them, in Python by FlowPrior.load(OUT).objective("dmd"), and compared with
    them by `flowprior prior check`. With --strict the exit status is 1 unless the fit is good.
    """
    from flowprior.cli.vectors import read_vectors

    vectors = read_vectors(features)

    from flowprior.core.artifacts import MANIFEST
    from flowprior.prior.files import check_replaceable
    from flowprior.prior.flow_prior import FlowPrior
    from flowprior.prior.projection import OPERATORS

    chosen = next((name for name in OPERATORS if name == operator), None)
    if chosen is None:
        raise ValueError(f"--operator {operator!r} is unknown; use one of {', '.join(OPERATORS)}")
    check_replaceable(out.expanduser())
    if not overwrite and (out.expanduser() / MANIFEST).exists():
        raise ValueError(f"{out} holds a prior already; --overwrite replaces it")
    with told_as_options():
        fitted = FlowPrior.fit(
            vectors,
            dim,
            channel_dim=channel_dim,
            operator=chosen,
            steps=steps,
            seed=seed,
            lr=lr,
            width=width,
            depth=depth,
        )
    fitted.save(out)
    count = math.prod(vectors.shape[:-1])
    typer.echo(f"{out}: {count} vectors, {vectors.shape[-1]} channels projected to {fitted.dim}")
    if fitted.fitted is None:
        typer.echo("fewer than 200 vectors: too few to hold some out and measure the fit on them")
    elif not sys.stderr.isatty():  # where it was said already
        typer.echo(fitted.fitted)
    if strict and (fitted.fitted is None or fitted.fitted.verdict != "good"):
        raise typer.Exit(1)


@prior.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="PRIOR", help=PRIOR)],
    latents: Annotated[str, typer.Argument(metavar="LATENTS", help=FEATURES)],
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures, too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    channel_dim: Annotated[int | None, typer.Option(help=CHANNEL_DIM)] = None,
    seed: Annotated[int, whole_number(0, "Equal seeds give equal checks.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help=STRICT)] = False,
) -> None:
    """Say whether latents look as the prior's targets do: one word, the reasons, and every figure.

    The word is good, narrow, wide, shifted, collapsed, low rank or other shape. Each figure stands beside what as many
    fresh targets get. At least 50 latents are needed.
    """
    from json import dumps

    from flowprior.cli.vectors import check_parent, read_vectors

    if html is not None:
        check_parent(html)
    vectors = read_vectors(latents)

    import torch

    from flowprior.prior.flow_prior import FlowPrior

    loaded = FlowPrior.load(folder)
    with told_as_options():
        found = loaded.check(
            torch.from_numpy(vectors.astype("float32")), channel_dim=channel_dim, seed=seed
        )
    if html is not None:
        found.to_html(html)
    typer.echo(dumps(found.to_dict(), indent=1) if json else found)
    if strict and not found.good:
        raise typer.Exit(1)


@prior.command()
def nll(
    folder: Annotated[Path, typer.Argument(metavar="PRIOR", help=PRIOR)],
    latents: Annotated[str, typer.Argument(metavar="LATENTS", help=FEATURES)],
    out: Annotated[str | None, typer.Option(help=OUT)] = None,
    channel_dim: Annotated[int | None, typer.Option(help=CHANNEL_DIM)] = None,
) -> None:
    """Print the mean negative log-density of latents, in nats per vector.

    With --out one value for each vector is written, in the latents' leading shape. Features have to be projected first
    (in Python, prior.project).
    """
    import numpy as np

    from flowprior.cli.vectors import STREAM, check_writable, read_vectors, write_vectors

    if out is not None:
        check_writable(out)
    vectors = read_vectors(latents)

    import torch

    from flowprior.prior.flow_prior import FlowPrior

    loaded = FlowPrior.load(folder)
    with told_as_options():
        values = loaded.nll(
            torch.from_numpy(np.array(vectors, dtype=np.float32)), channel_dim=channel_dim
        )
    if out is not None:
        write_vectors(out, values.numpy())
    error = float(values.std()) / values.numel() ** 0.5 if values.numel() > 1 else float("nan")
    typer.echo(
        f"{float(values.mean()):.4f} nats, standard error {error:.4f}, {values.numel()} vectors",
        err=out == STREAM,
    )


@prior.command()
def sample(
    folder: Annotated[Path, typer.Argument(metavar="PRIOR", help=PRIOR)],
    num: Annotated[int, whole_number(1, "Vectors to draw.")],
    out: Annotated[str, typer.Option(help=OUT)],
    seed: Annotated[int, whole_number(0, "Equal seeds draw equal vectors.")] = 0,
) -> None:
    """Draw vectors that the flow takes for projected features."""
    from flowprior.cli.vectors import STREAM, check_writable, write_vectors

    check_writable(out)

    from flowprior.core import rng
    from flowprior.prior.flow_prior import FlowPrior

    drawn = FlowPrior.load(folder).sample(num, rng.generator(seed, "prior sample"))
    write_vectors(out, drawn.numpy())
    if out != STREAM:
        typer.echo(f"{out}: {num} vectors of {drawn.shape[1]} channels")
