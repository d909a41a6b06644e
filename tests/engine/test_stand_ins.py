"""Storages are counted while they live, before and after the turn from forward to backward."""

import torch

from qlora_studio.engine.stand_ins import StorageCount


def test_the_most_before_the_turn_and_after_it_are_told_apart():
    known = torch.ones(1000)
    count = StorageCount([known])
    with count:
        kept = torch.ones(250)
        passing = torch.ones(500) + 1
        del passing
        count.turning = True
        later = torch.ones(100)
        del later
        last, view = torch.ones(50), kept[:10]
        known.add_(1)
    assert count.turn == (1000, 1000 + 2 * 2000)
    assert count.most == 1000 + 400
    assert count.now == 1000 + 200
    del last, view
    assert count.now == 1000 and len(kept) == 250
