"""The parameters: read `params.yaml`, check every section, and say what is wrong in one readable message.

Imports pydantic and yaml only, so that a mistake is told in a second, before torch is imported. A
section's science is at the top of the file, its scale under `presets.<preset>.<stage>`; no key
stands in both.
"""

import difflib
import os
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[3]


class Section(BaseModel):
    """Frozen and strict; an unknown key, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Images(Section):
    """Which images. Evaluation never touches those of the training split."""

    source: Literal["auto", "digits", "imagefolder", "webdataset"]
    """auto: digits with a preset of 8 pixels, else imagefolder."""
    path: str | None
    """Folder of the tree or of the shards, a relative one from the repository's root; null: data/images."""
    split_seed: int = Field(ge=0)
    """Decides which images are held out; the seed of a run does not."""
    max_corrupt: float = Field(ge=0, lt=1)
    """Share of the images that may turn out not to be decodable; another of the class takes the place of such a one."""

    @model_validator(mode="after")
    def _path_goes_with_source(self) -> Self:
        if self.source == "digits" and self.path is not None:
            raise ValueError(
                f"images.path must be null with images.source digits, found {self.path!r}"
            )
        return self


class Prior(Section):
    """Which features the latents are pulled towards."""

    source: Literal["semantic", "low_level", "discrete", "textual", "gaussian", "shuffled", "file"]
    path: str | None
    """What is on this machine: a model's folder, a codebook's checkpoint (discrete), or .npy, .safetensors (file)."""
    model: str | None
    """What timm (semantic, shuffled) or the hub (low_level, textual) calls a model; null takes the paper's."""
    revision: str | None
    """Of a model of the hub: a commit, tag or branch."""

    @model_validator(mode="after")
    def _path_goes_with_source(self) -> Self:
        if self.source == "file" and self.path is None:
            raise ValueError(
                "prior.path must name a .npy or .safetensors with prior.source file, found null"
            )
        if self.source == "gaussian" and self.path is not None:
            raise ValueError("prior.path has no effect with prior.source gaussian; set it to null")
        if self.source in ("gaussian", "discrete", "file") and self.model is not None:
            raise ValueError(
                f"prior.model has no effect with prior.source {self.source}; set it to null"
            )
        if self.path is not None and self.model is not None:
            raise ValueError(
                "prior.path and prior.model both name a model; set one of them to null"
            )
        if self.revision is not None and (
            self.path is not None or self.source in ("gaussian", "discrete", "file")
        ):
            raise ValueError("prior.revision is of a model of the hub; set it to null")
        return self


class Project(Section):
    """How features get to the dimension of the latents."""

    operator: Literal["random", "avg_pool", "pca"]


class Autoencoder(Section):
    """What stands between encoder and decoder."""

    bottleneck: Literal["plain", "kl", "softvq"]


class Pull(Section):
    """What pulls the latents."""

    objective: Literal[
        "none",
        "flow_prior",
        "likelihood",
        "elbo",
        "sds",
        "dmd",
        "sliced_w2",
        "mmd",
        "moments",
        "kl",
    ]
    num_draws: int = Field(ge=1, le=1024)
    """Draws of noise and time for each latent, of the objectives that ask a flow."""
    t_max: float = Field(gt=0, lt=1)
    """likelihood: the largest time, where the weight t / (1 - t) ends; dmd: times lie in (1 - t_max, t_max)."""
    fake_updates: int = Field(ge=1, le=100)
    """dmd: updates of the flow of the latents for one of the autoencoder."""
    fake_lr: float = Field(gt=0, le=1)
    """dmd: its learning rate."""

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if self.objective == "dmd" and self.t_max <= 0.5:
            raise ValueError(
                f"align.t_max must be above 0.5 with align.objective dmd, found {self.t_max}: "
                "its times lie between 1 - t_max and t_max"
            )
        return self


class Align(Pull):
    """What pulls the latents, and how hard."""

    weight: float = Field(ge=0)
    """Factor on the objective, a mean over vectors and dims."""


