"""Git commands in a repository, with errors that repeat what git said."""

import subprocess
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path


class GitError(RuntimeError):
    """A git command failed; the message has the command and what git said."""


def git(root: Path, *command: str, stdin: bytes = b"") -> str:
    """What a git command prints, without the last newline.

    Raises:
        GitError: It failed.
    """
    return _run(root, command, stdin).decode(errors="surrogateescape").removesuffix("\n")


def export(root: Path, commit: str, folder: Path, paths: Sequence[str]) -> None:
    """Write files of a commit into a folder.

    Args:
        root: The repository.
        commit: The commit.
        folder: Where to.
        paths: Files and folders of the repository's root; those that the commit lacks are passed over. Results of
            experiments are left out.

    Raises:
        GitError: There is no such commit.
    """
    there = git(root, "ls-tree", "-z", "--name-only", commit, "--", *paths).split("\0")
    names = [name for name in there if name]
    packed = _run(root, ("archive", commit, "--", *names, ":!metrics/experiments"), b"")
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        tar.extractall(folder)  # of git itself, from a commit of the user's own repository


def _run(root: Path, command: tuple[str, ...], stdin: bytes) -> bytes:
    done = subprocess.run(
        ["git", *command], cwd=root, input=stdin, capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise GitError(
            f"git {' '.join(command)} in {root}: {said or f'exit status {done.returncode}'}"
        )
    return done.stdout
