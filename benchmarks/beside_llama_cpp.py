"""GGUF files of ours beside llama.cpp's own tools, in one run: time, memory, tensor types, bytes, distance to the chat.

    python benchmarks/beside_llama_cpp.py RUN --llama-quantize PATH [--llama-imatrix PATH] [--home HOME] [--rounds 3]

No package brings these programs. llama.cpp's sources do (`cmake -B build && cmake --build build -t llama-quantize
llama-imatrix`), and so does the source package of llama-cpp-python on PyPI, in `vendor/llama.cpp`. In place of llama-quantize
a libllama.so will do: see `llama_quantize.py`. Without one of them the program says what it leaves out.

Both tools and we have two threads. Times are of processor and clock, in a process each, the least of some interleaved rounds;
compare them beside each other only. Memory is each process's own, without the pages of a file that it maps.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import torch
from export import LAYERS, ROOT, open_source, scratch, write_wide_model

from qlora_studio.core import events as ev
from qlora_studio.core.example import Example
from qlora_studio.core.exports import GGUF_CHOICES
from qlora_studio.core.jobs import GgufType
from qlora_studio.engine.compare import log_probabilities
from qlora_studio.engine.exporters.comparison import ChatRecord, compare
from qlora_studio.engine.exporters.gguf import plan_gguf
from qlora_studio.engine.exporters.protocol import ExportSource
from qlora_studio.engine.gguf_file.read import load_gguf
from qlora_studio.engine.importance import load_importance, measure_importance, save_importance
from qlora_studio.engine.load import choose_device
from qlora_studio.engine.tokenizer import load_tokenizer

THREADS = 2
CHUNK = 512
"""Tokens that llama-imatrix reads together."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took."""

    wall: float
    cpu: float
    peak: float
    """MiB of its own memory at most, sampled fifty times a second."""


