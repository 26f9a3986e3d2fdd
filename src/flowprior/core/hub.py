"""Files of models on the hub: from its cache or downloaded, and what is in them."""

from pathlib import Path
from typing import Any

from flowprior.core.extras import missing_extra


def hub_file(repository: str, *names: str, revision: str | None = None, **options: Any) -> Path:
    """The first of some files that a model on the hub has, from its cache or downloaded.

    The folder it lies in is named after the commit. With a commit as revision, what the cache has is
    taken without asking the hub.

    Args:
        repository: owner/model.
        names: Paths of files in it, the most wanted first.
        revision: Branch, tag or commit.
        options: Of `huggingface_hub.hf_hub_download`: token, cache_dir, force_download, local_files_only.

    Raises:
        ValueError: There is no such model, revision or file.
        RuntimeError: The hub cannot be reached or refuses, and the cache lacks the file.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    hub = hub_package()
    errors = hub.errors
    unreachable: Exception | None = None
    for name in names:
        try:
            return Path(hub.hf_hub_download(repository, name, revision=revision, **options))
        except errors.LocalEntryNotFoundError as error:
            unreachable = error
        except errors.EntryNotFoundError:
            continue
        except errors.HFValidationError:
            raise ValueError(
                f"{repository!r} is no folder that can be used here, and no name of a model on the hub (owner/model)"
            ) from None
        except errors.GatedRepoError as error:
            raise RuntimeError(
                f"{repository} is gated: accept its terms on https://huggingface.co/{repository}, then `hf auth login`"
            ) from error
        except errors.RepositoryNotFoundError:
            raise ValueError(
                f"the hub has no model {repository!r}, or a private one: then `hf auth login`"
            ) from None
        except errors.RevisionNotFoundError:
            raise ValueError(f"{repository} has no revision {revision!r} on the hub") from None
        except Exception as error:  # each of the hub's transports raises errors of its own
            unreachable = error
    if unreachable is None:
        raise ValueError(f"{repository} on the hub holds no {' or '.join(names)}")
    raise RuntimeError(
        f"{' or '.join(names)} of {repository} cannot be had from the hub: {one_line(unreachable)} "
        f"Where there is network, `hf download {repository} --local-dir /folder`, and name a copy of "
        "/folder instead of the model; or fill the hub's cache ($HF_HOME) there"
    ) from unreachable


def hub_package() -> Any:
    """The package huggingface_hub.

    Raises:
        ModuleNotFoundError: It is not installed; names the extra that brings it.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(missing_extra(error) or str(error), name=error.name) from None
    return huggingface_hub


def one_line(error: Exception) -> str:
    """What a library's error says, in one line and not at length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file, sorted.

    Raises:
        ValueError: It is not such a file, or not all of one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return sorted(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from None
