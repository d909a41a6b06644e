"""The exporter of each kind: `EXPORTER` in the module that has the kind's name.

A new one is one file beside this one and one line in `core/exports.py`, where page and command line find it as well.
"""

from __future__ import annotations

import importlib

from qlora_studio.core.exports import find_export_kind
from qlora_studio.engine.exporters.protocol import Exporter


def find_exporter(name: str) -> Exporter:
    """The exporter of this kind. Raises a StudioError where there is no such kind."""
    kind = find_export_kind(name)
    module = kind.name.replace("-", "_")
    exporter: Exporter = importlib.import_module(f"qlora_studio.engine.exporters.{module}").EXPORTER
    return exporter
