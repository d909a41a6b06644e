"""Weights are known again by their hashes, whatever their files are called."""

from __future__ import annotations

import pytest

from qlora_studio.core.identity import Identity

BASE = "The base's weights are not those it was trained with: "
ADAPTER = "The adapter's files are not those it was trained with: "
TEMPLATE = "The chat template is not the one it was trained with."
HELD = Identity(base={"a": "1", "b": "2", "c": "3"}, adapter={"x": "7"}, template="t")


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, ()),
        ({"base": None, "adapter": None, "template": None}, ()),
        ({"base": {"c": "1", "e": "2", "d": "3"}}, ()),  # the same bytes under other names
        ({"base": {"c": "3"}}, (BASE + "a is missing.",)),
        ({"base": {"a": "1", "c": "3", "z": "9"}}, (BASE + "b is missing.",)),
        ({"base": {"a": "1", "b": "2", "c": "3", "e": "5", "d": "4"}}, (BASE + "d is new.",)),
        ({"base": {"a": "1", "b": "9", "c": "8"}}, (BASE + "b has changed.",)),
        ({"adapter": {"x": "8"}}, (ADAPTER + "x has changed.",)),
        ({"template": "u"}, (TEMPLATE,)),
        ({"base": {}, "adapter": {}, "template": ""}, (BASE + "a is missing.", ADAPTER + "x is missing.", TEMPLATE)),
    ],
)
def test_what_differs_is_named_by_its_first_file(changes, sentences):
    assert HELD.differences(HELD.model_copy(update=changes)) == sentences


@pytest.mark.parametrize("part", ["base", "adapter", "template"])
def test_what_was_not_known_differs_from_nothing(part):
    assert HELD.model_copy(update={part: None}).differences(HELD) == ()
