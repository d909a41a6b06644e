"""Kills of a real worker at random moments, with errors, full disks and out-of-memories mixed in: what did they cost?

python benchmarks/kill_runs.py [--kills 1000] [--seed 0]

A tiny model is trained once undisturbed, then again and again with a fault at a random time or a random point of our own
saving and stepping code, resumed until it ends. After each fault every visible checkpoint must be whole and the newest
no older than before; at the end every loss that was ever logged, the held-out losses, the best step and the adapter must
be those of the undisturbed run: to the last bit, or to rounding where an out-of-memory made micro-batches smaller.
The worker's process is forked from this one, which has imported torch already; all else is as `runs resume` starts it.
Needs no card and no network. Ctrl-C ends it with what was found so far.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.engine import checkpoints, saving
from qlora_studio.engine.manifest import find_damage
from qlora_studio.faults import VARIABLE, InjectedError
from qlora_studio.home import Home
from qlora_studio.runs.folder import JobFolder, create_job
from qlora_studio.runs.supervisor import clear_requests
from qlora_studio.studio import Studio

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ROUNDING = 1e-4
"""Nats between losses of the same step in larger and in smaller micro-batches."""
RANDOM_POINTS = 90
"""A fault at a point comes at one of so many passages: about as many as a run of the tiny model has."""
HUNG_SECONDS = 300
ACTIONS = ("kill", "kill", "kill", "error", "full", "io", "oom")


@dataclass
class Tally:
    """What happened, and what went wrong with it; the second must stay empty."""

    kills: int = 0
    errors: int = 0
    out_of_memories: int = 0
    runs: int = 0
    resumes: int = 0
    wrong: list[str] = field(default_factory=list)

    def summary(self) -> str:
        faults = f"{self.kills} kills, {self.errors} errors, {self.out_of_memories} out-of-memories"
        return f"{faults} in {self.runs} whole runs with {self.resumes} resumes: {len(self.wrong)} things wrong"


@dataclass(frozen=True)
class Record:
    """What a run came to."""

    losses: dict[int, float]
    evaluations: dict[int, float]
    adapter_step: int
    adapter: str
    """Hash of its weights."""


def make_base(folder: Path) -> None:
    """A two-layer Llama of random weights with a tokenizer of single bytes and a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=inner.get_vocab_size(), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=inner.token_to_id("<|im_end|>"),
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def in_a_fork(work: Callable[[], object]) -> None:
    """Does something in a process of its own."""
    if not (process := os.fork()):
        try:
            work()
            os._exit(0)
        finally:
            os._exit(9)
    assert end(process) == 0


def make_home(root: Path) -> tuple[Home, TrainConfig]:
    """A home with the tiny base and some rows, and the config of a run over them: dropout, a best step in the middle."""
    home = Home(root)
    in_a_fork(lambda: make_base(home.models / "tiny"))  # no thread may live here when workers are forked
    rng = random.Random(0)
    rows = root / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"instruction": f"Count {number}", "output": " ".join(rng.choices("abcdefgh", k=rng.randint(4, 30)))})
            + "\n"
            for number in range(40)
        )
    )  # fmt: skip
    Studio(home).data.import_rows(str(rows), name="rows")
    values = {
        "model.base": "tiny", "model.compute_dtype": "fp32", "data.sources": [{"name": "rows"}], "data.eval_share": 0.2, "data.max_length": 256,
        "lora.rank": 4, "lora.dropout": 0.1, "optim.optimizer": "adamw", "optim.learning_rate": 4e-3,
        "optim.batch_tokens": 400, "optim.epochs": 2, "memory.micro_batch_tokens": 400,
        "evaluation.every_steps": 3, "saving.every_minutes": 1e-6,
    }  # fmt: skip
    return home, TrainConfig().replace(values)


def new_run(home: Home, config: TrainConfig, number: int) -> JobFolder:
    return create_job(home.runs, f"run {number}", TrainRequest(), {"config.json": config.model_dump(mode="json")})


