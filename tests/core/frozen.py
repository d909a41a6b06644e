"""Whether values stay as they were made."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError


def stays(value: BaseModel) -> bool:
    """Whether none of its fields can be given another value."""
    for name in type(value).model_fields:
        try:
            setattr(value, name, getattr(value, name))
        except ValidationError:
            continue
        return False
    return True
