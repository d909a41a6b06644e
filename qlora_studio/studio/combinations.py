"""Combinations: the adapters of several runs of one base as a new run."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import CombineHow, CombinePart, CombineRequest, JobRef
from qlora_studio.home import Home
from qlora_studio.runs import supervisor
from qlora_studio.runs.folder import create_job
from qlora_studio.studio.bases import Bases
from qlora_studio.studio.runs import Runs

MOST_RANK = 1024
"""What the settings of a run hold."""


class Combinations:
    """New runs made of the adapters of others."""

    def __init__(self, home: Home, bases: Bases, runs: Runs) -> None:
        self.home, self.bases, self.runs = home, bases, runs

    def start(self, weights: Sequence[tuple[str, float]], how: CombineHow = "cat", title: str = "") -> JobRef:
        """Starts making a run of several, each `name` or `name@checkpoint` with its weight.

        Raises a StudioError for fewer than two, for a run without weights, and for runs of different bases.
        """
        if len(weights) < 2:
            raise StudioError("A combination takes at least two runs.", "Name another one.")
        parts, views = [], []
        for name, weight in weights:
            run, _, checkpoint = name.partition("@")
            view = self.runs.with_weights(run, checkpoint)
            views.append(view)
            parts.append(CombinePart(run=view.folder, weight=weight, checkpoint=checkpoint))
        first = views[0].config
        for view in views[1:]:
            if self.bases.find(view.config.model.base) != self.bases.find(first.model.base):
                raise StudioError(
                    f"The run '{view.name}' was trained on {view.config.model.base}, and '{views[0].name}' on "
                    f"{first.model.base}.",
                    "Combine runs of one base.",
                )
        ranks = [view.config.lora.rank for view in views]
        rank = min(MOST_RANK, sum(ranks) if how == "cat" else ranks[0])
        config = first.replace(
            {"lora.rank": rank, "lora.alpha": rank, "lora.use_rslora": False, "data.sources": (), "model.adapter": ""}
        )
        made = create_job(
            self.home.runs,
            title.strip() or "-and-".join(view.name for view in views)[:100],
            CombineRequest(parts=tuple(parts), how=how),
            {"config.json": config.model_dump(mode="json")},
        )
        supervisor.start(made, card=None)
        return JobRef(made.path)
