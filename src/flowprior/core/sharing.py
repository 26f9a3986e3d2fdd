"""The hub of Hugging Face, through its own package: artifacts come from there, and go there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from flowprior.core.artifacts import MANIFEST, open_artifact
from flowprior.core.hub import hub_file, hub_package, one_line
from flowprior.core.io import read_json

CARD = "README.md"


def fetch(
    name: str | Path,
    artifacts: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """A folder with artifacts: one here, or one of the hub's, of which their files and no others are downloaded.

    Args:
        name: A folder, or a repository of the hub (`organisation/name`); a folder comes first.
        artifacts: Where they lie in it.
        revision: Branch, tag or commit; all files are of one commit.
        token: For repositories that are private; by default the one that `hf auth login` stored.
        cache_dir: Where downloads lie; by default the hub's own cache.
        force_download: Whether to download what is there already.
        local_files_only: Whether to look into the cache alone.

    Returns:
        The folder. Nothing in it is verified yet; `flowprior.core.artifacts.open_artifact` does that.

    Raises:
        ArtifactError: Its manifest is no JSON.
        ValueError: There is neither such a folder nor such a repository, or it holds no artifact.
        RuntimeError: The hub cannot be reached or refuses, and the cache lacks a file.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    here = Path(name).expanduser()
    if here.is_dir():
        return here
    options = {
        "token": token,
        "cache_dir": cache_dir,
        "force_download": force_download,
        "local_files_only": local_files_only,
    }
    folder = here
    for home in map(PurePosixPath, artifacts):
        manifest = hub_file(str(name), (home / MANIFEST).as_posix(), revision=revision, **options)
        folder = [*manifest.parents][len(home.parts)]
        revision = folder.name  # the cache keeps a folder for each commit, by its name
        for path in _named(manifest):
            hub_file(str(name), (home / path).as_posix(), revision=revision, **options)
    return folder


def packed(path: Path, kind: str, made_by: str, subfolder: str = "") -> dict[str, Path]:
    """The files of an artifact, verified, by their paths in a repository.

    Args:
        path: The artifact's folder.
        kind: The kind it must be of.
        made_by: How it is made, for the message.
        subfolder: Of the repository.

    Raises:
        ArtifactError: It cannot be trusted.
    """
    artifact = open_artifact(path, kind, made_by)
    home = PurePosixPath(subfolder)
    return {
        (home / name).as_posix(): path / name for name in [MANIFEST, *artifact.manifest["files"]]
    }


def push(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload by flowprior",
    create_pr: bool = False,
) -> str:
    """Put files into a repository of the hub, in one commit; the repository is made if there is none.

    What an artifact of the same place had before and has no more is removed; the repository's history keeps it.

    Args:
        files: What goes there, by their paths in the repository.
        repo_id: The repository, `organisation/name`.
        private: Whether nobody else may read it, if it is new; by default as the organisation has it.
        revision: Branch, made if there is none; by default the main one.
        token: With the right to write; by default the one that `hf auth login` stored.
        commit_message: Of the commit.
        create_pr: Whether to propose the commit instead of making it.

    Returns:
        The address of the commit, or of the proposal.

    Raises:
        ValueError: `repo_id` is no name.
        RuntimeError: The hub cannot be reached, or refuses.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    hub = hub_package()
    api = hub.HfApi(token=token, library_name="flowprior")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = set(api.list_repo_files(repo_id, revision=revision))
        gone = sorted(_of_artifacts(api, repo_id, revision, there, files) - set(files))
        changes = [hub.CommitOperationDelete(path) for path in gone]
        changes += [
            hub.CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in sorted(files.items())
        ]
        made = api.create_commit(
            repo_id,
            changes,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    except hub.errors.HFValidationError as error:
        raise ValueError(one_line(error)) from None
    except Exception as error:  # each of the hub's transports raises errors of its own
        raise RuntimeError(f"{repo_id} cannot be pushed to the hub: {one_line(error)}") from error
    return str(made.pr_url if create_pr else made.commit_url)


def _of_artifacts(
    api: Any, repo_id: str, revision: str | None, there: set[str], files: Mapping[str, object]
) -> set[str]:
    """Files that manifests name which are about to be replaced, as far as they are there."""
    named = set()
    for path in files:
        if PurePosixPath(path).name == MANIFEST and path in there:
            old = Path(api.hf_hub_download(repo_id, path, revision=revision))
            home = PurePosixPath(path).parent
            named |= {(home / name).as_posix() for name in _named(old)}
    return named & there


def model_card(
    title: str,
    about: str,
    facts: Mapping[str, object],
    usage: str,
    license: str | None,
    tags: Sequence[str] = (),
) -> bytes:
    """The page that the hub shows of a repository: Markdown under a head of YAML.

    Args:
        title: Its heading.
        about: A paragraph.
        facts: A table's rows.
        usage: Python that loads it.
        license: The hub's word for the licence, for instance `apache-2.0`; without one the page says that there is
            none.
        tags: Words to be found by, beside `flowprior`.
    """
    head = {"library_name": "flowprior", "tags": ["flowprior", *tags]}
    if license is not None:
        head["license"] = license
    # JSON is YAML, whatever stands in it.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in sorted(head.items())), "---"]
    lines += ["", f"# {_line(title)}", "", about.strip(), "", "| | |", "|---|---|"]
    lines += [f"| {_line(key)} | {_line(value)} |" for key, value in facts.items()]
    lines += [f"| licence | {'none given' if license is None else _line(license)} |", ""]
    lines += ["```python", usage.strip(), "```", ""]
    return "\n".join(lines).encode()


def _line(value: object) -> str:
    """Text in a cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _named(manifest: Path) -> list[str]:
    """Files that a manifest names; one that lies elsewhere is left to `open_artifact`, which refuses it."""
    found = read_json(manifest)
    files = found.get("files") if isinstance(found, dict) else None
    names = [PurePosixPath(name) for name in files] if isinstance(files, dict) else []
    return sorted(
        name.as_posix() for name in names if not name.is_absolute() and ".." not in name.parts
    )
