"""What a kill leaves outside of runs is swept; what somebody is working on is not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qlora_studio.runs.leftovers import sweep_leftovers


def test_half_made_folders_of_the_dead_and_trash_go_and_all_else_stays(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept = [f".new-{os.getpid()}-77", f".import-{os.getpid()}-abc", ".training.lock.d", "a-run", ".import-x"]
    swept = [f".new-{gone.pid}-77", f".import-{gone.pid}-abc", ".trash"]
    for name in (*kept, *swept):
        (tmp_path / name / "inside").mkdir(parents=True)
    assert sorted(path.name for path in sweep_leftovers(tmp_path, tmp_path / "not there")) == sorted(swept)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.slow
def test_an_import_that_is_killed_leaves_nothing_after_the_next_start(home):
    """A real import, killed where its folder is half made; the next run that is made sweeps it."""
    code = (
        "from qlora_studio.studio import Studio\n"
        "import sys\n"
        "Studio().data.import_rows(sys.argv[1], name='rows')\n"
    )  # fmt: skip
    home.mkdir()
    rows = home / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n' * 5)
    environment = os.environ | {"QLORA_STUDIO_FAULT": "import.written:kill@1"}
    done = subprocess.run([sys.executable, "-c", code, str(rows)], env=environment, check=False)
    assert done.returncode == -9
    assert [path.name.split("-")[0] for path in (home / "datasets").iterdir()] == [".import"]
    sweep_leftovers(home / "datasets")
    assert list((home / "datasets").iterdir()) == []
    assert subprocess.run([sys.executable, "-c", code, str(rows)], check=False).returncode == 0


def test_a_disk_that_is_full_at_any_point_of_an_import_leaves_no_set_and_a_sentence(home, monkeypatch):
    import pytest

    from qlora_studio import faults
    from qlora_studio.core.errors import StudioError
    from qlora_studio.studio import Studio

    home.mkdir()
    rows = home / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n' * 5)
    for point in ("import.written", "import.whole"):
        monkeypatch.setattr(faults, "_passed", faults.Counter())
        monkeypatch.setenv(faults.VARIABLE, f"{point}:full@1")
        with pytest.raises(StudioError, match="The data set cannot be written: No space left on device"):
            Studio().data.import_rows(str(rows), name="rows")
        assert list((home / "datasets").iterdir()) == []
