"""Headers of uncompressed tars that may come from strangers."""

import tarfile
from pathlib import Path
from reprlib import repr as brief
from typing import BinaryIO

from flowprior.core.io import ArtifactError, regular_size

MAX_TAR_HEADER_BYTES = 2**13
"""A name has at most 4096 bytes; and `tarfile` before Python 3.11.10 takes time quadratic in this."""


class _Headers:
    """A tar's file as `tarfile` is let see it: read in small pieces, and forward only.

    Else a header can have it take a terabyte of memory, or read in circles (CVE-2025-8194).
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header says that it has {count} bytes")
        return self._file.read(count)

    def seek(self, offset: int) -> int:
        if offset < self._file.tell() - 1:  # tarfile looks at the byte before a header
            raise tarfile.ReadError("a header leads backwards")
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def tar_members(path: Path) -> list[tarfile.TarInfo]:
    """The members of an uncompressed tar, in order: of each the header alone is read.

    `tarfile` itself takes a damaged header or a missing end for the end of the tar.

    Raises:
        ArtifactError: The file is absent, no such tar, cut short or damaged, or a member is not
            one piece of it.
    """
    size = regular_size(path)
    try:
        with path.open("rb") as file:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
                members: list[tarfile.TarInfo] = tar.getmembers()
            file.seek(tar.offset)
            ended = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except Exception as error:  # tarfile raises whatever the damaged bytes provoke
        raise ArtifactError(f"{path} is not an uncompressed tar: {error}") from None
    if not ended:
        raise ArtifactError(
            f"{path} is not an uncompressed tar, or cut short or damaged: "
            f"at byte {tar.offset} there is neither a header nor the end"
        )
    for info in members:
        if info.issparse() or (info.isreg() and not 0 <= info.size <= size - info.offset_data):
            raise ArtifactError(f"{path} holds {brief(info.name)}, which is not one piece of it")
    return members
