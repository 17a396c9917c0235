"""What every section of the configuration is made of: its base, and the ranges that several keys share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from difalign.core.config_errors import FILE_PATTERN, NAME_PATTERN

Count = Annotated[int, Field(ge=1, lt=2**31)]
StepCount = Annotated[int, Field(ge=1, le=1000)]  # networks know a thousand levels of noise
StepIndex = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
FileName = Annotated[str, Field(min_length=1, pattern=FILE_PATTERN)]
PlainName = Annotated[str, Field(min_length=1, pattern=NAME_PATTERN)]


class Section(BaseModel):
    """A part of the configuration: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