class Guidance(Section):
    """Classifier-free guidance of the guided figures; the others have none."""

    scale: float = Field(ge=1)
    schedule: Literal["linear", "constant"]
    low: float = Field(ge=0, lt=1)
    """First time of the head (0 noise, 1 data) that is guided."""
    high: float = Field(gt=0, le=1)
    """Where that ends."""

    @model_validator(mode="after")
    def _interval_is_one(self) -> Self:
        if self.low >= self.high:
            raise ValueError(
                f"guidance.low ({self.low}) must be below guidance.high ({self.high}); "
                "for no guidance set guidance.scale to 1"
            )
        return self


class Evaluation(Section):
    """What judges samples and reconstructions, and against which images."""

    extractor: Literal["auto", "none"]
    """auto: the shipped classifier for digits, Inception for other images."""
    weights: str | None
    """File of torch-fidelity's Inception weights; null takes those in torch's hub folder, or downloads them."""
    reference: str | None
    """Real images for the samples: a folder, or ADM's .npz; null takes the held-out images."""

    @model_validator(mode="after")
    def _nothing_is_without_effect(self) -> Self:
        for name, value in (("weights", self.weights), ("reference", self.reference)):
            if self.extractor == "none" and value is not None:
                raise ValueError(
                    f"evaluation.{name} has no effect with evaluation.extractor none; set it to null"
                )
        return self


class OptimizerScale(Section):
    """AdamW; betas (0.9, beta2)."""

    lr: float = Field(gt=0, le=10)
    warmup_steps: int = Field(ge=0)
    schedule: Literal["cosine", "constant"]
    beta2: float = Field(gt=0, lt=1)
    weight_decay: float = Field(ge=0, le=10)
    max_grad_norm: float = Field(gt=0)
    ema_decay: float = Field(ge=0, lt=1)


class Training(Section):
    """What every training stage has."""

    steps: int = Field(ge=1)
    log_steps: int = Field(ge=1)
    checkpoint_steps: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]
    optimizer: OptimizerScale

    @model_validator(mode="after")
    def _cadences_fit(self) -> Self:
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be fewer than steps ({self.steps})"
            )
        if self.log_steps > self.steps:
            raise ValueError(f"log_steps ({self.log_steps}) must be at most steps ({self.steps})")
        return self


class LargeTraining(Training):
    """What a training stage of the pipeline has besides."""

    compile: bool
    """Run the modules through torch.compile."""
    accumulate: int = Field(ge=1)
    """Parts of a batch whose gradients are added up before an update; memory falls with it."""

    @property
    def plan(self) -> dict[str, Any]:
        """The arguments of the session's `Plan`."""
        return {
            "num_steps": self.steps,
            "log_steps": self.log_steps,
            "checkpoint_steps": self.checkpoint_steps,
            "precision": self.precision,
            "accumulate": self.accumulate,
            "compile": self.compile,
        }

    def _divides(self, name: str, batch: int) -> None:
        if batch % self.accumulate:
            raise ValueError(f"accumulate ({self.accumulate}) must divide {name} ({batch})")


class ImagesScale(Section):
    """Pixels."""

    size: int = Field(ge=1, le=4096)


class ExtractScale(Section):
    """Batches and caps of the feature extraction."""

    batch_images: int = Field(ge=1)
    max_vectors: int = Field(ge=100)
    """At most so many training vectors, evenly over the images, and a tenth held out; gaussian draws as many."""
    max_images: int | None = Field(ge=1)
    """At most so many training images are looked at, evenly over the classes, and a tenth held out; null: all."""


class ProjectScale(Section):
    """Dimension d of targets and latents."""

    dim: int = Field(ge=1, le=4096)


class FlowScale(LargeTraining):
    """The flow prior's velocity and its training."""

    width: int = Field(ge=8)
    depth: int = Field(ge=1)
    batch_vectors: int = Field(ge=1)
    time_groups: int = Field(ge=1)
    """Groups of a batch that share a time, and with it the modulation."""
    eval_vectors: int = Field(ge=100)

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.batch_vectors % self.time_groups:
            raise ValueError(
                f"time_groups ({self.time_groups}) must divide batch_vectors ({self.batch_vectors})"
            )
        self._divides("time_groups", self.time_groups)
        return self


