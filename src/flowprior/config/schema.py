"""All parameters of the pipeline, and what holds between its sections.

A section's class stands beside what it configures (`<room>/config.py`); this module puts them together. Imports
pydantic only, so that a mistake is told in a second, before torch is imported.
"""

from typing import Any

from pydantic import Field, model_validator

from flowprior.alignment.config import Align
from flowprior.autoencoder.config import Autoencoder, EncodeLatents, TrainAutoencoder
from flowprior.config.messages import ParamsError
from flowprior.config.versions import VERSIONS, without_neutral
from flowprior.core.registry import plugin_digests
from flowprior.core.root import find_root, state_root
from flowprior.core.section import Section
from flowprior.evaluation.config import Evaluation
from flowprior.features.config import ExtractFeatures, Prior
from flowprior.generation.config import Guidance, SampleEval
from flowprior.generators.config import GeneratorChoice
from flowprior.images.config import Images
from flowprior.mar.config import TrainMAR
from flowprior.prior.config import Project, TrainFlow

STAGES: dict[str, tuple[str, ...]] = {
    "extract_features": ("seed", "images", "prior", "extract_features"),
    "project": ("seed", "project"),
    "train_flow": ("seed", "train_flow"),
    "train_ae": ("seed", "images", "autoencoder", "align", "train_ae"),
    "encode_latents": ("seed", "images", "evaluation", "encode_latents"),
    "train_mar": ("seed", "generator", "train_mar"),
    "sample_eval": ("seed", "images", "guidance", "evaluation", "sample_eval"),
}
"""The stages in order, and the sections that each reads; `dvc.yaml` tracks the same."""

OF_DIGITS = ("semantic", "low_level", "discrete", "shuffled")
"""Priors that, with digits, are features of the digits themselves."""


