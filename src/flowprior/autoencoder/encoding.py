"""Encoding and reconstructing a set of images, by all ranks in turn."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from flowprior.autoencoder.registry import ImageAutoencoder
from flowprior.core.device import in_turn
from flowprior.images.sets import ImageSet, batches


class Encoding:
    """A trained autoencoder at work on sets of images.

    Args:
        autoencoder: On the accelerator's device, in eval mode.
        accelerator: Device, ranks and precision.
        batch: Images at once.
        flip: Whether each image's mirror image is encoded too.
    """

    def __init__(
        self, autoencoder: ImageAutoencoder, accelerator: Accelerator, batch: int, flip: bool
    ) -> None:
        self._autoencoder = autoencoder
        self._accelerator = accelerator
        self._batch = batch
        self._flip = flip

    def encoded(
        self, images: ImageSet, name: str
    ) -> Iterator[tuple[range, Float[Tensor, "b v n d"]]]:
        """Rows and latents, piece by piece, float32 on the CPU; v is 1, or 2 with the mirror image behind the image.

        Ranks encode in turn, the first has the latents. Of a posterior it is the mean.
        """
        pieces = list(batches(len(images), self._batch))
        hidden = None if self._accelerator.is_main_process else True

        def work(index: int) -> Tensor:
            with self._accelerator.autocast():
                views = images.images(pieces[index]).to(self._accelerator.device)
                return encode(self._autoencoder, views, self._flip).cpu()

        bar = tqdm(pieces, desc=name, disable=hidden)
        return zip(bar, in_turn(self._accelerator, len(pieces), work), strict=False)

    def assist(self, *sets: ImageSet) -> None:
        """What ranks other than the first do: their part of what it asks for by `encoded` and `damaged`."""
        for images in sets:
            for _ in self.encoded(images, ""):
                pass
        self.damaged(*sets)

    @torch.no_grad()
    def restored(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Images there and back, float32 on the CPU."""
        with self._accelerator.autocast():
            output: Tensor = self._autoencoder(images.to(self._accelerator.device))[0]
        return output.float().cpu()

    def damaged(self, *sets: ImageSet) -> int:
        """Images of the sets that could not be decoded, by any rank; every rank has to ask."""
        names = {name for images in sets for name in images.corrupt}
        ranks = self._accelerator.num_processes
        return len(set().union(*in_turn(self._accelerator, ranks, lambda _: names)))


@torch.no_grad()
def encode(
    autoencoder: ImageAutoencoder, images: Float[Tensor, "b c h w"], flip: bool
) -> Float[Tensor, "b v n d"]:
    """Latents of images and, behind them, of their mirror images; a posterior gives its mean."""
    views = [images, images.flip(-1)] if flip else [images]
    return torch.stack([autoencoder.encode(view).mean.float() for view in views], dim=1)
