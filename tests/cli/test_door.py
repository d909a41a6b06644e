"""The door of the command line: wrong input is one clear sentence and exit code 2, with nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_studio.cli.app import run as run_cli
from qlora_studio.cli.train import weigh
from qlora_studio.core.doctor import install_torch
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import TorchBuild
from qlora_studio.core.plan import GpuInfo
from qlora_studio.studio.exports import find_target

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cli(home, monkeypatch, capsys):
    """Runs a command in this process; gives exit code, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qlora-studio", *arguments])
        code = run_cli()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def rows(tmp_path: Path, text: str, name: str = "rows.jsonl") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


GOOD = '{"instruction": "Hi?", "output": "Hello."}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + '{"instruction": "a" "b"}\n', "rows.jsonl:2: The JSON is broken at column 21"),
        (GOOD + '{"instruction": "a"}\n', "rows.jsonl:2"),
        ('{"foo": 1, "bar": 2}\n', "rows.jsonl:1: The format of these rows is not known; their fields: foo, bar."),
        ("", "There is no row in this file."),
    ],
    ids=["broken line", "row without an answer", "unknown format", "empty file"],
)
@pytest.mark.parametrize("verb", ["train", "inspect"])
def test_a_bad_file_is_refused_with_its_line(cli, home, tmp_path, text, message, verb):
    file = rows(tmp_path, text)
    code, _, errors = cli(
        *(["train", file, "--model", str(model(tmp_path))] if verb == "train" else ["data", "inspect", file])
    )
    assert code == 2 and message in errors and "Traceback" not in errors
    assert not (home / "runs").exists() and not list((home / "datasets").glob("*"))


def test_an_empty_answer_is_refused_before_anything_starts_unless_it_is_accepted_by_name(cli, home, tmp_path):
    file = rows(tmp_path, GOOD + '{"instruction": "a", "output": " "}\n')
    command = ("train", file, "--model", str(model(tmp_path)))
    code, _, errors = cli(*command)
    assert code == 2 and "rows.jsonl:2" in errors and "accept it by name" in errors and not (home / "runs").exists()
    assert cli("data", "lint", "rows")[0] == 1
    code, output, _ = cli("data", "clean", "rows", "drop-empty-answers")
    assert (code, output) == (0, "rows: 1 rows after drop-empty-answers.\n")
    assert cli("data", "lint", "rows")[0] == 0


def model(tmp_path: Path) -> Path:
    """The smallest folder that passes for a base: what is refused here is the data."""
    folder = tmp_path / "base"
    folder.mkdir(exist_ok=True)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_missing_file_is_said_to_be_missing(cli, home, tmp_path):
    code, _, errors = cli("train", str(tmp_path / "none.json"), "--model", str(model(tmp_path)))
    assert code == 2 and errors == f"Error: {tmp_path / 'none.json'}: There is no such file. Check the path.\n"


@pytest.mark.parametrize("name", ["/no/such/model", "no-such-model", "./here"])
def test_a_base_that_does_not_exist_is_refused(cli, tmp_path, name):
    code, _, errors = cli("train", rows(tmp_path, GOOD), "--model", name)
    assert code == 2 and errors.startswith(f"Error: There is no model folder '{name}'.")


def test_a_hub_id_without_a_hub_is_one_sentence(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, errors = cli("train", rows(tmp_path, GOOD), "--model", "org/none")
    assert code == 2 and errors == (
        "Error: org/none: field 'model.base': The hub is switched off (HF_HUB_OFFLINE). "
        "Switch it on, or give the folder of a model.\n"
    )


def test_a_folder_with_pickle_weights_only_is_planned_for_and_refused_for_training(cli, tmp_path):
    folder = model(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    code, out, _ = cli("plan", "--model", str(folder))
    assert code == 0 and "It could not be trained as it is" in out and "pickle weights only" in " ".join(out.split())
    code, _, errors = cli("train", rows(tmp_path, GOOD), "--model", str(folder))
    assert code == 2 and errors.startswith(f"Error: {folder}: This model has pickle weights only")


def test_a_config_json_alone_is_enough_for_a_plan(cli, tmp_path):
    folder = model(tmp_path)
    (folder / "model.safetensors").unlink()
    code, out, _ = cli("plan", "--model", str(folder))
    assert code == 0 and "It fits" in out and "no safetensors weights" in " ".join(out.split())


@pytest.mark.slow
def test_a_dry_run_that_fails_never_ends_in_it_fits(cli, home, tmp_path):
    folder = model(tmp_path)
    values = json.loads((folder / "config.json").read_text()) | {"model_type": "not_a_family"}
    (folder / "config.json").write_text(json.dumps(values))
    code, out, errors = cli("plan", "--model", str(folder))
    assert code == 2 and "fits" not in out and "This architecture cannot be measured" in errors
    (kept,) = (home / "cache" / "resolved").iterdir()
    written = kept.stat().st_mtime_ns
    assert cli("plan", "--model", str(folder))[2] == errors
    (again,) = (home / "cache" / "resolved").iterdir()
    assert again == kept and again.stat().st_mtime_ns == written  # the failure is kept, and not looked for once more


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_experts_implementation"])
def test_a_config_that_asks_for_foreign_code_is_refused(cli, tmp_path, key):
    folder = model(tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"text_config": {key: "evil/kernel"}}))
    code, _, errors = cli("plan", "--model", str(folder))
    assert code == 2 and f"field '{key}': The model's config.json asks for foreign code." in errors


