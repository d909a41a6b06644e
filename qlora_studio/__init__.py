"""QLoRA Studio: 4-bit instruction tuning on the graphics card its user already has."""

__version__ = "0.1.0"
