"""A run brought back to life for talking to it: base and adapter as one model in memory, and its prompt function."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_studio.core.chat import Sampling, Side
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.conversation import Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import MemoryPlan
from qlora_studio.data.render.prompt import RenderOptions, prompt_ids, stop_ids
from qlora_studio.data.sets.prepare import options_of
from qlora_studio.engine import load
from qlora_studio.engine.accelerator.choose import choose_accelerator
from qlora_studio.engine.checkpoints import ADAPTER_FILES
from qlora_studio.engine.generate import choose_side, generate
from qlora_studio.engine.manifest import MANIFEST, find_damage, write_folder
from qlora_studio.engine.tokenizer import ChatTokenizer, load_tokenizer
from qlora_studio.runs.checkpoints import find_weights
from qlora_studio.runs.folder import JobFolder, read_json
from qlora_studio.worker.context import Context, FetchedBase
from qlora_studio.worker.fingerprint import check_same_weights


@dataclass
class LoadedRun:
    """Base and adapter of a run, ready to answer."""

    base: FetchedBase
    tokenizer: ChatTokenizer
    model: Any
    device: load.Device
    options: RenderOptions

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Exactly the ids that stand before this answer in training."""
        return prompt_ids(turns, self.tokenizer, options=self.options)

    def answer(
        self, turns: Sequence[Turn], side: Side, sampling: Sampling, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[str]:
        """The answer as it grows, decoded; half a character at the end is held back until it is whole."""
        ids: list[int] = []
        text = ""
        self.model.eval()
        with choose_side(self.model, side):
            for token in generate(self.model, self.prompt(turns), stop_ids(self.tokenizer), sampling):
                ids.append(token)
                grown = self.tokenizer.decode(ids)
                if not grown.endswith("\ufffd"):
                    text = grown
                    yield text
                if stopped():
                    return
        if ids and self.tokenizer.decode(ids) != text:
            yield self.tokenizer.decode(ids)

    def whole_answer(self, prompt: str, side: Side, sampling: Sampling) -> str:
        *_, last = "", *self.answer([Turn("user", prompt)], side, sampling)
        return last


def open_run(context: Context, folder: JobFolder, checkpoint: str = "") -> LoadedRun:
    """Loads the run's base in 4 bits with its adapter, or with the weights of a checkpoint it has kept.

    Raises a StudioError for weights that are not there or not as they were written.
    """
    choose_accelerator().prepare()
    config = context.config(folder)
    base = context.fetch_base(config)
    weights = find_weights(folder, checkpoint)
    if damage := find_damage(weights):
        raise StudioError(damage, "Choose a checkpoint with --checkpoint, or train again.")
    template_folder = folder.adapter if (folder.adapter / "tokenizer_config.json").exists() else base.folder
    tokenizer = load_tokenizer(template_folder)
    check_same_weights(context, folder, base, tokenizer)
    context.phase("loading the model in 4 bits")
    device = load.choose_device(compute_of(folder, config))
    model: Any = load.load_adapter(load.load_base(base.folder, device), weights)
    model.eval()
    record = folder.path / "fingerprint.json"
    thinks = bool(read_json(record).get("thinks")) if record.exists() else False
    options = replace(options_of(config.data), thinking=thinks)
    return LoadedRun(base, tokenizer, model, device, options)


def chosen_adapter(context: Context, folder: JobFolder, checkpoint: str) -> Path:
    """A folder that holds the chosen weights as an adapter and nothing else: the run's own, or one made of a checkpoint.

    Raises a StudioError as `find_weights` does, and for a checkpoint that is not as it was written.
    """
    weights, made = find_weights(folder, checkpoint), context.folder.path / "adapter"
    if weights == folder.adapter:
        return weights
    if made.is_dir() and not find_damage(made):
        return made
    if damage := find_damage(weights):
        raise StudioError(damage, "Choose another checkpoint.")
    beside = [path for path in folder.adapter.glob("*") if path.name not in (*ADAPTER_FILES, MANIFEST)]

    def fill(stage: Path) -> None:
        for path in (*(weights / name for name in ADAPTER_FILES), *beside):
            shutil.copyfile(path, stage / path.name)

    write_folder(made, fill)
    return made


def compute_of(folder: JobFolder, config: TrainConfig) -> str:
    """The compute dtype that a run was trained in: its plan's, so that chat and export compute as training did.

    Elsewhere than where it was trained, what the config says: another card may not have that format.
    """
    file = folder.path / "plan.json"
    try:
        plan = MemoryPlan.model_validate(read_json(file))
    except (StudioError, ValueError):  # none was kept, or another version wrote it
        return config.model.compute_dtype
    if plan.settings is None or plan.device != choose_accelerator().name:
        return config.model.compute_dtype
    return plan.settings.compute
