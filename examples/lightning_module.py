"""A LightningModule with a pull on its latents: checkpoints, devices and precision are Lightning's business.

    python examples/lightning_module.py                   seconds, on random images

Needs flowprior and lightning.
"""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flowprior import FlowPrior


class PulledAutoencoder(lightning.LightningModule):
    """An autoencoder of one's own; `pull` is a submodule without parameters, and its state is in the checkpoint."""

    def __init__(self, prior: FlowPrior, objective: str = "dmd", weight: float = 0.1) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, prior.dim, 4, stride=4)
        self.decoder = nn.ConvTranspose2d(prior.dim, 1, 4, stride=4)
        self.pull = prior.objective(objective, channel_dim=1, weight=weight)

    def training_step(self, batch: list[Tensor], _: int) -> dict[str, Any]:
        """Reconstruction and pull; the latents are kept for what follows the optimiser's step."""
        (images,) = batch
        latents = self.encoder(images)
        loss = (self.decoder(latents) - images).square().mean() + self.pull(latents)
        self.log("loss", loss)
        return {"loss": loss, "latents": latents.detach()}

    def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
        """Let the flow of the latents' own follow, of objectives that have one."""
        self.pull.follow(outputs["latents"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Over the autoencoder: the pull has nothing to train."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Two epochs on random images."""
    prior = FlowPrior.fit(torch.randn(2000, 16), dim=4, steps=100, width=32, depth=1)
    loader = DataLoader(TensorDataset(torch.rand(256, 1, 16, 16)), batch_size=32)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    module = PulledAutoencoder(prior)
    trainer.fit(module, loader)
    with torch.no_grad():
        print(prior.check(module.encoder(torch.rand(100, 1, 16, 16)), channel_dim=1))


if __name__ == "__main__":
    main()
