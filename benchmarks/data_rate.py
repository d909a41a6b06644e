"""52,000 alpaca-shaped rows: import, lint and tokenise, beside `datasets` with TRL's preparation, in one run.

    python benchmarks/data_rate.py MODEL_FOLDER [--rows 52000]

Each contender runs in a process of its own on the same file; time is wall time without imports, memory is the
largest resident size of the process. Tokens are made by the job that the program itself starts, twice; inside it counts
from the phase that tokenises to the job's end. The rows are made here from a fixed seed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SYLLABLES = ["ba", "ter", "lo", "min", "sa", "ver", "kel", "tu", "ran", "do", "shi", "pel", "or", "na", "gis", "fa"]


def write_rows(path: Path, count: int) -> None:
    """Rows of the shape and size of the usual instruction sets: 12 words asked, 55 words answered on average."""
    chance = random.Random(20261121)
    words = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(6000)]
    rows = [
        {
            "instruction": " ".join(chance.choices(words, k=chance.randint(6, 18))).capitalize() + "?",
            "input": " ".join(chance.choices(words, k=10)) if chance.random() < 0.4 else "",
            "output": " ".join(chance.choices(words, k=chance.randint(10, 100))).capitalize() + ".",
        }
        for _ in range(count)
    ]
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def studio(file: Path, model: Path, work: Path) -> dict[str, float]:
    """Import, lint and tokenise as the program does: the tokens in a job of its own, started twice."""
    os.environ["QLORA_STUDIO_HOME"] = str(work / "home")
    from qlora_studio.core.config import TrainConfig
    from qlora_studio.core.jobs import TokeniseReport
    from qlora_studio.core.progress import fold
    from qlora_studio.studio import Studio

    app = Studio()
    times = [time.perf_counter()]
    report = app.data.import_rows(str(file))
    times.append(time.perf_counter())
    app.data.findings(report.name)
    times.append(time.perf_counter())
    data = {"sources": [{"name": report.name}], "eval_share": 0, "max_length": 1024}
    config = TrainConfig.model_validate({"model": {"base": str(model)}, "data": data})
    inside, found = [], None
    for _ in range(2):
        job = app.data.tokenise(config, 0)
        found = fold(app.jobs.watch(job)).report
        inside.append(_seconds_inside(job.folder / "events.jsonl"))
        times.append(time.perf_counter())
    assert isinstance(found, TokeniseReport) and found.examples == report.rows
    steps = ("import", "lint", "job", "again")
    seconds = {step: late - early for step, early, late in zip(steps, times, times[1:], strict=False)}
    return {
        **seconds,
        "tokenise": inside[0],
        "second": inside[1],
        "total": times[2] - times[0] + inside[0],
        "rows": report.rows,
        "tokens": found.tokens,
        "trained": found.trained_tokens,
        "child_peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def _seconds_inside(events: Path) -> float:
    """Seconds from the phase that tokenises to the end of the job, by its journal: without imports and start.

    Where nothing is tokenised, from the start of the job.
    """
    lines = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    begins = next((line["time"] for line in lines if line.get("phase") == "tokenising the rows"), lines[0]["time"])
    return float(lines[-1]["time"] - begins)


def trl(file: Path, model: Path, work: Path, processes: int | None = None) -> dict[str, float]:
    """`datasets` and TRL's trainer as they come, in one process, or in as many as are given."""
    os.environ["HF_DATASETS_CACHE"] = str(work)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(model), local_files_only=True)
    tiny = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    times = [time.perf_counter()]
    rows = load_dataset("json", data_files=str(file), split="train")
    times.append(time.perf_counter())

    def to_messages(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
        prompt = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        return {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }

    conversations = rows.map(to_messages, remove_columns=rows.column_names, num_proc=processes)
    times.append(time.perf_counter())
    settings = SFTConfig(output_dir=str(work / "out"), max_length=1024, report_to="none", bf16=False, use_cpu=True)
    settings.dataset_num_proc = processes
    trainer = SFTTrainer(tiny, settings, train_dataset=conversations, processing_class=tokenizer)
    times.append(time.perf_counter())
    prepared = trainer.train_dataset
    tokens = sum(len(ids) for ids in prepared["input_ids"])
    steps = ("read", "convert", "tokenise")
    found = {step: late - early for step, early, late in zip(steps, times, times[1:], strict=False)}
    return {**found, "total": times[-1] - times[0], "rows": len(prepared), "tokens": tokens}


def trl_on_all_cores(file: Path, model: Path, work: Path) -> dict[str, float]:
    return trl(file, model, work, os.cpu_count())


CONTENDERS = {"studio": studio, "trl": trl, "trl on all cores": trl_on_all_cores}


def run_one(name: str, file: Path, model: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        found = CONTENDERS[name](file, model, Path(work))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**found, "peak_mib": peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder with a fast tokenizer and a chat template")
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        run_one(arguments.only, arguments.file, arguments.model)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        write_rows(file, arguments.rows)
        print(f"{arguments.rows} rows, {file.stat().st_size / 1e6:.1f} MB")
        for name in CONTENDERS:
            command = [sys.executable, __file__, str(arguments.model), "--only", name, "--file", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            if "child_peak_mib" in found:
                found["peak_mib"] = max(found["peak_mib"], found["child_peak_mib"])
            print(f"\n{name}: {found['rows']:.0f} rows, {found['tokens']:.0f} tokens, peak {found['peak_mib']:.0f} MiB")
            for step in ("read", "import", "convert", "lint", "tokenise", "total", "second", "job", "again"):
                if step in found:
                    print(f"  {step:<9} {found[step]:7.2f} s  {found['rows'] / found[step]:9.0f} rows/s")


if __name__ == "__main__":
    main()