class Perceptual(Section):
    """LPIPS-VGG in the reconstruction loss."""

    weight: float = Field(ge=0)
    """Factor; at 0 nothing of it is built or computed."""
    warmup_steps: int = Field(ge=0)
    """Over which the factor rises from 0."""
    pretrained: bool
    """false: VGG16 with random weights, to try a machine out."""


class Adversarial(Section):
    """A discriminator on a frozen transformer."""

    weight: float = Field(ge=0)
    """Factor of the hinge losses; at 0 nothing of it is built or computed."""
    start_step: int = Field(ge=0)
    lecam: float = Field(ge=0)
    consistency: float = Field(ge=0)
    backbone: str
    """What timm calls the transformer, or local-dir:/folder."""
    pretrained: bool
    """false: a transformer with random weights, to try a machine out."""
    lr: float = Field(gt=0, le=1)
    """Of the heads, constant."""


class SoftVQ(Section):
    """The softvq bottleneck; read with autoencoder.bottleneck softvq alone."""

    num_codebooks: int = Field(ge=1)
    num_codes: int = Field(ge=2)
    temperature: float = Field(gt=0)
    entropy_weight: float = Field(ge=0)
    representation_weight: float = Field(ge=0)
    """Of the agreement with a frozen transformer's patch tokens (digits: their semantic network's)."""
    representation_width: int = Field(ge=8)
    representation_model: str | None
    """What timm calls the transformer, or local-dir:/folder; null for digits."""
    representation_pretrained: bool
    """false: random weights, to try a machine out."""


class AutoencoderScale(LargeTraining):
    """The autoencoder and its training."""

    encoder: str | None
    """Trained transformer that the encoder starts from, by timm's name or local-dir:/folder; null: from scratch."""
    layer_scale: float | None = Field(gt=0)
    """Start of the factor on each residual branch that is trained from scratch; null: no such factors."""
    augment: Literal["none", "crop_flip"]
    """crop_flip: a random crop of 0.8 to 1 of the short side, mirrored half of the time."""
    gradient_checkpointing: bool
    """Compute each block again in the backward pass; memory falls, work grows by a third."""
    patch_size: int = Field(ge=1)
    num_latents: int = Field(ge=1)
    width: int = Field(ge=8)
    depth: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    batch_images: int = Field(ge=1)
    eval_steps: int = Field(ge=1)
    """Updates between two looks at the alignment of the validation latents."""
    eval_latents: int = Field(ge=100)
    softvq: SoftVQ
    perceptual: Perceptual
    adversarial: Adversarial

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        if self.encoder is not None and self.layer_scale is None:
            raise ValueError(
                "layer_scale: a trained encoder has factors on its branches; give a start for the decoder's, "
                "such as 0.1"
            )
        if self.eval_steps > self.steps:
            raise ValueError(f"eval_steps ({self.eval_steps}) must be at most steps ({self.steps})")
        if self.adversarial.weight and self.adversarial.start_step >= self.steps:
            raise ValueError(
                f"adversarial.start_step ({self.adversarial.start_step}) must be below steps ({self.steps}), "
                "or adversarial.weight 0"
            )
        self._divides("batch_images", self.batch_images)
        return self


class EncodeScale(Section):
    """Batches of the encoding."""

    batch_images: int = Field(ge=1)
    flip: bool
    """Also encode each image's mirror image."""
    precision: Literal["fp32", "bf16"]


