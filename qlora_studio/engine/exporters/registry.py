"""The exporters by name. A new one is one file beside this one and one line here."""

from __future__ import annotations

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.exporters.adapter import AdapterExporter
from qlora_studio.engine.exporters.merged import MergedExporter
from qlora_studio.engine.exporters.protocol import Exporter

EXPORTERS: tuple[Exporter, ...] = (AdapterExporter(), MergedExporter())


def find_exporter(name: str) -> Exporter:
    """The exporter of this name. Raises a StudioError where there is none."""
    for exporter in EXPORTERS:
        if exporter.name == name:
            return exporter
    names = ", ".join(exporter.name for exporter in EXPORTERS)
    raise StudioError(f"'{name}' cannot be exported.", f"Choose one of: {names}.")
