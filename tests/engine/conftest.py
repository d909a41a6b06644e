"""Tiny random models and rows for the engine: real layers, real quantisation, nothing downloaded."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from qlora_studio.core.config import LoraSettings, TrainConfig
from qlora_studio.core.example import Example
from qlora_studio.core.plan import MemoryEstimate, MemoryPlan
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.engine.load import Device, attach_adapter, load_base
from qlora_studio.engine.updates import make_optimizer

VOCAB = 256
FP32 = Device(CpuAccelerator(), torch.float32)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A two-layer Llama with grouped queries and tied embeddings, as safetensors."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("tiny-llama")
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_adapter_model(tiny_folder):
    """The tiny model in NF4 with a fresh fp32 adapter whose B is not zero, so that every weight has a gradient."""
    model = attach_adapter(load_base(tiny_folder, FP32), LoraSettings(rank=4, alpha=8), torch.float32, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


@pytest.fixture
def optimizer(tiny_adapter_model) -> torch.optim.Optimizer:
    """Of the tiny adapter, after a first step with gradients of one."""
    parameters = [parameter for parameter in tiny_adapter_model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, make_config(optim__learning_rate=1e-3), "adamw")
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def make_examples(count: int, seed: int = 0, shortest: int = 6, longest: int = 60) -> list[Example]:
    """Rows of random tokens; the last third of each is trained."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        length = rng.randint(shortest, longest)
        ids = tuple(rng.randrange(3, VOCAB) for _ in range(length))
        rows.append(Example(ids, ((length - max(2, length // 3), length),)))
    return rows


def make_plan(micro_batch_tokens: int, optimizer: str = "adamw", checkpointed: int = 0) -> MemoryPlan:
    return MemoryPlan(
        device="cpu",
        budget_bytes=1 << 40,
        estimate=MemoryEstimate(parts=()),
        micro_batch_tokens=micro_batch_tokens,
        checkpointed_layers=checkpointed,
        layers=2,
        adapter_precision="fp32",
        optimizer=optimizer,
    )


def make_config(**changes) -> TrainConfig:
    """A config whose dotted fields are given with double underscores: `optim__epochs=1`."""
    return TrainConfig().replace({name.replace("__", "."): value for name, value in changes.items()})


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far a is from b, as a share of b's norm."""
    return float((a - b).norm() / b.norm())