def begin(folder: JobFolder, home: Home, fault: str = "") -> int:
    """Forks a worker of this folder; its process number. An interrupt of this program does not reach it."""
    clear_requests(folder)
    share_no_progress_lock()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return process
    try:
        os.setsid()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # forgets one that came before it had a group of its own
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        leave_what_is_open()
        os.environ["QLORA_STUDIO_HOME"] = str(home.root)
        os.environ[VARIABLE] = fault
        log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "a", closefd=False)  # under a test they are files that are closed now
        saving.MOST_SHARE = float("inf")  # a checkpoint each step: as many files as can be written while a kill comes
        import torch

        torch.set_num_threads(1)
        from qlora_studio.worker.__main__ import work_alone

        os._exit(work_alone(folder, os.getppid()))
    except InjectedError:
        os._exit(1)  # in the last line of the journal nothing is left to catch it: Python ends such a worker so
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(9)


def share_no_progress_lock() -> None:
    """tqdm's lock lies in memory that forks share: who is killed while a bar is drawn would keep it from all others."""
    lock = threading.RLock()
    for bar in bars(tqdm):
        bar.set_lock(lock)


def bars(kind: type[tqdm]) -> Iterator[type[tqdm]]:
    yield kind
    for other in kind.__subclasses__():
        yield from bars(other)


