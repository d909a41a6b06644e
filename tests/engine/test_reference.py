"""TRL's trainer as the reference: on the same base, adapter and batches, the same losses."""

from __future__ import annotations

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from qlora_studio.core import events as ev
from qlora_studio.core.steps import plan_steps
from qlora_studio.engine.loop import train
from qlora_studio.engine.setup import Setup
from tests.engine.conftest import FP32, make_config, make_examples, make_plan

ROWS, LENGTH, BATCH, STEPS = 24, 20, 4, 12
RATE = 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", pytest.param("linear", marks=pytest.mark.slow)])
def test_losses_equal_those_of_trl_on_the_same_batches(tiny_adapter_model, tmp_path, schedule):
    examples = make_examples(ROWS, shortest=LENGTH, longest=LENGTH)
    config = make_config(
        optim__batch_tokens=BATCH * LENGTH,
        optim__epochs=STEPS * BATCH / ROWS,
        optim__learning_rate=RATE,
        optim__schedule=schedule,
        optim__warmup_share=0.1,
        optim__optimizer="adamw",
        optim__max_grad_norm=0.5,
    )
    start = {name: value.clone() for name, value in tiny_adapter_model.state_dict().items() if "lora_" in name}
    theirs = reference_losses(tiny_adapter_model, start, examples, config, tmp_path)
    tiny_adapter_model.load_state_dict(start, strict=False)

    ours: list[float] = []

    def emit(event: ev.Event) -> None:
        if isinstance(event, ev.StepLogged):
            ours.append(event.loss)

    plan, folder = make_plan(BATCH * LENGTH), tmp_path / "run"
    setup = Setup(config, plan, FP32.accelerator, tiny_adapter_model, examples, [], folder, "tiny")
    (tmp_path / "run").mkdir()
    train(setup, emit, lambda: "")
    assert len(ours) == STEPS
    assert ours[-1] < ours[0] - 0.05, "nothing was learned, so equality would mean little"
    assert ours == pytest.approx(theirs, abs=2e-5)


def reference_losses(model, start, examples, config, folder) -> list[float]:
    """Losses of TRL's SFTTrainer, which is given our batches in our order, two micro-batches a step."""
    order = [row for step in plan_steps([LENGTH] * ROWS, config.optim) for row in step.rows]
    rows = Dataset.from_list(
        [{"input_ids": list(examples[row].input_ids), "labels": examples[row].labels()} for row in order]
    )
    vocabulary = {f"t{index}": index for index in range(256)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="t0")), pad_token="t1", eos_token="t2"
    )
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH // 2,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type=config.optim.schedule,
        warmup_steps=-(-STEPS // 10),
        max_grad_norm=config.optim.max_grad_norm,
        optim="adamw_torch",
        weight_decay=0.0,
        logging_steps=1,
        report_to=[],
        bf16=False,
        activation_checkpointing=False,
        gradient_checkpointing=False,
        packing=False,
        max_length=None,
        train_sampling_strategy="sequential",
        save_strategy="no",
        use_cpu=True,
        dataset_kwargs={"skip_prepare_dataset": True},
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL casts adapters on a 4-bit base to bf16; the comparison is of equal precision
            parameter.data = parameter.data.float()
    model.load_state_dict(start, strict=False)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