class Params(Section):
    """`params.yaml` with its preset filled in."""

    seed: int = Field(ge=0, lt=2**32)
    preset: str
    images: Images
    prior: Prior
    project: Project
    autoencoder: Autoencoder
    align: Align
    generator: GeneratorChoice
    guidance: Guidance
    evaluation: Evaluation
    extract_features: ExtractFeatures
    train_flow: TrainFlow
    train_ae: TrainAutoencoder
    encode_latents: EncodeLatents
    train_mar: TrainMAR
    sample_eval: SampleEval

    @model_validator(mode="after")
    def _sections_fit(self) -> "Params":
        size, patch = self.images.size, self.train_ae.patch_size
        if size % patch:
            raise ValueError(f"train_ae.patch_size ({patch}) must divide images.size ({size})")
        num_latents = self.train_ae.num_latents
        if self.generator.model == "mar" and self.sample_eval.num_iterations > num_latents:
            raise ValueError(
                f"sample_eval.num_iterations ({self.sample_eval.num_iterations}) must be at most "
                f"train_ae.num_latents ({num_latents}): an iteration reveals a token or more"
            )
        if self.on_digits:
            self._digits_fit()
        else:
            self._others_fit()
        num_codebooks = self.train_ae.softvq.num_codebooks
        if self.autoencoder.bottleneck == "softvq" and num_latents % num_codebooks:
            raise ValueError(
                f"train_ae.softvq.num_codebooks ({num_codebooks}) must divide num_latents ({num_latents})"
            )
        if self.guidance.scale != 1 and self.train_mar.label_dropout == 0:
            raise ValueError(
                f"guidance.scale: {self.guidance.scale} needs train_mar.label_dropout above 0, "
                "else there is no model without a class to guide away from"
            )
        return self

    def _others_fit(self) -> None:
        if self.prior.source == "discrete" and self.prior.path is None:
            raise ValueError(
                "prior.path must name the checkpoint of a VQ tokenizer (LlamaGen's vq_ds16_c2i.pt) with prior.source "
                "discrete and images other than digits, found null"
            )
        if self.prior.source in ("semantic", "shuffled") and self.prior.encoder == "digits":
            raise ValueError(
                "prior.encoder digits takes the 8 x 8 digits alone; set prior.encoder to timm for your own images"
            )
        if self.evaluation.judge == "digits":
            raise ValueError(
                "evaluation.judge digits knows the 8 x 8 digits alone; set evaluation.judge to inception for your own "
                "images, or to none"
            )

    def _digits_fit(self) -> None:
        train_ae = self.train_ae
        for name in ("perceptual", "adversarial"):
            if getattr(train_ae, name).weight:
                raise ValueError(
                    f"train_ae.{name}.weight must be 0 with digits: its network takes three "
                    "channels, digits have one"
                )
        for name, value, neutral in (
            ("encoder", train_ae.encoder, None),
            ("augment", train_ae.augment, "none"),
            ("softvq.representation_model", train_ae.softvq.representation_model, None),
        ):
            if value != neutral:
                raise ValueError(
                    f"train_ae.{name} must be {neutral or 'null'} with digits, found {value!r}"
                )
        if self.prior.source in OF_DIGITS:
            for name in ("path", "model", "revision"):
                if getattr(self.prior, name) is not None:
                    raise ValueError(
                        f"prior.{name} has no effect with digits and prior.source {self.prior.source}, "
                        "which is made of the digits themselves; set it to null"
                    )
        for name in ("weights", "reference"):
            if getattr(self.evaluation, name) is not None:
                raise ValueError(
                    f"evaluation.{name} has no effect with digits, which their own classifier judges; "
                    "set it to null"
                )

    def check_ranks(self, ranks: int) -> None:
        """Whether every training stage's batch can be shared out, so that the last one does not find out after days.

        Raises:
            ParamsError: One line for each batch that cannot.
        """
        shared = (
            ("train_flow.time_groups", self.train_flow.time_groups, self.train_flow.accumulate),
            ("train_ae.batch_images", self.train_ae.batch_images, self.train_ae.accumulate),
            ("train_mar.batch_images", self.train_mar.batch_images, self.train_mar.accumulate),
        )
        lines = [
            f"{name}: {value} in {parts} part{'s' * (parts > 1)} cannot be shared "
            f"by {ranks} ranks; take a multiple of {parts * ranks}, or another launch"
            for name, value, parts in shared
            if value % (parts * ranks)
        ]
        if lines:
            raise ParamsError("\n".join(lines))

    @property
    def on_digits(self) -> bool:
        """Whether the images are digits."""
        return self.images.source == "digits"

    @property
    def image_source(self) -> dict[str, Any]:
        """The arguments of `flowprior.images.opening.open_images`, but for the split."""
        images = self.images
        path = None if self.on_digits else str(state_root(find_root()) / images.path)
        return {
            "source": images.source,
            "split_seed": images.split_seed,
            "size": images.size,
            "path": path,
            "shards": images.shards,
            "held_out": images.held_out,
            "channels": images.channels,
            "max_corrupt": images.max_corrupt,
            "options": images.options,
        }

    def tracked(self, stage: str) -> dict[str, Any]:
        """What the result of a stage depends on, as plain values by section."""
        plain = self.model_dump(mode="json")
        return {name: plain[name] for name in STAGES[stage]}

    def behaviour(self, stage: str) -> dict[str, Any]:
        """What decides a stage's result besides its inputs: its version, its parameters, and the plugins they name."""
        config = without_neutral(self.tracked(stage))
        return {"version": VERSIONS[stage], "config": config, "plugins": plugin_digests(config)}

    def session(self, stage: str) -> dict[str, Any]:
        """Arguments of the `flowprior.training.session.Session` of a training stage."""
        return {
            "behaviour": self.behaviour(stage),
            "config": self.tracked(stage),
            "seed": self.seed,
            "plan": getattr(self, stage).plan,
        }

    def notes(self) -> list[str]:
        """What is allowed but may not be meant, a line each."""
        found = []
        for stage in ("train_flow", "train_ae", "train_mar"):
            training = getattr(self, stage)
            warmup = training.optimizer.warmup_steps
            if training.steps <= warmup:
                found.append(
                    f"{stage}: all {training.steps} steps lie in the warm-up of {warmup} "
                    f"({stage}.optimizer.warmup_steps)"
                )
        return found
