"""One process at a time does the same work."""

import os
from pathlib import Path
from typing import Any

from flowprior.core.locks import hold


def test_a_lock_is_let_go_by_a_process_that_dies(tmp_path: Path, holder: Any) -> None:
    """Killed without a chance to clean up: the next one waits for nobody."""
    process = holder(tmp_path / "lock")
    process.kill()
    process.wait()
    file = hold(tmp_path / "lock", "toy")
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    file.close()
