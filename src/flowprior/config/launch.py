"""How a script of the pipeline starts: parameters are checked first of all, before torch is imported."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from flowprior.config.messages import ParamsError
from flowprior.config.presets import load_params
from flowprior.config.schema import Params
from flowprior.core.section import Section

S = TypeVar("S", bound=Section)


def check_params(
    name: str, every_rank: bool = False, load: Callable[[], Section] = load_params
) -> None:
    """First thing in a stage that runs as a script: stop with a readable message if the parameters are wrong.

    Args:
        name: The stage's `__name__`; nothing happens where it is imported.
        every_rank: Whether the stage knows what to do with many ranks. Else, launched on many, it runs
            on the first alone and the others leave at once.
        load: Reads the parameters.
    """
    if name != "__main__":
        return
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    first = os.environ.get("RANK", "0") == "0"
    if not every_rank:
        if not first:
            sys.exit(0)
        if "LOCAL_WORLD_SIZE" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
            del os.environ["OMP_NUM_THREADS"]  # torchrun's, for ranks that share the cores
        for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(variable, None)
    try:
        found = load()
        if isinstance(found, Params):
            found.check_ranks(ranks)
    except ParamsError as error:
        print(f"the parameters cannot be used:\n{error}", file=sys.stderr)
        if "DVC_STAGE" in os.environ:
            print(
                "Nothing was run. DVC removed this stage's outputs before it started: once the file is right "
                "again, `dvc checkout` brings them back.",
                file=sys.stderr,
            )
        sys.exit(2)
    if isinstance(found, Params) and first:
        for note in found.notes():
            print(f"note: {note}", file=sys.stderr)
