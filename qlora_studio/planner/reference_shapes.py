"""The shapes of well-known models, for tables and for tests. Values are those of the published `config.json` files."""

from __future__ import annotations

from typing import Any

from qlora_studio.core.plan import ModelShape


def _shape(name: str, family: str, sizes: tuple[int, ...], tied: bool, **more: Any) -> ModelShape:
    """`sizes` are hidden, layers, heads, key-value heads, head dimension, intermediate, vocabulary."""
    hidden, layers, heads, kv_heads, head_dim, intermediate, vocab = sizes
    return ModelShape(
        name=name,
        family=family,
        hidden=hidden,
        layers=layers,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        tied_embeddings=tied,
        max_positions=more.pop("max_positions", 131072),
        qk_norm=family in ("qwen3", "gemma3_text"),
        **more,
    )


REFERENCE_SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _shape("SmolLM2-135M", "llama", (576, 30, 9, 3, 64, 1536, 49152), True, max_positions=8192),
        _shape("Llama-3.2-1B", "llama", (2048, 16, 32, 8, 64, 8192, 128256), True),
        _shape("Qwen3-1.7B", "qwen3", (2048, 28, 16, 8, 128, 6144, 151936), True, max_positions=40960),
        _shape("Llama-3.2-3B", "llama", (3072, 28, 24, 8, 128, 8192, 128256), True),
        _shape("Phi-4-mini", "phi3", (3072, 32, 24, 8, 128, 8192, 200064), True, rotary_dim=96),
        _shape(
            "Gemma-3-4B",
            "gemma3_text",
            (2560, 34, 8, 4, 256, 10240, 262208),
            True,
            sliding_window=1024,
            sliding_layers=29,
        ),
        _shape("Qwen3-4B", "qwen3", (2560, 36, 32, 8, 128, 9728, 151936), True, max_positions=40960),
        _shape("Mistral-7B-v0.3", "mistral", (4096, 32, 32, 8, 128, 14336, 32768), False, max_positions=32768),
        _shape("Llama-3.1-8B", "llama", (4096, 32, 32, 8, 128, 14336, 128256), False),
        _shape("Qwen3-8B", "qwen3", (4096, 36, 32, 8, 128, 12288, 151936), False, max_positions=40960),
        _shape(
            "Gemma-3-12B",
            "gemma3_text",
            (3840, 48, 16, 8, 256, 15360, 262208),
            True,
            sliding_window=1024,
            sliding_layers=40,
        ),
        _shape("Qwen3-14B", "qwen3", (5120, 40, 40, 8, 128, 17408, 151936), False, max_positions=40960),
    )
}
"""Twelve dense models by name, smallest first."""