class MARScale(LargeTraining):
    """MAR and its training."""

    width: int = Field(ge=8)
    encoder_depth: int = Field(ge=1)
    decoder_depth: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_buffer: int = Field(ge=1)
    head_width: int = Field(ge=8)
    head_depth: int = Field(ge=1)
    head_draws: int = Field(ge=1)
    """Draws of noise and time for each masked token."""
    dropout: float = Field(ge=0, lt=1)
    label_dropout: float = Field(ge=0, lt=1)
    mask_ratio_low: float = Field(ge=0, le=1)
    """Least share of masked tokens; the share is 1 - |N(0, mask_ratio_std)|, not below it."""
    mask_ratio_std: float = Field(gt=0)
    decay: Literal["matrices", "linear", "authors"]
    """What weight decay falls on: all matrices, linear maps alone (no tables), or all but the head."""
    batch_images: int = Field(ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        self._divides("batch_images", self.batch_images)
        return self


class SampleScale(Section):
    """How many samples, and how finely they are drawn."""

    num_samples: int = Field(ge=10)
    batch_images: int = Field(ge=1)
    num_iterations: int = Field(ge=1)
    head_steps: int = Field(ge=1)
    final_head_steps: int | None = Field(ge=1)
    """Steps of the head in the last iteration, towards which they fall from head_steps; null: as many."""
    solver: Literal["euler", "heun"]
    churn: float = Field(ge=0)
    """Noise of the head's SDE; 0 is the ODE."""
    temperature: float = Field(gt=0)
    precision: Literal["fp32", "bf16"]
    compile: bool
    """Run MAR through torch.compile."""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.final_head_steps is not None and self.final_head_steps > self.head_steps:
            raise ValueError(
                f"final_head_steps ({self.final_head_steps}) must be at most head_steps ({self.head_steps})"
            )
        if self.churn and self.solver != "euler":
            raise ValueError(f"churn ({self.churn}) needs solver euler, found {self.solver}")
        return self


class Preset(Section):
    """One scale of everything."""

    images: ImagesScale
    extract_features: ExtractScale
    project: ProjectScale
    train_flow: FlowScale
    train_ae: AutoencoderScale
    encode_latents: EncodeScale
    train_mar: MARScale
    sample_eval: SampleScale

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        size, patch = self.images.size, self.train_ae.patch_size
        if size % patch:
            raise ValueError(f"train_ae.patch_size ({patch}) must divide images.size ({size})")
        if self.sample_eval.num_iterations > self.train_ae.num_latents:
            raise ValueError(
                f"sample_eval.num_iterations ({self.sample_eval.num_iterations}) must be at most "
                f"train_ae.num_latents ({self.train_ae.num_latents}): an iteration reveals a token or more"
            )
        return self


class Params(Section):
    """The whole file."""

    seed: int = Field(ge=0, lt=2**32)
    preset: str
    images: Images
    prior: Prior
    project: Project
    autoencoder: Autoencoder
    align: Align
    guidance: Guidance
    evaluation: Evaluation
    presets: dict[str, Preset]

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.preset not in self.presets:
            raise ValueError(
                f"preset: found {self.preset!r}, {_allowed(self.preset, self.presets)}"
            )
        if self.on_digits:
            self._digits_fit()
        elif self.prior.source == "discrete" and self.prior.path is None:
            raise ValueError(
                "prior.path must name the checkpoint of a VQ tokenizer (LlamaGen's vq_ds16_c2i.pt) with prior.source "
                "discrete and images other than digits, found null"
            )
        softvq, num_latents = self.scale.train_ae.softvq, self.scale.train_ae.num_latents
        if self.autoencoder.bottleneck == "softvq" and num_latents % softvq.num_codebooks:
            raise ValueError(
                f"presets.{self.preset}.train_ae.softvq.num_codebooks ({softvq.num_codebooks}) must divide "
                f"num_latents ({num_latents})"
            )
        if self.guidance.scale != 1 and self.scale.train_mar.label_dropout == 0:
            raise ValueError(
                f"guidance.scale: {self.guidance.scale} needs presets.{self.preset}.train_mar.label_dropout above 0, "
                "else there is no model without a class to guide away from"
            )
        return self

    def _digits_fit(self) -> None:
        here = f"presets.{self.preset}"
        if self.scale.images.size != DIGITS_SIZE:
            raise ValueError(
                f"{here}.images.size: digits are 8 x 8, found {self.scale.images.size}; "
                "with this preset set images.source and images.path to your own images"
            )
        if self.images.path is not None:
            raise ValueError(
                f"images.path has no effect with preset {self.preset}, whose 8 pixels mean digits; set "
                "images.source to imagefolder or webdataset, or images.path to null"
            )
        train_ae = self.scale.train_ae
        for name in ("perceptual", "adversarial"):
            if getattr(train_ae, name).weight:
                raise ValueError(
                    f"{here}.train_ae.{name}.weight must be 0 with digits: its network takes three "
                    "channels, digits have one"
                )
        for name, value, neutral in (
            ("encoder", train_ae.encoder, None),
            ("augment", train_ae.augment, "none"),
            ("softvq.representation_model", train_ae.softvq.representation_model, None),
        ):
            if value != neutral:
                raise ValueError(
                    f"{here}.train_ae.{name} must be {neutral or 'null'} with digits, found {value!r}"
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
        scale = self.scale
        shared = (
            ("train_flow.time_groups", scale.train_flow.time_groups, scale.train_flow.accumulate),
            ("train_ae.batch_images", scale.train_ae.batch_images, scale.train_ae.accumulate),
            ("train_mar.batch_images", scale.train_mar.batch_images, scale.train_mar.accumulate),
        )
        lines = [
            f"presets.{self.preset}.{name}: {value} in {parts} part{'s' * (parts > 1)} cannot be shared "
            f"by {ranks} ranks; take a multiple of {parts * ranks}, or another launch"
            for name, value, parts in shared
            if value % (parts * ranks)
        ]
        if lines:
            raise ParamsError("\n".join(lines))

    @property
    def on_digits(self) -> bool:
        """Whether the images are digits."""
        source = self.images.source
        return source == "digits" or (source == "auto" and self.scale.images.size == DIGITS_SIZE)

    @property
    def scale(self) -> Preset:
        """The chosen preset."""
        return self.presets[self.preset]

    @property
    def image_source(self) -> dict[str, Any]:
        """The arguments of `flowprior.images.sets.open_images`, but for the split."""
        source, path = self.images.source, None
        if self.on_digits:
            source = "digits"
        else:
            source = "imagefolder" if source == "auto" else source
            path = str(state_root(ROOT) / (self.images.path or "data/images"))
        return {
            "source": source,
            "split_seed": self.images.split_seed,
            "size": self.scale.images.size,
            "path": path,
            "max_corrupt": self.images.max_corrupt,
        }

    def shaping(self, stage: str) -> dict[str, Any]:
        """What the data of a stage depend on: `tracked`, but for how its figures are come by."""
        return {name: value for name, value in self.tracked(stage).items() if name != "evaluation"}

    def tracked(self, stage: str) -> dict[str, Any]:
        """What the result of a stage depends on, as plain values: its science and its scale."""
        plain = self.model_dump(mode="json")
        scale = plain["presets"][self.preset]
        science = {name: plain[name] for name in SCIENCE[stage]}
        return science | {f"scale.{name}": scale[name] for name in SCALE[stage]}


OF_DIGITS = ("semantic", "low_level", "discrete", "shuffled")
"""Priors that, with digits, are features of the digits themselves."""
DIGITS_SIZE = 8
"""Pixels along a side."""

SCIENCE: dict[str, tuple[str, ...]] = {
    "extract_features": ("seed", "images", "prior"),
    "project": ("seed", "project"),
    "train_flow": ("seed",),
    "train_ae": ("seed", "images", "autoencoder", "align"),
    "encode_latents": ("seed", "images", "evaluation"),
    "train_mar": ("seed",),
    "sample_eval": ("seed", "images", "guidance", "evaluation"),
}
"""Sections at the top of the file that a stage reads; `dvc.yaml` tracks the same."""

SCALE: dict[str, tuple[str, ...]] = {
    "extract_features": ("images", "extract_features"),
    "project": ("project",),
    "train_flow": ("train_flow",),
    "train_ae": ("images", "train_ae"),
    "encode_latents": ("images", "encode_latents"),
    "train_mar": ("train_mar",),
    "sample_eval": ("images", "sample_eval"),
}
"""Sections of the preset that a stage reads."""


class ParamsError(ValueError):
    """The parameters cannot be used; one line for each mistake."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2, which DVC writes: 5e-05 is a number, `on` a word; a key stands once."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _mapping_once(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    if twice:
        raise ParamsError(f"the key {twice[0]!r} stands twice{node.start_mark}")
    return {
        key: loader.construct_object(value, deep=True)
        for key, (_, value) in zip(keys, node.value, strict=True)
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_once)


def load_params(path: Path = ROOT / "params.yaml") -> Params:
    """Read and check the whole file.

    Raises:
        ParamsError: It is absent, not YAML, or holds a value that cannot be used.
    """
    return parse(read_yaml(path))


def read_yaml(path: Path) -> object:
    """Read a file by the rules of YAML 1.2.

    Raises:
        ParamsError: It is absent or not YAML.
    """
    try:
        return read_text(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from None


def read_text(text: str, name: str) -> object:
    """Read a text by the rules of YAML 1.2.

    Raises:
        ParamsError: It is not YAML; `name` says what is not.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ParamsError:
        raise
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        raise ParamsError(f"{name} is not YAML: {error}") from None


def parse(tree: object) -> Params:
    """Check parameters that were read; see `parse_as`."""
    return parse_as(Params, tree)


S = typing.TypeVar("S", bound=Section)


def parse_as(kind: type[S], tree: object) -> S:
    """Check parameters that were read, as a section of the given kind.

    Raises:
        ParamsError: One line for each mistake: the key, what was found, what is allowed.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = (_explain(kind, dict(e)) for e in error.errors())
        raise ParamsError("\n".join(lines)) from None


def check(name: str, every_rank: bool = False, load: Callable[[], Section] | None = None) -> None:
    """First thing in a stage that runs as a script: stop with a readable message if the parameters are wrong.

    Args:
        name: The stage's `__name__`; nothing happens where it is imported.
        every_rank: Whether the stage knows what to do with many ranks. Else, launched on many, it runs
            on the first alone and the others leave at once.
        load: Reads the parameters; `load_params` by default.
    """
    if name != "__main__":
        return
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if not every_rank:
        if os.environ.get("RANK", "0") != "0":
            sys.exit(0)
        if "LOCAL_WORLD_SIZE" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
            del os.environ["OMP_NUM_THREADS"]  # torchrun's, for ranks that share the cores
        for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(variable, None)
    try:
        found = (load or load_params)()
        if isinstance(found, Params):
            found.check_ranks(ranks)
    except ParamsError as error:
        print(f"params.yaml cannot be used:\n{error}", file=sys.stderr)
        if "DVC_STAGE" in os.environ:
            print(
                "Nothing was run. DVC removed this stage's outputs before it started: once the file is right "
                "again, `dvc checkout` brings them back.",
                file=sys.stderr,
            )
        sys.exit(2)


def state_root(root: Path) -> Path:
    """Where checkpoints and tracking live: the repository itself, also for an experiment in a temporary copy."""
    return Path(os.environ.get("DVC_ROOT", root))


def _explain(kind: type[Section], error: dict[str, Any]) -> str:
    """One mistake in one line."""
    location: tuple[Any, ...] = error["loc"]
    key = ".".join(str(part) for part in location)
    found = error["input"]
    if error["type"] == "extra_forbidden":
        siblings = _fields_at(kind, location[:-1])
        return f"{key}: unknown key, {_allowed(str(location[-1]), siblings)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "literal_error":
        expected = _choices_at(kind, location)
        return f"{key}: found {found!r}, {_allowed(str(found), expected)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return message if not key or message.startswith(key.split(".")[0]) else f"{key}: {message}"
    return f"{key}: found {found!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _allowed(found: str, choices: typing.Iterable[str]) -> str:
    names = sorted(choices)
    near = difflib.get_close_matches(found, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"allowed: {', '.join(names)}{hint}"


def _annotation_at(kind: type[Section], location: tuple[Any, ...]) -> Any:
    """The annotation of the field at a path of keys."""
    annotation: Any = kind
    for part in location:
        if typing.get_origin(annotation) is dict:
            annotation = typing.get_args(annotation)[1]
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(part))
            annotation = None if field is None else field.annotation
        elif isinstance(annotation, types.UnionType):
            continue
    return annotation


def _fields_at(kind: type[Section], location: tuple[Any, ...]) -> list[str]:
    annotation = _annotation_at(kind, location)
    return list(annotation.model_fields) if hasattr(annotation, "model_fields") else []


def _choices_at(kind: type[Section], location: tuple[Any, ...]) -> list[str]:
    return [str(choice) for choice in typing.get_args(_annotation_at(kind, location))]


if __name__ == "__main__":
    check(__name__)
