"""What the tests share: a home of their own, the real small model, and tiny models of other architectures."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_studio.ui.server.environment import StubsLeftOut

SIDE_BY_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

for name, value in {
    "GOMP_SPINCOUNT": "0",
    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // SIDE_BY_SIDE)),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "USE_HUB_KERNELS": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "GRADIO_ANALYTICS_ENABLED": "False",
}.items():
    os.environ.setdefault(name, value)
sys.meta_path.insert(0, StubsLeftOut())

FETCH = """
import sys
from pathlib import Path
from qlora_studio.core.config import DEMO_BASE
from qlora_studio.engine.fetch import fetch_base
from qlora_studio.bases import find_base
models = Path(sys.argv[1])
print(find_base(DEMO_BASE, models).folder or fetch_base(DEMO_BASE, models, None, lambda said: None))
"""


def pytest_collection_finish() -> None:
    """What the imports left is not looked through again by each collection of garbage: a third of the time without."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """What a step takes on a processor depends on its threads: the plan counts two."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, no proxy, and the hub may be reached: each is as a test puts it."""
    from qlora_studio import hub

    for name in (*hub.TOKEN_NAMES, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, found through the environment as a person would set it."""
    folder = tmp_path / "home"
    monkeypatch.setenv("QLORA_STUDIO_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's folder, brought by the program itself; kept between sessions in the user's cache."""
    import platformdirs

    models = platformdirs.user_cache_path("qlora-studio-tests", appauthor=False) / "models"
    models.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", FETCH, str(models)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture
def home_with_model(home: Path, smollm2: Path) -> Path:
    """An empty home that already holds the embedded model."""
    (home / "models").mkdir(parents=True)
    (home / "models" / "smollm2-135m-instruct").symlink_to(smollm2, target_is_directory=True)
    return home
