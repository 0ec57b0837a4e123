"""What every section of a config is, and the kinds of values in them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Vector3 = tuple[Positive, Positive, Positive]
Size3 = tuple[Count, Count, Count]
# Of a picture or slice, or of a volume.
Size = Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)]
# In mm along each axis of the network's grid; None keeps each image's own.
Spacing3 = tuple[Positive | None, Positive | None, Positive | None]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


def _compiling(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiling)]

# Marks a key that joined after checkpoints had been published: ``key: Annotated[int, LATER] = 0``. Its default means
# what was done before there was such a key, and with it a config has the digest that it had then.
LATER = Field(json_schema_extra={"later": True})
# Given as the context of `model_dump`, it leaves such keys out where they hold their default.
FOR_DIGEST = {"for": "digest"}


class Section(BaseModel):
    """A part of a config: no key that is not known, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _serialised(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if info.context != FOR_DIGEST:
            return content
        return {key: value for key, value in content.items() if not self._is_later_default(key)}

    def _is_later_default(self, key: str) -> bool:
        field = type(self).model_fields[key]
        marked = isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("later")
        return bool(marked) and getattr(self, key) == field.get_default(call_default_factory=True)
