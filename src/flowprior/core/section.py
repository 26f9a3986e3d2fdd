"""What every section of the parameters is made of; pydantic only, so that mistakes are told without torch."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen and strict; an unknown key, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
