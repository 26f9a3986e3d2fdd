"""Section: the strict, frozen base class of all sections of the parameters; pydantic only, without torch."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen and strict; an unknown key, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
