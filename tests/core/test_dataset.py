"""What an import reports of a set of which little is known."""

from __future__ import annotations

from qlora_studio.core.dataset import DatasetReport, Finding, FormatGuess, RowAccount
from tests.core.frozen import stays

SAID = {"name": "a", "format": "chat", "confidence": 1.0, "reason": "because", "rows": 3}


def test_a_report_says_nothing_of_what_did_not_happen():
    nothing = {"seen": 0, "imported": 0, "refused": 0, "dropped": 0, "passed_over": (), "notes": ()}
    assert DatasetReport(**SAID).model_dump(exclude=set(SAID)) == {
        "title": "", "eval_rows": 0, "account": nothing, "skipped": 0, "problems": (), "extra_fields": {},
        "source_file": "", "source_sha256": "", "source_bytes": 0, "sha256": "", "columns": {}, "unchanged": False,
        "details": {},
    }  # fmt: skip
    finding = Finding(name="secret", severity="note", count=1, message="One.")
    assert (finding.examples, finding.hint, finding.remedy, finding.setting) == ((), "", None, "")


def test_what_was_found_stays():
    guess = FormatGuess(format="chat", confidence=1.0, reason="because")
    assert all(map(stays, (DatasetReport(**SAID), RowAccount(), guess)))
