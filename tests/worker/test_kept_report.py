"""A tokenise job that was done before answers from what it kept, and only then."""

import json
import os
from contextlib import nullcontext

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import TokeniseRequest
from qlora_studio.data.sets.prepare import Prepared
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
from qlora_studio.studio import Studio
from qlora_studio.worker import kept_report, tokenise
from qlora_studio.worker.context import Context
from qlora_studio.worker.kept_report import KEPT, KeptReport
from qlora_studio.worker.tokenise import make_report

ROWS = [{"instruction": f"What is {number} and one?", "output": f"It is {number + 1}."} for number in range(8)]


@pytest.fixture
def config(home, tmp_path):
    """A config over eight imported rows."""
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(ROWS))
    name = Studio(Home(home)).data.import_rows(str(source), name="rows").name
    return TrainConfig().replace({"data.sources": [{"name": name}], "data.eval_share": 0})


@pytest.mark.slow
def test_a_second_job_reads_its_report_and_imports_no_tokenizer(config, home_with_model, monkeypatch):
    # a process whose tokenizer has used its threads cannot fork, as tests of kills do
    monkeypatch.setattr("qlora_studio.worker.rows.all_cores", nullcontext)
    home = Home(home_with_model)
    config = config.replace({"model.base": str(home.models / "smollm2-135m-instruct")})

    def do():
        request = TokeniseRequest(datasets=home.datasets, previews=2)
        job = create_job(home.root / "jobs", "tokenise", request, {"config.json": config.model_dump(mode="json")})
        events = []
        report = tokenise.run(Context(job, events.append, os.getppid(), home=home)).report
        return report, [event.phase for event in events if hasattr(event, "phase")]

    first, phases = do()
    assert first.rows == 8 and len(first.previews) == 2 and "tokenising the rows" in phases
    with monkeypatch.context() as patch:
        patch.setattr(tokenise, "_tokenise", lambda *_: pytest.fail("it tokenised again"))
        assert do() == (first, [])
    (kept,) = (home.cache / "token-reports").iterdir()
    kept.write_text('{"rows": ')
    again, phases = do()
    assert again == first and "tokenising the rows" in phases


def test_everything_that_decides_a_report_is_in_its_name(config, home, tmp_path):
    base = tmp_path / "base"
    (base / "additional_chat_templates").mkdir(parents=True)
    for name in ("tokenizer.json", "config.json", "chat_template.jinja", "additional_chat_templates/tools.jinja"):
        (base / name).write_text("{}")
    (base / "model.safetensors").write_text("")
    datasets, request = home / "datasets", TokeniseRequest(datasets=home / "datasets", previews=2)

    def name(request=request, **settings):
        return KeptReport.of(request, config.replace(settings), base, home).file.name

    first = name()
    assert name() == first and name(**{"optim.learning_rate": 1e-3, "lora.rank": 64}) == first
    names = [
        name(**{"data.max_length": 16}),
        name(**{"model.template": "chatml"}),
        name(**{"data.train_on": "last_answer"}),
        name(TokeniseRequest(datasets=datasets, previews=3)),
    ]
    for file in ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tools.jinja"):
        (base / file).write_text("{ }")
        names.append(name())
    report = datasets / "rows" / "report.json"
    report.write_text(json.dumps({**json.loads(report.read_text()), "sha256": "0" * 64}))
    names.append(name())
    assert len({first, *names}) == 1 + len(names)


def test_the_oldest_reports_go_first_and_a_full_disk_costs_nothing(tmp_path):
    report = make_report(
        Prepared((), 0, (), 0, 0, 0, 0, 0, 0, 0, (), frozenset()), held_out_rows=0, limit=1, previews=()
    )  # fmt: skip
    place = tmp_path / "deep" / "token-reports"
    for number in range(KEPT + 2):
        kept = KeptReport(place / f"{number}.json")
        kept.write(report)
        os.utime(kept.file, (number, number))
        assert kept.read() == report
    assert sorted(int(path.stem) for path in place.iterdir()) == list(range(2, KEPT + 2))
    assert {path.suffix for path in place.iterdir()} == {".json"}
    assert KeptReport(place / "0.json").read() is None
    (tmp_path / "file").touch()
    KeptReport(tmp_path / "file" / "report.json").write(report)


def test_a_report_of_another_version_of_a_library_or_of_this_program_is_another(config, home, tmp_path, monkeypatch):
    """Of the base's folder only its small files count, not folders and not what is prose or weights."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.json").write_text("{}")
    request = TokeniseRequest(datasets=home / "datasets", previews=2)

    def name():
        return KeptReport.of(request, config, base, home).file

    first = name()
    assert first.parent == home / "token-reports" and first.suffix == ".json"
    for kept in ("folder.json", "README.md", "model.safetensors"):
        (base / kept).mkdir() if kept.startswith("folder") else (base / kept).write_text("x")
    assert name() == first
    versions = {"transformers": "1", "tokenizers": "1"}
    monkeypatch.setattr(kept_report, "version", versions.get)
    found = {first, name()}
    for library in versions:
        versions[library] = "2"
        found.add(name())
    monkeypatch.setattr(kept_report, "__version__", "0.0")
    assert len({*found, name()}) == 5
    for suffix in sorted(kept_report.SUFFIXES):
        (base / f"other{suffix}").write_text("x")
        found.add(name())
    assert len(found) == 4 + len(kept_report.SUFFIXES)
    (base / "tokenizer.json").rename(base / "renamed.json")
    assert name() not in found, "a file's name counts as well"
