"""What the benchmarks on a card share: a surrounding like that of a consumer card, the time of a command, processes that
measure one thing each, and models drawn on the card itself.

Not run on a card yet.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONSUMER = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",  # a data-centre card prefers cuDNN's attention
    "CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8",  # and takes 32 MiB for cuBLAS
    "USE_HUB_KERNELS": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "GOMP_SPINCOUNT": "0",
}
"""Set before torch is imported, where nobody set it otherwise."""
TINY = {"layers": 2, "vocab": 512, "hidden": 128, "intermediate": 256, "heads": 4, "kv_heads": 2, "head_dim": 32}
"""A shape of the same family for rehearsals; no figure of it means anything."""
SECONDS, LEAST_SECONDS = {True: 3600.0, False: 560.0}, {True: 5.0, False: 25.0}
"""What a command may take, in a rehearsal and else, and with less than what no measurement begins: it imports and draws."""
TRACEBACK_LINES = 12
SEED = 0


class TimeBudget:
    """The seconds of a command, shared out among its measurements in order, so that none can take all that is left."""

    def __init__(self, seconds: float, weights: Sequence[float], least: float) -> None:
        """`weights`: how much of the time each measurement may want, one after the other."""
        self.until = time.monotonic() + seconds
        self.weights = list(weights)
        self.least = least

    def share(self) -> float | None:
        """Seconds that the next measurement may take; None where it cannot begin.

        At most twice its part of what is left, and never what the measurements behind it need to begin at all.
        """
        left = self.until - time.monotonic()
        weight, *behind = self.weights
        part = 2 * left * weight / sum(self.weights)
        self.weights = behind
        allowed = min(left, max(self.least, min(part, left - self.least * len(behind))))
        return allowed if allowed >= self.least else None


def environment(*, rehearse: bool) -> dict[str, str]:
    """Of a measuring process: it finds the package without an installation, and behaves as on a consumer card."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if rehearse else {}
    return CONSUMER | dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | hidden


def measure_alone(
    script: str, arguments: Sequence[str], seconds: float | None, *, rehearse: bool
) -> Iterator[dict[str, Any]]:
    """What a measuring process finds, each finding as soon as it is there; last `says` where it did not end well."""
    if seconds is None:
        yield {"says": "no time left"}
        return
    command = [sys.executable, script, *arguments, *(["--rehearse"] if rehearse else [])]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(rehearse=rehearse),
            start_new_session=True,
        )
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), _end(process)))
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"'):  # a trainer prints dictionaries as well
                    yield json.loads(line)
        finally:
            timer.cancel()
            if process.poll() is None and not _ends_by_itself(process):
                _end(process)
        if late.is_set():
            yield {"says": f"ran out of time after {seconds:.0f} s"}
        elif process.returncode:
            errors.seek(0)
            yield {"says": _explain(process.returncode, errors.read())}


def _ends_by_itself(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[str]) -> None:
    """Kills the process and those that it started, which would keep its output open."""
    if os.name == "nt":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _explain(code: int, errors: str) -> str:
    """The last line of what a process said, for a cell; its traceback goes to this process's stderr."""
    lines = errors.strip().splitlines() or ["no message"]
    print("\n".join(lines[-TRACEBACK_LINES:]), file=sys.stderr, flush=True)
    return f"exit {code}: {lines[-1][:160]}".replace("|", "/")


def report(found: dict[str, Any]) -> None:
    """Tells the process above of a finding."""
    print(json.dumps(found), flush=True)


def has_card() -> bool:
    """Asked of the driver: torch would open a context on the card that is measured."""
    from qlora_studio.planner.gpu import read_gpus

    return bool(read_gpus())


def check_card(rehearse: bool) -> None:
    """Ends a measuring process that would measure the processor: the torch beside this card may be built without CUDA."""
    import torch

    if not rehearse and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no card here, though the driver does")


def shape_of(model: str, rehearse: bool) -> Any:
    """The shape of a model of the reference table; for a rehearsal a tiny one of its family."""
    from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES

    shape = REFERENCE_SHAPES[model]
    if not rehearse:
        return shape
    rotary = shape.rotary_dim and shape.rotary_dim * TINY["head_dim"] // shape.head_dim
    return shape.model_copy(update={**TINY, "rotary_dim": rotary, "sliding_layers": min(1, shape.sliding_layers)})


