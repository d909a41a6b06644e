"""What an export is made of where nobody says more, and which folder its tokenizer comes from."""

from __future__ import annotations

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.exporters.protocol import ExportSource
from tests.engine.conftest import FP32


def test_what_nobody_says_of_an_export_is_this(tmp_path):
    source = ExportSource(tmp_path, None, FP32)
    assert (source.merge_into, source.gguf, source.importance, source.parts) == ("original", "Q4_K_M", None, ())
    assert (source.name, source.base_name, source.licence, source.context_tokens) == ("model", "", "", 2048)


def test_a_tokenizer_is_the_adapter_s_own_where_it_has_one_and_else_the_base_s(tmp_path):
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    source = ExportSource(adapter, base, FP32)
    assert (source.tokenizer_folder(), source.base_folder()) == (base, base)
    (adapter / "tokenizer_config.json").write_text("{}")
    assert source.tokenizer_folder() == adapter
    with pytest.raises(StudioError, match="This export needs the base model, which is not on the disk"):
        ExportSource(adapter, None, FP32).base_folder()
