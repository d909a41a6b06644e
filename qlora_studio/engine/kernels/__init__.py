"""The fused and frugal parts of a training step."""
