"""All of torch: loading, training, evaluating, generating, exporting. Only `worker/` imports it.

A training run is `loop.py`: the order of things. Below it, each thing once: `objectives/` say what is optimised,
`accumulator.py` sums a step's gradients over micro-batches, `ladder.py` makes them smaller when memory runs out,
`updates.py` applies or refuses them, `checkpoints.py` keeps the run on disk, `evaluate.py` measures.

To add an objective, an exporter or a kind of hardware: one file in its folder, and one line in `objectives/registry.py`,
`exporters/registry.py` or `accelerator/choose.py`.
"""