def run(command: Sequence[str]) -> Cost:
    """Runs a command to its end; ends this program where it fails."""
    begun = time.monotonic()
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment()) as process,
    ):
        peak = 0
        while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            peak = max(peak, own_memory(process.pid))
            time.sleep(0.02)
        wall, (_, status, used) = time.monotonic() - begun, found
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{command[0]} ended with {process.returncode}:\n{log.read().decode()[-2000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, peak / 2**10)


def quantizer(path: str) -> list[str]:
    """llama-quantize at this path, or what stands for it where it is the library."""
    own = [sys.executable, str(ROOT / "benchmarks" / "llama_quantize.py")] if ".so" in Path(path).name else []
    return [*own, path]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", "OMP_NUM_THREADS": str(THREADS)}


def own_memory(process: int) -> int:
    """KiB of a process that no file backs."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def least(costs: Sequence[Cost]) -> Cost:
    return Cost(min(one.wall for one in costs), min(one.cpu for one in costs), max(one.peak for one in costs))


def write_ours(place: Path, kind: GgufType, out: Path) -> None:
    """Writes the wide model in this process; `place` holds base and adapter."""
    torch.set_num_threads(THREADS)
    source = ExportSource(place / "adapter", place / "base", choose_device("bf16"), "original", kind, name="wide")
    with plan_gguf(source) as file:
        file.write(out)


def compare_costs(tool: Sequence[str], rounds: int) -> None:
    """A Llama 3.2 as wide as that of 3 B, from base and adapter and from a 16-bit file."""
    ours: dict[GgufType, list[Cost]] = {}
    theirs: dict[GgufType, list[Cost]] = {}
    kinds: tuple[GgufType, ...] = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
    with scratch() as place:
        write_wide_model(place)
        whole = place / "wide.F16.gguf"
        straight = [sys.executable, __file__, "--write", str(place)]
        ours["F16"] = [run([*straight, "F16", str(whole)])]
        for _ in range(rounds):
            for kind in kinds:
                ours.setdefault(kind, []).append(run([*straight, kind, str(place / "ours.gguf")]))
                theirs.setdefault(kind, []).append(
                    run([*tool, str(whole), str(place / "theirs.gguf"), kind, str(THREADS)])
                )
        print(f"A Llama 3.2 as wide as 3 B, {LAYERS} layers; {THREADS} threads; least of {rounds} rounds.\n")
        print("| artefact | by | s | CPU s | peak of its own, MiB |\n|---|---|---|---|---|")
        for kind, costs in ours.items():
            where = "16 bits, from base and adapter" if kind == "F16" else "straight from base and adapter"
            rows = [(where, least(costs))]
            rows += [("llama-quantize, from the F16 file", least(theirs[kind]))] if kind in theirs else []
            for by, cost in rows:
                print(f"| {kind} | {by} | {cost.wall:.1f} | {cost.cpu:.1f} | {cost.peak:.0f} |", flush=True)


def distance(path: Path, source: ExportSource, record: ChatRecord) -> ev.Checked:
    model = load_gguf(path, source.base_folder(), source.device)
    return compare(record, log_probabilities(model, record.probes), ev.Checked(what=path.name, as_chatted=True))


def compare_files(tool: Sequence[str], source: ExportSource, record: ChatRecord, matrix: Path | None = None) -> None:
    """The run's files by us and by llama-quantize from the same numbers in 32 bits: types, bytes, distance to the chat."""
    print("\n| type | tensors of another type | bytes equal, by type of tensor | KL of ours | of theirs |")
    print("|---|---|---|---|---|", flush=True)
    with scratch() as place:
        whole = place / "whole.gguf"
        with plan_gguf(replace(source, gguf="F32", importance=None)) as file:
            file.write(whole)
            names = {getattr(one.source, "parameter", one.name): one.name for one in file.tensors}
        options = []
        if matrix is not None:
            write_imatrix(load_importance(matrix), names, place / "imatrix.gguf")
            options = ["--imatrix", str(place / "imatrix.gguf")]
        for choice in GGUF_CHOICES:
            if matrix is not None and "_K" not in choice.name:
                continue
            ours, theirs = place / f"{choice.name}.gguf", place / f"theirs.{choice.name}.gguf"
            with plan_gguf(replace(source, gguf=choice.name, importance=matrix)) as file:
                file.write(ours)
            run([*tool, *options, str(whole), str(theirs), choice.name, str(THREADS)])
            others, equal = same_bytes(ours, theirs)
            mine, other = distance(ours, source, record), distance(theirs, source, record)
            print(f"| {choice.name} | {others} | {equal} | {mine.kl:.5f} | {other.kl:.5f} |", flush=True)
            ours.unlink()
            theirs.unlink()


def same_bytes(ours: Path, theirs: Path) -> tuple[str, str]:
    """How many tensors have another type, and the share of equal bytes by type."""
    other = {tensor.name: tensor for tensor in gguf.GGUFReader(theirs).tensors}
    differ, all_bytes, equal = 0, Counter[str](), Counter[str]()
    tensors = gguf.GGUFReader(ours).tensors
    for tensor in tensors:
        twin = other[tensor.name]
        if twin.tensor_type != tensor.tensor_type:
            differ += 1
            continue
        mine, twins = (np.ascontiguousarray(one.data).view(np.uint8).ravel() for one in (tensor, twin))
        all_bytes[tensor.tensor_type.name] += mine.size
        equal[tensor.tensor_type.name] += int((mine == twins).sum())
    shares = ", ".join(f"{kind} {equal[kind] / count:.2%}" for kind, count in sorted(all_bytes.items()))
    return f"{differ} of {len(tensors)}", shares


def write_imatrix(importance: dict[str, torch.Tensor], names: dict[str, str], path: Path) -> None:
    """An importance matrix of ours as llama.cpp's tools read one."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["training rows"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", CHUNK)
    for parameter, columns in importance.items():
        writer.add_tensor(f"{names[parameter]}.in_sum2", columns.numpy()[None])
        writer.add_tensor(f"{names[parameter]}.counts", np.ones((1, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare_matrices(tool: str, source: ExportSource, examples: Sequence[Example]) -> None:
    """What llama-imatrix and we measure of the same model on the same tokens."""
    ids = [token for example in examples for token in example.input_ids]
    chunks = [Example(tuple(ids[at : at + CHUNK]), ()) for at in range(0, len(ids) - CHUNK + 1, CHUNK)]
    with scratch() as place:
        whole, text = place / "whole.gguf", place / "rows.txt"
        with plan_gguf(replace(source, gguf="F32", importance=None)) as file:
            file.write(whole)
            names = {getattr(one.source, "parameter", one.name): one.name for one in file.tensors}
        tokenizer = load_tokenizer(source.tokenizer_folder())
        text.write_text(tokenizer.decode(ids), encoding="utf-8")
        (again,) = tokenizer.encode([text.read_text(encoding="utf-8")])
        assert list(again.ids) == ids, "the text is not the tokens"
        theirs = place / "imatrix.gguf"
        command = ["-m", str(whole), "-f", str(text), "-o", str(theirs), "-c", str(CHUNK), "-b", str(CHUNK)]
        run([tool, *command, "-t", str(THREADS), "--parse-special", "--no-ppl", "-ngl", "0"])
        found = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(theirs).tensors}
        model = load_gguf(whole, source.base_folder(), replace(source.device, dtype=torch.float32))
        mine = measure_importance(model, chunks)
    apart = []
    for parameter, columns in mine.items():
        name = names[parameter]
        other = torch.from_numpy(found[f"{name}.in_sum2"].ravel() / found[f"{name}.counts"].ravel())
        apart.append(float((columns - other).norm() / other.norm()))
    print(
        f"\nImportance matrices of {len(mine)} layers on {len(chunks)} x {CHUNK} tokens, ours beside llama-imatrix: "
        f"relative difference {max(apart):.1e} at most."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--home")
    parser.add_argument("--llama-quantize")
    parser.add_argument("--llama-imatrix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.write:
        write_ours(Path(chosen.write[0]), chosen.write[1], Path(chosen.write[2]))
        return
    if not chosen.run:
        parser.error("name a run")
    if chosen.llama_quantize and chosen.rounds:
        compare_costs(quantizer(chosen.llama_quantize), chosen.rounds)
    elif chosen.llama_quantize:
        print("No rounds: time and memory are left out.")
    else:
        print("No --llama-quantize was given: nothing is compared with it.")
    source, record, examples, model = open_source(chosen.run, chosen.home)
    with scratch() as place:
        save_importance(measure_importance(model, examples), place / "importance.safetensors")
        del model
        if chosen.llama_quantize:
            for into in ("as_chatted", "original"):
                for matrix in (None, place / "importance.safetensors"):
                    print(f"\nMerged {into.replace('_', ' ')}, {'with' if matrix else 'without'} an importance matrix:")
                    compare_files(quantizer(chosen.llama_quantize), replace(source, merge_into=into), record, matrix)
    if chosen.llama_imatrix:
        compare_matrices(chosen.llama_imatrix, replace(source, merge_into="as_chatted"), examples)
    else:
        print("\nNo --llama-imatrix was given: our importance matrix is not compared with its own.")


if __name__ == "__main__":
    main()
