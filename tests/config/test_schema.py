"""A mistake in the parameters is one readable line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flowprior.config.messages import ParamsError
from flowprior.config.presets import resolve
from flowprior.config.schema import STAGES, Params

from .committed import PRESETS, params, setting, tree

BAD: list[tuple[str, Any, list[str]]] = [
    ("sed", 1, ["sed", "unknown", "'seed'"]),
    ("seed", -1, ["seed", "-1"]),
    ("seed", 2**32, ["seed", "4294967296"]),
    ("seed", 1.5, ["seed", "1.5"]),
    ("seed", True, ["seed", "True"]),
    ("images.source", "digit", ["images.source", "'digit'", "'digits'"]),
    ("images.source", None, ["images.source", "None"]),
    ("images.path", "somewhere", ["images.path", "digits", "images.source", "'somewhere'"]),
    ("images.path", None, ["images.path", "None"]),
    ("images.channels", 2, ["images.channels", "2"]),
    ("images.held_out", "b-*.tar", ["patterns of shards", "digits"]),
    ("images.split_sed", 0, ["images.split_sed", "'split_seed'"]),
    ("images.max_corrupt", 1.0, ["images.max_corrupt", "1.0"]),
    ("images.max_corrupt", -0.1, ["images.max_corrupt", "-0.1"]),
    ("images.size", 16, ["images.size", "8 x 8", "16", "images.source"]),
    ("prior.source", "semantics", ["prior.source", "'semantic'"]),
    ("prior.source", "file", ["prior.path", ".npy"]),
    ("prior.path", "x.npy", ["prior.path", "semantic"]),
    ("prior.model", "vit_tiny", ["prior.model", "no effect", "digits"]),
    ("prior.revision", "main", ["prior.revision", "no effect"]),
    ("prior.modle", None, ["prior.modle", "'model'"]),
    ("prior.encoder", "tim", ["prior.encoder", "'timm'", "plugins.encoders"]),
    ("project.operator", "PCA", ["project.operator", "pca"]),
    ("project.dims", 4, ["project.dims", "unknown", "'dim'"]),
    ("project.dim", 0, ["project.dim", "0"]),
    ("autoencoder.model", "vti", ["autoencoder.model", "'vit'", "plugins.autoencoder"]),
    ("autoencoder.bottleneck", "vae", ["autoencoder.bottleneck", "plain"]),
    ("align.objective", "flow", ["align.objective", "'flow_prior'", "plugins.alignment"]),
    ("align.weight", -0.1, ["align.weight", "-0.1"]),
    ("align.weight", "0.01", ["align.weight", "'0.01'"]),
    ("align.weight", float("nan"), ["align.weight", "nan"]),
    ("align.weight", float("inf"), ["align.weight", "inf"]),
    ("align.wieght", 1, ["align.wieght", "'weight'"]),
    ("align.num_draws", 0, ["align.num_draws", "0"]),
    ("align.options", None, ["align.options", "None"]),
    ("align", None, ["align"]),
    ("align", [1], ["align"]),
    ("generator.model", "maar", ["generator.model", "'mar'", "plugins.generators"]),
    ("guidance.scale", 0.5, ["guidance.scale", "0.5"]),
    ("guidance.schedule", "cosine", ["guidance.schedule", "linear"]),
    ("guidance.low", 1.0, ["guidance.low", "1.0"]),
    ("guidance.high", 0.0, ["guidance.high", "0.0"]),
    ("evaluation.judge", "inceptoin", ["evaluation.judge", "digits", "none", "'inception'"]),
    ("evaluation.judge", None, ["evaluation.judge", "None"]),
    ("evaluation.weights", "w.pth", ["evaluation.weights", "no effect", "digits"]),
    ("evaluation.reference", "x.npz", ["evaluation.reference", "no effect", "digits"]),
    ("evaluation.referens", None, ["evaluation.referens", "'reference'"]),
    ("extract_features.batch_images", 0, ["extract_features.batch_images"]),
    ("train_flow.width", "wide", ["train_flow.width", "'wide'"]),
    ("train_flow.time_groups", 63, ["time_groups", "divide"]),
    ("train_flow.optimizer.lrr", 1, ["train_flow.optimizer.lrr", "'lr'"]),
    ("train_flow.steps", 0, ["train_flow.steps", "0"]),
    ("train_flow.accumulate", 5, ["accumulate", "divide", "time_groups"]),
    ("train_ae.patch_size", 3, ["patch_size", "divide"]),
    ("train_ae.num_heads", 5, ["num_heads", "divide"]),
    ("train_ae.precision", "fp16", ["train_ae.precision", "bf16"]),
    ("train_ae.encoder", "vit_tiny", ["layer_scale", "0.1"]),
    ("train_ae.augment", "crop_flip", ["train_ae.augment", "none with digits"]),
    ("train_ae.augment", "crop", ["train_ae.augment", "crop_flip"]),
    ("train_ae.layer_scale", 0.0, ["layer_scale", "0.0"]),
    ("train_ae.gradient_checkpointing", 1, ["gradient_checkpointing", "1"]),
    ("train_ae.perceptual.weight", 1.0, ["perceptual.weight", "must be 0"]),
    ("train_ae.adversarial.weight", 0.2, ["adversarial.weight", "must be 0"]),
    ("train_ae.softvq.num_codes", 1, ["softvq.num_codes", "1"]),
    ("train_ae.softvq.temperature", 0, ["softvq.temperature", "0"]),
    ("train_ae.softvq.codebooks", 4, ["softvq.codebooks", "'num_codebooks'"]),
    ("train_ae.accumulate", 3, ["accumulate", "divide", "batch_images"]),
    ("train_ae.log_steps", 0, ["train_ae.log_steps", "0"]),
    ("train_ae.eval_steps", 0, ["train_ae.eval_steps", "0"]),
    ("encode_latents.flip", 1, ["encode_latents.flip"]),
    ("train_mar.dropout", 1.0, ["train_mar.dropout"]),
    ("train_mar.width", 0, ["train_mar.width", "0"]),
    ("train_mar.label_dropout", 0.0, ["guidance.scale", "label_dropout"]),
    ("train_mar.num_heads", 7, ["num_heads"]),
    ("train_mar.mask_ratio_low", 1.1, ["mask_ratio_low", "1.1"]),
    ("train_mar.mask_ratio_std", 0.0, ["mask_ratio_std", "0.0"]),
    ("train_mar.decay", "all", ["train_mar.decay", "authors", "matrices"]),
    ("train_mar.optimizer.beta2", 1.0, ["beta2", "1.0"]),
    ("train_mar.compile", "yes", ["train_mar.compile", "'yes'"]),
    ("sample_eval.num_iterations", 9, ["num_iterations", "num_latents"]),
    ("sample_eval.solver", "rk4", ["sample_eval.solver", "heun"]),
    ("sample_eval.final_head_steps", 21, ["final_head_steps", "head_steps (20)"]),
    ("sample_eval.temperature", 0.0, ["sample_eval.temperature", "0.0"]),
    ("trian_ae", {}, ["trian_ae", "'train_ae'"]),
]
"""Changes of the digits' parameters, and what the message says."""

