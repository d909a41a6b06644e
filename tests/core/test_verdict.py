"""Whether an export answers as the chat did."""

import pytest

from qlora_studio.core.events import Checked
from qlora_studio.core.verdict import could_agree_better, find_verdict


@pytest.mark.parametrize(
    ("kl", "identical", "kind", "word"),
    [
        (0.195, 0, "bad", "disagrees"),
        (0.1, 3, "bad", "disagrees"),
        (0.05, 0, "bad", "disagrees"),
        (0.05, 2, "warn", "differs a little"),
        (0.02, 3, "warn", "differs a little"),
        (0.019, 0, "good", "agrees"),
    ],
)
def test_the_distance_of_the_distributions_decides(kl, identical, kind, word):
    check = Checked(what="merged, original", same_top1=0.9, kl=kl, identical_answers=identical, answers=3)
    verdict = find_verdict(check)
    assert (verdict.kind, verdict.word) == (kind, word)
    assert could_agree_better(check) == (kind != "good")
    assert not could_agree_better(check.model_copy(update={"what": "merged, as chatted"}))
