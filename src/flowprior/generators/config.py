"""The section `generator`: which model generates latents."""

from typing import Annotated, Any

from pydantic import AfterValidator

from flowprior.core.section import Section
from flowprior.generators.names import GENERATORS


class GeneratorChoice(Section):
    """Which model generates latents."""

    model: Annotated[str, AfterValidator(GENERATORS.check)]
    options: dict[str, Any]
    """Of a generator of your own: keyword arguments of its `build`."""