BAD_ELSEWHERE: list[tuple[str, str, Any, list[str]]] = [
    ("imagenet", "train_ae.layer_scale", None, ["layer_scale", "0.1"]),
    ("imagenet", "train_ae.adversarial.start_step", 10**6, ["start_step", "below steps"]),
    ("imagenet", "train_mar.widht", 1, ["train_mar.widht", "'width'"]),
    ("imagenet", "prior.encoder", "digits", ["prior.encoder", "8 x 8", "timm"]),
    ("imagenet", "evaluation.judge", "digits", ["evaluation.judge", "8 x 8", "inception"]),
    ("smoke", "sample_eval.churn", 0.5, ["churn", "euler", "heun"]),
    ("smoke", "train_mar.width", 0, ["train_mar.width", "0"]),
]
"""Likewise, of another preset's."""


def message_of(root: Path, wrong: object) -> str:
    """What is said of parameters that cannot be used."""
    with pytest.raises(ParamsError) as error:
        resolve(root, wrong)
    return str(error.value)


@pytest.mark.parametrize(("key", "value", "said"), BAD, ids=lambda x: str(x)[:40])
def test_a_bad_value_is_told_with_key_finding_and_what_is_allowed(
    root: Path, key: str, value: Any, said: list[str]
) -> None:
    message = message_of(root, setting(key, value))
    assert all(part in message for part in said), message
    assert len(message) < 400, message


@pytest.mark.parametrize(("preset", "key", "value", "said"), BAD_ELSEWHERE, ids=str)
def test_a_value_that_another_preset_cannot_use_is_told(
    root: Path, preset: str, key: str, value: Any, said: list[str]
) -> None:
    message = message_of(root, setting(key, value, preset))
    assert all(part in message for part in said), message
    assert len(message) < 400, message


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_chosen(root: Path, preset: str) -> None:
    assert params(root, preset).preset == preset


def test_the_imagenet_preset_needs_a_place_of_images_and_nothing_else(root: Path) -> None:
    """`-S preset=imagenet -S images.path=data/images/imagenet`: features of DINOv2."""
    cfg = params(root, "imagenet", images__path="data/images/imagenet")
    assert cfg.train_mar.width == 768
    assert not cfg.on_digits
    assert cfg.image_source["source"] == "imagefolder"
    assert cfg.image_source["path"] == str(root / "data/images/imagenet")
    assert cfg.image_source["size"] == 256