@pytest.mark.parametrize(
    "arguments",
    [("runs", "show"), ("runs", "stop"), ("chat",), ("evaluate",), ("export", "--to", "out")],
    ids=lambda value: value[0] + "-" + value[-1],
)
@pytest.mark.parametrize("name", ["../x", "none", "a/b"])
def test_a_run_name_that_is_none_is_refused(cli, tmp_path, monkeypatch, arguments, name):
    monkeypatch.chdir(tmp_path)
    code, _, errors = cli(*arguments, name)
    assert code == 2 and errors.startswith(f"Error: There is no run '{name}'.")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "--rank", "huge"), "There is no rank preset 'huge'. There are: balanced, light, strong."),
        (("plan", "--memory", "99gb"), "There is no memory preset '99gb'."),
        (("plan", "--set", "lora.rank=x"), "field 'lora.rank': 'x' is not allowed"),
        (("plan", "--set", "rank"), "'rank' is not a setting."),
        (("plan", "--rank", "0"), "field 'lora.rank': 0 is not allowed: should be greater than or equal to 1."),
        (("data", "inspect", "x.json", "--column", "a"), "'a' does not map a column."),
        (("nothing",), "No such command 'nothing'."),
        (("train",), "There is nothing to train on. Name a data file"),
        (("train", "--from", "nowhere.json"), "nowhere.json: The record cannot be read: No such file or directory."),
    ],
)
def test_wrong_arguments_are_named(cli, arguments, message):
    code, _, errors = cli(*arguments)
    assert code == 2 and message in errors and "Traceback" not in errors


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (("--learning-rate", "2"), "field 'optim.learning_rate': '2' is not allowed"),
        (("--alpha", "0"), "field 'lora.alpha': 0 is not allowed"),
        (("--dropout", "1"), "field 'lora.dropout': 1.0 is not allowed"),
        (("--init", "none"), "field 'lora.init': 'none' is not allowed"),
        (("--dora", "--init", "olora"), "field 'lora.use_dora': With lora.init olora"),
        (("--rslora", "--init", "x"), "field 'lora.init'"),
        (("--target-modules", "x" * 1001), "field 'lora.target_modules'"),
        (("--layers", "x" * 201), "field 'lora.layers'"),
        (("--lora-plus", "0"), "field 'optim.loraplus_ratio': 0.0 is not allowed"),
        (("--neftune", "-1"), "field 'optim.neftune_alpha': -1.0 is not allowed"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_methods_have_flags_that_set_their_fields(cli, verb, flags, fields):
    code, _, errors = cli(verb, *flags)
    assert code == 2 and fields in errors


def test_what_no_flag_names_stays_as_the_preset_has_it(cli, monkeypatch):
    from qlora_studio.cli import plan

    seen = []

    def keep(*given):
        seen.append(given[3])
        raise StudioError("That is enough.")

    monkeypatch.setattr(plan.op, "build_config", keep)
    for flags in ((), ("--rslora", "--lr", "auto"), ("--no-rslora",)):
        cli("plan", *flags)
    chosen = [{field: value for field, value in one.items() if value is not None} for one in seen]
    assert chosen == [{}, {"lora.use_rslora": True, "optim.learning_rate": "auto"}, {"lora.use_rslora": False}]


def test_a_home_that_cannot_be_made_is_named(cli, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("QLORA_STUDIO_HOME", str(file / "home"))
    code, _, errors = cli("runs", "list")
    assert code == 2 and errors.startswith(f"Error: {file / 'home'}: The studio's folder cannot be made")


def test_an_empty_history_says_what_to_do(cli):
    assert cli("runs", "list")[:2] == (0, "There are no runs yet. `qlora-studio demo` makes one.\n")
    assert cli("data", "list")[:2] == (0, "There are no data sets yet. `qlora-studio data import FILE` makes one.\n")


@pytest.mark.slow
def test_help_is_quick():
    """Processor time, not wall time: the one promise about speed that a busy machine cannot break."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qlora_studio", "--help"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # this process alone: another test's may end meanwhile
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    spent = used.ru_utime + used.ru_stime
    assert process.returncode == 0 and "demo" in output and spent < 2, f"{spent:.2f} s of processor time"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "it may not be written. Set QLORA_STUDIO_HOME to a folder that can be written"),
        (errno.EROFS, "it lies on a disk that can only be read. Set QLORA_STUDIO_HOME"),
        (errno.ENOSPC, "the disk is full. Free some space"),
    ],
    ids=["no rights", "read-only disk", "full disk"],
)
def test_a_home_that_cannot_be_written_is_a_sentence(cli, home, monkeypatch, number, message):
    def refuse(path, *_, **__):
        if path != home:
            raise OSError(number, os.strerror(number), str(path))

    home.mkdir()
    monkeypatch.setattr(Path, "mkdir", refuse)
    code, _, errors = cli("doctor")
    assert code == 2 and f"This cannot be written: {message}" in errors and str(home) in errors
    assert "Traceback" not in errors and len(errors.splitlines()) == 1


def test_help_comes_in_a_background_job_too():
    """There SIGINT arrives ignored, as under nohup."""
    done = subprocess.run(
        [sys.executable, "-m", "qlora_studio", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert "Usage:" in done.stdout and done.stderr == ""


def test_a_mixture_takes_its_weights_by_name():
    assert weigh(["mine", "general"], ["general=0.3"]) == [
        {"name": "mine", "weight": 1.0},
        {"name": "general", "weight": 0.3},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("general=much", "'general=much' is not a weight. Write it as NAME=NUMBER"),
        ("0.3", "'0.3' is not a weight."),
        ("mine=0", "'mine=0' is not a weight."),
        ("mine=-1", "'mine=-1' is not a weight."),
        ("other=1", "'other' is not among the sets. There are: mine."),
    ],
)
def test_a_weight_that_is_none_is_refused(text, message):
    with pytest.raises(StudioError) as refused:
        weigh(["mine"], [text])
    assert message in str(refused.value)


def test_the_demo_says_at_once_that_torch_cannot_use_the_card(cli, home, monkeypatch):
    card = GpuInfo(index=0, name="RTX 3060", total_bytes=12 << 30, free_bytes=11 << 30, driver="580.10", uuid="GPU-1")
    monkeypatch.setattr("qlora_studio.planner.machine.read_gpus", lambda: [card])
    monkeypatch.setattr("qlora_studio.planner.machine.read_torch_build", lambda: TorchBuild(version="2.13.0+cpu"))
    code, _, errors = cli("demo")
    assert code == 2 and "torch 2.13.0+cpu is built for processors only, but this computer has RTX 3060" in errors
    assert install_torch("2.13.0+cpu") in errors and not (home / "runs").exists()


def test_the_readme_names_the_command_that_brings_the_cuda_build():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert install_torch("2.13.0").removeprefix("Run: ").removesuffix(".") in readme


@pytest.mark.parametrize(
    ("to", "message"),
    [("", "The folder is empty."), ('""', "The folder is empty."), ("{file}/below", "a-file is a file, and no folder")],
)
def test_an_export_to_no_folder_is_refused(home, tmp_path, to, message):
    (tmp_path / "a-file").touch()
    with pytest.raises(StudioError, match=message):
        find_target(to.format(file=tmp_path / "a-file"))


def test_an_export_target_is_read_without_the_quotes_of_copy_as_path(tmp_path):
    assert find_target(f'"{tmp_path}/new one"') == tmp_path / "new one" == find_target(f" '{tmp_path}/new one' ")


def test_the_queue_and_a_sweep_are_seen_from_the_command_line(cli, home):
    """Runs that wait in their order, moved, removed; the results of a tag, best first."""
    from qlora_studio.home import Home
    from qlora_studio.runs import queue
    from qlora_studio.studio import Studio
    from tests.runs.made import make_run

    studio = Studio(Home.find())
    for name in ("later", "latest"):
        queue.put(make_run(studio, name))
    for name, best, rank in (("small", 1.7, 8), ("large", 1.6, 16)):
        make_run(studio, name, best, lora__rank=rank)
        studio.runs.label(name, tags=("ranks",))

    def output_of(*arguments: str) -> str:
        code, out, errors = cli(*arguments)
        assert code == 0, errors
        return out

    assert output_of("queue", "move", "latest", "1") == "latest is number 1 in the queue.\n"
    listed = output_of("queue", "list")
    assert listed.index("latest") < listed.index("later ") and "`qlora-studio queue start` starts the first." in listed
    assert output_of("queue", "remove", "later") == "later waits no longer.\n" and studio.queue.names() == ["latest"]
    results = output_of("runs", "results", "ranks")
    assert results.index("large") < results.index("small") and "lora.rank" in results and "1.6000" in results
    compared = output_of("runs", "compare", "small", "large", "--by", "tokens", "--held-out")
    assert "lora.rank" in compared and "Held-out loss" not in compared
    by_step = " ".join(output_of("runs", "compare", "small", "large", "--held-out").split())
    assert "Held-out loss, the last since the mark before: step small large 0 2.0000 2.0000" in by_step
    assert "5 1.7000 1.6000" in by_step and by_step.endswith("10 2.0000 1.9000")
    kept = output_of("runs", "checkpoints", "small", "--pin", "5")
    assert "step-5" in kept and "best, pinned" in kept and "last" in kept
    assert "pinned" not in output_of("runs", "checkpoints", "small", "--unpin", "5")
    assert "The run overfits" in " ".join(output_of("runs", "show", "small").split())
