"""The contenders of `gpu_speed.py`: each takes real optimizer steps over rows of given lengths, watched by a stopwatch."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_models import SEED, draw_base, one_word_tokenizer

RANK = 16
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEEDS = {"peft + liger": ("liger_kernel", "triton"), "trl": ("trl", "datasets"), "unsloth": ("unsloth", "trl")}
"""Which packages a contender needs; one that is missing is said."""
PLAIN = "studio, plain elementwise"
"""This engine without Triton's kernels, whether or not they are there."""
CONTENDERS = ("studio", "studio, checkpointed", "unsloth", "trl", "peft, checkpointed", "peft + liger", "peft", PLAIN)
"""Our own first, then those that people use instead, last what the others are measured against."""
WARM, TIMED = {True: 1, False: 3}, {True: 2, False: 8}
"""Steps that are not timed, and that are, for each length of a row; in a rehearsal and else."""


class Stopwatch:
    """Times steps over rows of each length in turn, and tells the process above when a length is through.

    A length has some steps to warm up, some that are timed, and one under the profiler.
    """

    def __init__(self, lengths: Sequence[int], report: Callable[[dict[str, Any]], None], *, rehearse: bool) -> None:
        import torch

        self.torch, self.cuda, self.report = torch, torch.cuda.is_available(), report
        self.warm, self.timed = WARM[rehearse], TIMED[rehearse]
        self.rows = [length for length in lengths for _ in range(self.warm + self.timed + 1)]
        """The length in tokens of the one row of each step."""
        self.taken = 0
        self.seconds: list[float] = []
        self.peak = (0, 0)
        self.profile: Any = None

    @property
    def place(self) -> int:
        return self.taken % (self.warm + self.timed + 1)

    def begin(self) -> None:
        if self.place == 0:
            gc.collect()
            if self.cuda:
                self.torch.cuda.empty_cache()
        if self.place == self.warm and self.cuda:
            self.torch.cuda.reset_peak_memory_stats()
        if self.place == self.warm + self.timed:
            self.profile = self.torch.profiler.profile()
            self.profile.__enter__()
        self._wait()
        self.begun = time.perf_counter()

    def end(self) -> None:
        self._wait()
        if self.warm <= self.place < self.warm + self.timed:
            self.seconds.append(time.perf_counter() - self.begun)
            if self.cuda:
                self.peak = (self.torch.cuda.max_memory_allocated(), self.torch.cuda.max_memory_reserved())
        elif self.profile is not None:
            self.profile.__exit__(None, None, None)
            self._report()
        self.taken += 1

    def _report(self) -> None:
        median = sorted(self.seconds)[len(self.seconds) // 2]
        self.report(
            {
                "tokens": self.rows[self.taken],
                "seconds": median,
                "slowest": max(self.seconds),
                "busy": _kernel_seconds(self.profile) / median,
                "allocated": self.peak[0],
                "reserved": self.peak[1],
            }
        )
        self.seconds, self.profile = [], None

    def _wait(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()


def _kernel_seconds(profile: Any) -> float:
    """Time in which the card computed; 0 where the profiler was told of no kernel."""
    from torch.autograd import DeviceType

    kernels = [
        event.time_range.elapsed_us()
        for event in profile.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation  # which span kernels that count alone
    ]
    return float(sum(kernels)) / 1e6


def take_steps(contender: str, shape: Any, watch: Stopwatch, folder: str) -> None:
    """One optimizer step for each of the stopwatch's rows. `folder`: a written base, for who loads from one."""
    if contender == "unsloth":
        return _train_with_trl(_load_with_unsloth(folder, max(watch.rows)), shape, watch)
    import torch

    device = torch.device("cuda", 0) if watch.cuda else torch.device("cpu")
    base = draw_base(shape, device, torch.bfloat16)
    if contender == "trl":
        return _train_with_trl(_plain_adapter(base), shape, watch)
    return _take_own_steps(contender, base, shape, watch)


def layers_again(contender: str, layers: int) -> int:
    """On how many layers a contender computes forward twice: trainers on all, as they come."""
    return 0 if contender in ("studio", PLAIN, "peft") else layers


def _take_own_steps(contender: str, base: Any, shape: Any, watch: Stopwatch) -> None:
    """This engine, or PEFT's layers as they come with this engine's loss, checkpointing and optimizer around them."""
    import torch

    from qlora_studio.core.config import LoraSettings, TrainConfig
    from qlora_studio.core.example import Example
    from qlora_studio.engine.forward import LossFunction
    from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
    from qlora_studio.engine.kernels.fused_gate import VARIABLE
    from qlora_studio.engine.load import attach_adapter
    from qlora_studio.engine.updates import make_optimizer

    own = contender.startswith("studio")
    if contender == PLAIN:
        os.environ[VARIABLE] = "0"  # of this process, which measures nothing else
    if "liger" in contender:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(
            model=base, rope=True, swiglu=True, rms_norm=True, cross_entropy=False, fused_linear_cross_entropy=False
        )
    settings = LoraSettings(rank=RANK, alpha=2 * RANK)
    network: Any = attach_adapter(base, settings, torch.float32, SEED) if own else _plain_adapter(base)
    network.train()
    loss_of = LossFunction(network, pack=own)  # the chunked loss for all: TRL has one too
    checkpoint_layers(network, layers_again(contender, shape.layers))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, TrainConfig().replace({"optim.learning_rate": 2e-4}), "adamw_8bit")
    for length in watch.rows:
        batch = loss_of.layout.collate([Example(tuple(_row(shape, length)), ((0, length),))], [0])
        watch.begin()
        (loss_of.row_losses(batch).sum() / length).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.end()


def _row(shape: Any, length: int) -> list[int]:
    import torch

    drawn = torch.randint(0, shape.vocab, (length,), generator=torch.Generator().manual_seed(SEED))
    return [int(token) for token in drawn]


def _plain_adapter(base: Any) -> Any:
    """PEFT's own layers, as `get_peft_model` leaves them, adapters in the compute format."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, lora, autocast_adapter_dtype=False)


def _load_with_unsloth(folder: str, longest: int) -> Any:
    """Unsloth's own loader and adapter; nothing of transformers is imported before it, for it patches that."""
    import torch
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        model_name=folder, max_seq_length=longest, dtype=torch.bfloat16, load_in_4bit=True, local_files_only=True
    )
    return FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, target_modules=PROJECTIONS, lora_dropout=0.0, bias="none",
        use_gradient_checkpointing="unsloth", random_state=SEED,
    )  # fmt: skip


def _train_with_trl(model: Any, shape: Any, watch: Stopwatch) -> None:
    """TRL's trainer with its defaults: `train()` itself, for only that puts gradient checkpointing in."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Watched(TrainerCallback):  # type: ignore[misc]  # a peer's class, untyped
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.end()

    class InOrder(SFTTrainer):  # type: ignore[misc]  # likewise
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    rows = [_row(shape, length) for length in watch.rows]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, per_device_train_batch_size=1, gradient_accumulation_steps=1, max_length=None,
            max_steps=len(rows), learning_rate=2e-4, optim="adamw_8bit", bf16=True, report_to=[], disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True}, use_cpu=not watch.cuda, save_strategy="no",
            logging_strategy="no",
        )  # fmt: skip
        InOrder(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in rows]),
            processing_class=one_word_tokenizer(),
            callbacks=[Watched()],
        ).train()
