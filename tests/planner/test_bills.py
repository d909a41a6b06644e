"""No number of a formula changes unseen: bills, plans and times are those of the table."""

import json

import pytest

from tests.planner import bills

TABLE = json.loads(bills.TABLE.read_text(encoding="utf-8"))
CASES = dict(bills.cases())


def test_the_table_has_every_case():
    assert list(CASES) == list(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_bill_is_that_of_the_table(name):
    assert json.loads(json.dumps(CASES[name]())) == TABLE[name], "meant? python -m tests.planner.bills"
