"""Train the two digits networks that ship with the package; not a stage of the pipeline.

Reads   scikit-learn's digits, the training split (the validation split for the final accuracy only)
Writes  src/flowprior/encoders/digits_weights/{semantic,evaluation}.safetensors
        src/flowprior/encoders/digits_weights/networks.json, last

Each network is trained twice from the same start: first without a tenth of the training split, to
choose the number of epochs there, then on the whole training split for that many.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from flowprior.core import optim, rng
from flowprior.core.artifacts import package_versions
from flowprior.core.io import file_digest, save_tensors, write_json
from flowprior.encoders.digits import DigitsEvalNet, DigitsPatchNet
from flowprior.encoders.shipped import DIGITS_DIR, DIGITS_NETWORKS, FACTS, DigitsNetwork
from flowprior.images.digits import Digits

SEEDS: dict[DigitsNetwork, int] = {"semantic": 1, "evaluation": 2}
MAX_EPOCHS = 120
BATCH_IMAGES = 64
LR = 2e-3
LR_WARMUP_STEPS = 100
BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.05
EMA_DECAY = 0.99


def main(split_seed: int, out: Path) -> None:
    """Train both networks and write weights and facts."""
    # One thread: the order of sums, hence the bytes, must not depend on the number of cores.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train, validation = Digits("train", split_seed), Digits("validation", split_seed)
    networks = {}
    for which, seed in SEEDS.items():
        num_epochs, held_out_accuracy = choose_epochs(which, train, seed)
        *_, network = fit(which, train, torch.arange(len(train)), seed, num_epochs)
        weights = out / f"{which}.safetensors"
        save_tensors(weights, network.state_dict())
        networks[which] = {
            "class": type(network).__name__,
            "num_parameters": sum(p.numel() for p in network.parameters()),
            "feature_shape": list(network.features(train.images([0])).shape[1:]),
            "seed": seed,
            "num_epochs": num_epochs,
            "held_out_accuracy": held_out_accuracy,
            "train_accuracy": score(network, train, torch.arange(len(train)))[0],
            "validation_accuracy": score(network, validation, torch.arange(len(validation)))[0],
            "sha256": file_digest(weights),
        }
        print(which, networks[which])
    facts = {
        "split_seed": split_seed,
        "train_digest": train.digest,
        "num_train": len(train),
        "num_validation": len(validation),
        "packages": package_versions("torch", "scikit-learn"),
        "networks": networks,
    }
    write_json(out / FACTS, facts)


def choose_epochs(which: DigitsNetwork, train: Digits, seed: int) -> tuple[int, float]:
    """The number of epochs with the least loss on a held-out tenth, and the accuracy there."""
    order = torch.randperm(len(train), generator=rng.generator(seed, which, "held_out"))
    held_out, rest = order[: len(train) // 10], order[len(train) // 10 :]
    best_loss, best = float("inf"), (0, 0.0)
    for epoch, network in enumerate(fit(which, train, rest, seed, MAX_EPOCHS), start=1):
        accuracy, loss = score(network, train, held_out)
        if loss < best_loss:
            best_loss, best = loss, (epoch, accuracy)
    return best


def fit(
    which: DigitsNetwork, train: Digits, rows: Int[Tensor, " n"], seed: int, num_epochs: int
) -> Iterator[DigitsPatchNet | DigitsEvalNet]:
    """Train on some rows; yields the moving average of the weights after every epoch.

    The learning rate does not depend on `num_epochs`, so that an epoch chosen in a long run means
    the same in a shorter one.
    """
    with rng.scoped(seed, which, "init"):
        network = DIGITS_NETWORKS[which]()
    average = optim.moving_average(network, EMA_DECAY)
    optimizer = optim.adamw(network, LR, BETAS, WEIGHT_DECAY)
    schedule = optim.schedule(optimizer, "constant", 0, LR_WARMUP_STEPS)
    for epoch in range(num_epochs):
        generator = rng.generator(seed, which, "epoch", epoch)
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(BATCH_IMAGES):
            images = augment(train.images(batch), generator)
            loss = F.cross_entropy(network(images), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
        yield cast(DigitsPatchNet | DigitsEvalNet, average.module)


def augment(
    images: Float[Tensor, "b 1 8 8"], generator: torch.Generator
) -> Float[Tensor, "b 1 8 8"]:
    """Distort by a linear map within 15% of the identity, shift by up to a pixel, add noise."""
    matrix = torch.eye(2) + (torch.rand(len(images), 2, 2, generator=generator) - 0.5) * 0.3
    pixels = (torch.rand(len(images), 2, 1, generator=generator) - 0.5) * 2
    theta = torch.cat([matrix, pixels / 4], dim=-1)  # affine_grid spans 8 pixels with 2
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside is background
    return moved + 0.1 * torch.randn(images.shape, generator=generator)


@torch.no_grad()
def score(network: nn.Module, digits: Digits, rows: Int[Tensor, " n"]) -> tuple[float, float]:
    """Accuracy and mean cross-entropy on some rows."""
    logits, labels = network(digits.images(rows)), digits.labels[rows]
    accuracy = (logits.argmax(-1) == labels).double().mean()
    return float(accuracy), float(F.cross_entropy(logits, labels))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split-seed", type=int, default=0, help="which images are held out")
    parser.add_argument("--out", type=Path, default=DIGITS_DIR, help="where to write")
    arguments = parser.parse_args()
    main(arguments.split_seed, arguments.out)