@pytest.mark.parametrize("variable", ["DVC_ROOT", "FLOWPRIOR_HOME"])
def test_a_path_of_images_is_the_repositorys_also_in_a_temporary_copy(
    root: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/repository")
    inside = params(root, "imagenet", images__path="data/mine")
    assert inside.image_source["path"] == "/repository/data/mine"
    elsewhere = params(root, "imagenet", images__path="/elsewhere")
    assert elsewhere.image_source["path"] == "/elsewhere"


CONTRADICTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"images__source": "digits"}, ["images.size", "8 x 8", "your own images"]),
    ({"prior__source": "discrete"}, ["prior.path", "checkpoint", "LlamaGen"]),
    ({"prior__source": "gaussian", "prior__path": "x"}, ["prior.path", "no effect"]),
    ({"prior__source": "gaussian", "prior__model": "x"}, ["prior.model", "no effect"]),
    ({"prior__model": "x", "prior__path": "y"}, ["prior.path and prior.model"]),
    ({"prior__path": "y", "prior__revision": "main"}, ["prior.revision", "hub"]),
    ({"guidance__low": 0.6, "guidance__high": 0.5}, ["guidance.low (0.6)", "guidance.high"]),
    ({"align__objective": "dmd", "align__t_max": 0.5}, ["align.t_max", "above 0.5", "dmd"]),
    (
        {"autoencoder__bottleneck": "softvq", "train_ae__softvq__num_codebooks": 5},
        ["num_codebooks (5)", "num_latents (64)"],
    ),
]


@pytest.mark.parametrize(("settings", "said"), CONTRADICTIONS, ids=str)
def test_settings_that_contradict_one_another_are_told(
    root: Path, settings: dict[str, Any], said: list[str]
) -> None:
    message = message_of(root, tree("imagenet", **settings))
    assert all(part in message for part in said), message


@pytest.mark.parametrize("key", ["weights", "reference"])
def test_what_only_inception_reads_needs_inception(root: Path, key: str) -> None:
    settings = {f"evaluation__{key}": "file"}
    cfg = params(root, "imagenet", **settings)
    assert getattr(cfg.evaluation, key) == "file"
    wrong = tree("imagenet", evaluation__judge="none", **settings)
    assert f"evaluation.{key} has no effect with evaluation.judge none" in message_of(root, wrong)


@pytest.mark.parametrize(
    ("ranks", "wrong"),
    [(1, []), (8, []), (3, ["train_flow", "train_ae", "train_mar"]), (1024, ["train_ae"])],
)
def test_batches_that_ranks_cannot_share_are_told_at_the_start(
    root: Path, ranks: int, wrong: list[str]
) -> None:
    """All of them, by any stage: at the paper's sizes the last would find out after days."""
    cfg = params(root, "imagenet")
    if not wrong:
        cfg.check_ranks(ranks)
        return
    with pytest.raises(ParamsError) as error:
        cfg.check_ranks(ranks)
    lines = str(error.value).splitlines()
    assert [line.split(".")[0] for line in lines] == wrong
    assert all(f"by {ranks} ranks" in line for line in lines)


def keys_of(kind: type[BaseModel], above: str = "") -> Iterator[str]:
    """Dotted names of the fields of a section and of those below it."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{above}{name}.")
        else:
            yield f"{above}{name}"


@pytest.mark.parametrize("preset", PRESETS)
def test_sections_of_the_file_and_the_preset_equal_the_classes(root: Path, preset: str) -> None:
    """Nothing has a default: each key stands in one of the two files."""
    assert set(resolve(root, tree(preset)).origins) | OPTIONS == set(keys_of(Params))


OPTIONS = {
    f"{section}.options" for section in ("images", "prior", "autoencoder", "align", "generator")
}
"""Mappings that are empty in the shipped file."""


def test_every_section_but_the_preset_is_read_by_a_stage(root: Path) -> None:
    """A section that none names would change nothing, and DVC would not see it."""
    named = {section for sections in STAGES.values() for section in sections}
    assert named | {"preset"} == set(Params.model_fields)


def test_what_a_stage_tracks_is_plain_values_of_its_sections(root: Path) -> None:
    cfg = params(root)
    for stage, sections in STAGES.items():
        tracked = cfg.tracked(stage)
        assert tuple(tracked) == sections
        assert tracked["seed"] == cfg.seed
    assert cfg.tracked("train_ae")["align"]["weight"] == cfg.align.weight


def test_how_figures_are_come_by_does_not_shape_what_is_trained(root: Path) -> None:
    """Else another reference would train a generator anew."""
    before = params(root, "imagenet")
    after = params(root, "imagenet", evaluation__reference="x.npz")
    changed = [stage for stage in STAGES if before.behaviour(stage) != after.behaviour(stage)]
    assert changed == ["encode_latents", "sample_eval"]


def test_steps_within_the_warm_up_are_allowed_and_noted(root: Path) -> None:
    """`-S train_ae.steps=10` is how one tries things out."""
    assert params(root).notes() == []
    (note,) = params(root, train_ae__steps=100).notes()
    assert note.startswith("train_ae: all 100 steps lie in the warm-up of 100")
    assert "train_ae.optimizer.warmup_steps" in note
    assert (
        len(params(root, train_ae__steps=1, train_flow__steps=1, train_mar__steps=1).notes()) == 3
    )


def test_sessions_get_lengths_and_cadences_of_their_own_section(root: Path) -> None:
    cfg = params(root, train_mar__steps=17, seed=3)
    session = cfg.session("train_mar")
    assert session["plan"]["num_steps"] == 17
    assert session["seed"] == 3
    assert session["behaviour"] == cfg.behaviour("train_mar")
    assert session["config"] == cfg.tracked("train_mar")