def leave_what_is_open() -> None:
    """What the caller holds, such as a lock, is not the worker's.

    The numbers stay taken: a file object of the caller that is cleared away later closes its number, and not the file of
    the worker that would have got it.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3, 1024):
        with contextlib.suppress(OSError):
            os.fstat(number)
            os.dup2(nothing, number)


def end(process: int, after: float | None = None) -> int:
    """Waits for a worker, and kills it after so many seconds; its exit code, or the signal as a negative number.

    One that has not ended after minutes hangs, which is an error of its own.
    """
    until = time.monotonic() + (HUNG_SECONDS if after is None else after)
    try:
        while time.monotonic() < until:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
    except KeyboardInterrupt:  # a worker left alone would write into a folder that is about to go
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise
    os.kill(process, signal.SIGKILL)
    if after is None:
        os.waitpid(process, 0)
        raise TimeoutError(f"worker {process} hung for {HUNG_SECONDS} seconds")
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def events(folder: JobFolder) -> list[dict[str, object]]:
    """Every whole line of the journal."""
    found = []
    for line in folder.events.read_bytes().split(b"\n") if folder.events.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def read_record(folder: JobFolder) -> Record:
    journal = events(folder)
    adapter = json.loads((folder.adapter / "MANIFEST.json").read_text())["files"]["adapter_model.safetensors"]["sha256"]
    return Record(
        {one["step"]: one["loss"] for one in journal if one.get("event") == "step"},  # type: ignore[misc]
        {one["step"]: one["loss"] for one in journal if one.get("event") == "evaluation" and one["adapter"]},  # type: ignore[misc]
        [one["step"] for one in journal if one.get("event") == "adapter"][-1],  # type: ignore[misc]
        adapter,
    )


def find_wrong(folder: JobFolder, before: int) -> tuple[list[str], int]:
    """What a fault left that it must not have, and the step of the newest checkpoint."""
    place = folder.path / "checkpoints"
    steps = checkpoints.checkpoint_steps(place)
    wrong = [damage for step in steps if (damage := find_damage(place / f"step-{step:06d}"))]
    if folder.adapter.exists() and (damage := find_damage(folder.adapter)):
        wrong.append(damage)
    newest = max(steps, default=0)
    if newest < before:
        wrong.append(f"{folder.name}: the newest checkpoint is of step {newest}, and it was of step {before}")
    return wrong, newest


def compare(folder: JobFolder, whole: Record, *, exact: bool) -> list[str]:
    """Where a disturbed run differs from the undisturbed one: in any line of its journal, or in its result."""
    wrong = []
    for one in events(folder):
        kind = one.get("event")
        if kind not in ("step", "evaluation") or not one.get("adapter", True):
            continue
        expected = (whole.losses if kind == "step" else whole.evaluations)[one["step"]]  # type: ignore[index]
        if abs(one["loss"] - expected) > (0 if exact else ROUNDING):  # type: ignore[operator]
            wrong.append(f"{folder.name}: {kind} {one['step']} is {one['loss']}, and it was {expected}")
    made = read_record(folder)
    if made.losses.keys() != whole.losses.keys() or made.adapter_step != whole.adapter_step:
        wrong.append(f"{folder.name}: {len(made.losses)} steps, adapter of step {made.adapter_step}")
    if exact and made.adapter != whole.adapter:
        wrong.append(f"{folder.name}: the adapter differs")
    return wrong


def choose_fault(rng: random.Random, seconds: float) -> tuple[str, float | None]:
    """A fault for the next worker: where it comes, or after how many seconds of its life it is killed."""
    if rng.random() < 0.6:
        return "", rng.uniform(0, seconds)
    action = rng.choice(ACTIONS)
    point = "ladder" if action == "oom" else "*"
    return f"{point}:{action}@{rng.randint(1, 12 if action == 'oom' else RANDOM_POINTS)}", None


def disturb(folder: JobFolder, home: Home, rng: random.Random, seconds: float, tally: Tally) -> bool:
    """One run with faults until it has ended by itself; whether it must be the same to the last bit."""
    newest, exact = 0, True
    for _ in range(60):
        fault, after = choose_fault(rng, seconds)
        code = end(begin(folder, home, fault), after)
        tally.resumes += 1
        wrong, newest = find_wrong(folder, newest)
        tally.wrong += wrong
        journal = events(folder)
        exact = exact and not any(one.get("event") == "retried" for one in journal)
        if code == -signal.SIGKILL:
            tally.kills += 1
        elif ":oom" in fault:
            tally.out_of_memories += 1
        elif fault:
            tally.errors += 1
        if journal and journal[-1].get("event") == "finished":
            return exact
        if code not in (0, 1, -signal.SIGKILL):
            last_words = folder.log.read_text(encoding="utf-8", errors="replace").strip()[-600:]
            tally.wrong.append(f"{folder.name}: exit code {code} after {fault or after}; {last_words}")
    tally.wrong.append(f"{folder.name}: did not come to its end")
    return exact


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        tally = run_faults(Path(root), arguments.kills, arguments.seed)
    for line in tally.wrong[:20]:
        sys.stdout.write(f"WRONG {line}\n")
    sys.stdout.write(f"{tally.summary()}\n")
    return 1 if tally.wrong else 0


def run_faults(root: Path, kills: int, seed: int) -> Tally:
    """Disturbs runs until so many kills have happened."""
    for name in ("train", "context"):
        importlib.import_module(f"qlora_studio.worker.{name}")
    home, config = make_home(root)
    first, second = new_run(home, config, 0), new_run(home, config, 1)
    assert end(begin(first, home)) == 0, first.log.read_text()
    begun = time.monotonic()
    assert end(begin(second, home)) == 0, second.log.read_text()
    alone, whole = time.monotonic() - begun, read_record(first)
    tally, rng = Tally(), random.Random(seed)
    tally.wrong += compare(second, whole, exact=True)
    number = 1
    while tally.kills < kills:
        number += 1
        folder = new_run(home, config, number)
        try:
            exact = disturb(folder, home, rng, alone, tally)
        except KeyboardInterrupt:  # says what was found so far
            return tally
        if not tally.wrong:
            tally.wrong += compare(folder, whole, exact=exact)
        tally.runs += 1
        sys.stderr.write(f"\r{tally.summary()}")
        if tally.wrong:
            return tally
    return tally


if __name__ == "__main__":
    sys.exit(main())
