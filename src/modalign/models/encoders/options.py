"""A user's options of an encoder, checked against declared fields; unknown names are refused."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from modalign.errors import UsageError, choose


class Options(BaseModel):
    """Base of a modality's options: fields with defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, modality: str, options: dict[str, Any]) -> Self:
        """Check a user's options.

        Raises:
            UsageError: an unknown name or a wrong type; the message lists the known names.
        """
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                reason = f"no option {name!r}"
            else:
                reason = f"option {name}: {first['msg']}"
            known = choose(name, sorted(cls.model_fields))
            raise UsageError(f"encoder of {modality}: {reason}; {known}") from None