def draw_base(shape: Any, device: Any, dtype: Any, *, embeddings_on_host: bool = False) -> Any:
    """A frozen model of this shape in NF4 with double quantisation, drawn where it will lie, layer by layer.

    Seconds instead of minutes of processor, and no file; random weights of 0.02, norms of 1, the same in every process:
    a processor's random numbers begin elsewhere in each. With `embeddings_on_host` the input embeddings never touch the
    card.
    """
    import bitsandbytes as bnb
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    from qlora_studio.engine.copies import config_for
    from qlora_studio.engine.load import keep_layout, look_tokens_up_on_host

    torch.manual_seed(SEED)  # of the card as well
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_for(shape), dtype=dtype, attn_implementation="sdpa")
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer is not head:
            model.set_submodule(name, _draw_four_bit(bnb, layer, device, dtype))
    for module in model.modules():
        place = torch.device("cpu") if embeddings_on_host and module is embeddings else device
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                drawn = torch.empty(parameter.shape, device=place, dtype=dtype)
                drawn.fill_(1.0) if "norm" in type(module).__name__.lower() else drawn.normal_(std=0.02)
                module._parameters[name] = nn.Parameter(drawn, requires_grad=False)
        if "rotary" in type(module).__name__.lower():
            module.__init__(config=model.config)  # rotary tables are calculated, not drawn
            module.to(device)
        elif any(buffer is not None and buffer.is_meta for buffer in module._buffers.values()):
            module._buffers.update({n: torch.ones_like(b, device=device) for n, b in module._buffers.items()})
    model.tie_weights()
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True
    model.config.use_cache = False
    keep_layout(model, canonical=True)
    if embeddings_on_host:
        look_tokens_up_on_host(model, device)
    return model


def plan_for(shape: Any, cap: int, *, rehearse: bool, **changes: Any) -> tuple[Any, Any]:
    """Settings of a run and its plan for a card of this many GiB; in a rehearsal for as much of the computer's memory."""
    from qlora_studio.core.config import TrainConfig
    from qlora_studio.planner.fit import make_plan
    from qlora_studio.planner.tables import imagine_machine

    values = {"evaluation.before": False, "optim.learning_rate": 2e-4, **changes}
    machine = imagine_machine(cap)
    if rehearse:
        values["memory.budget_gib"] = float(cap)
        machine = machine.model_copy(update={"cards": ()})
    config = TrainConfig().replace(values)
    return config, make_plan(config, shape, machine)


def network_for(shape: Any, plan: Any, lora: Any) -> Any:
    """A drawn model with an adapter, as the plan wants it: in its formats, offloaded, in tiles; nothing is checkpointed."""
    from qlora_studio.engine import load
    from qlora_studio.engine.accelerator.formats import DTYPES
    from qlora_studio.engine.kernels.replace import tile_mlps

    device = load.choose_device(plan.settings.compute)
    on_host = plan.offload in ("embeddings", "both") and device.type != "cpu"
    base = draw_base(shape, device.torch, device.dtype, embeddings_on_host=on_host)
    network = load.attach_adapter(base, lora, DTYPES[plan.adapter_precision], SEED)
    tile_mlps(network, plan.tiled_mlp)
    return network.train()


def _draw_four_bit(bnb: Any, layer: Any, device: Any, dtype: Any) -> Any:
    import torch

    biased = layer.bias is not None
    made = bnb.nn.Linear4bit(layer.in_features, layer.out_features, biased, dtype, True, "nf4", device="meta")
    weight = torch.empty(layer.weight.shape, device=device, dtype=dtype).normal_(std=0.02)
    made.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made
    ).to(device)
    if biased:
        made.bias = torch.nn.Parameter(torch.zeros(layer.out_features, device=device, dtype=dtype), requires_grad=False)
    return made


def write_base(shape: Any, device: Any, folder: Path) -> None:
    """Writes a drawn model in 4 bits as transformers loads it, with a tokenizer of one word, for who loads from a folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import BitsAndBytesConfig

    base = draw_base(shape, device, torch.bfloat16)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in base.state_dict().items()}
    if shape.tied_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    base.config.architectures = [type(base).__name__]
    base.config.dtype = torch.bfloat16
    base.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base.config.save_pretrained(folder)
    one_word_tokenizer().save_pretrained(folder)


def one_word_tokenizer() -> Any:
    """What a trainer wants to be given though it never reads a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a", bos_token="b", eos_token="c", unk_token="a")
