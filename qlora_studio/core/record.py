"""A run as a record that another machine can do again: settings, hashes, versions, and the losses it had."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.labels import Labels

SCHEMA = 1


class DataRecord(BaseModel):
    """One data set of the run, by what its rows hash to."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    sha256: str = ""
    rows: int = 0


class RunRecord(BaseModel):
    """Everything that decides a run's curve, and the curve. It names no path of the machine it comes from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA
    name: str
    labels: Labels = Labels()
    config: TrainConfig
    fingerprint: dict[str, Any] = {}
    """Base, revision, hashes of tokens and template, versions, seed: as the run wrote it."""
    data: tuple[DataRecord, ...] = ()
    state: str = ""
    losses: tuple[tuple[int, float], ...] = ()
    evaluations: tuple[tuple[int, float], ...] = ()
    peak_bytes: int = 0

    @classmethod
    def parse(cls, text: str, where: str) -> RunRecord:
        """A record from its file. Raises a StudioError that names the file and what is wrong with it."""
        try:
            values = json.loads(text)
            if isinstance(values, dict) and isinstance(values.get("config"), dict):
                values["config"] = TrainConfig.parse(values["config"], where).model_dump(mode="json")
            record = cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise StudioError(
                f"This is not the record of a run: {first['msg'].lower()}.",
                "Make one with `qlora-studio runs record RUN --to FILE`.",
                where=where,
                field=field,
            ) from None
        except ValueError as error:
            raise StudioError(f"This is not JSON: {error}.", "Give the record of a run.", where=where) from None
        if record.schema_version != SCHEMA:
            raise StudioError(
                f"This record was written by another version (schema {record.schema_version}).",
                "Make it again with this version.",
                where=where,
            )
        return record
