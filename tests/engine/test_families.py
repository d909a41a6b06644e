"""What is computed is what transformers and PEFT compute, for families that nobody wrote anything for."""

from __future__ import annotations

import pytest
import torch

from qlora_studio.engine.forward import LossFunction
from qlora_studio.engine.kernels.checkpointing import checkpoint_layers
from qlora_studio.engine.kernels.offloading import Offloading
from qlora_studio.engine.kernels.replace import tile_mlps
from tests.engine.architectures import ALL, MORE
from tests.engine.conftest import make_examples, relative
from tests.engine.kernels.test_offloading import Late
from tests.engine.test_fast_paths import CLOSE, gradient_of, load_pair, random_ids
from tests.matrix import mostly_slow

CLOSE = CLOSE | {"olmo_hybrid": 1e-4}


def losses_of(model, examples) -> torch.Tensor:
    """The loss of each row by itself, from whole logits."""
    found = []
    for example in examples:
        ids, trained = torch.tensor([example.input_ids]), torch.zeros(len(example.input_ids), dtype=torch.bool)
        for start, end in example.spans:
            trained[start:end] = True
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        found.append((losses * trained[1:]).sum())
    return torch.stack(found)


def step_of(model, losses) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, and the gradient of their sum."""
    model.zero_grad(set_to_none=True)
    losses.sum().backward()
    gradient = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return losses.detach(), torch.cat(gradient)


@pytest.mark.parametrize("family", mostly_slow(sorted({*ALL, *MORE}), "cohere", "gemma4_text", "nanochat", "doge"))
def test_gradients_and_losses_are_those_of_transformers(family, tmp_path):
    """Kept, checkpointed in tiles, offloaded, and as rows are laid out in training: packed where they can be."""
    close = CLOSE.get(family, 1e-5)
    ours, plain = load_pair(family, tmp_path, torch.float32)
    wanted = gradient_of(plain, random_ids())
    offloading = Offloading(Late())
    for checkpointed, tiled, away in ((0, False, None), (3, True, None), (4, False, offloading)):
        checkpoint_layers(ours, checkpointed, away)
        tile_mlps(ours, tiled)
        assert relative(gradient_of(ours, random_ids()), wanted) < close
    assert not offloading.take_changed()
    loss_function, examples = LossFunction(ours), make_examples(5, seed=4, longest=60)
    batch = loss_function.layout.collate(examples, range(5))
    losses, gradient = step_of(ours, loss_function.row_losses(batch))
    wanted_losses, wanted = step_of(plain, losses_of(plain, examples))
    assert relative(losses, wanted_losses) < 1e-6 and relative(gradient, wanted) < close
