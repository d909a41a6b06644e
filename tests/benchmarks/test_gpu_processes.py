"""The time of a command is shared out, and what a process found is told whatever happens then."""

import pytest

from benchmarks import gpu_processes
from benchmarks.gpu_processes import TimeBudget, measure_alone


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(gpu_processes.time, "monotonic", lambda: self.now)


def test_a_measurement_takes_at_most_twice_its_part_and_leaves_the_others_enough_to_begin(monkeypatch):
    clock = Clock(monkeypatch)
    budget = TimeBudget(560, [1] * 8, least=25)
    assert budget.share() == 140
    clock.now += 140
    assert budget.share() == pytest.approx(120)
    clock.now += 10
    assert budget.share() == pytest.approx(2 * 410 / 6)


def test_where_each_takes_all_it_may_no_time_is_exceeded_and_the_last_are_left_out(monkeypatch):
    clock = Clock(monkeypatch)
    budget, allowed = TimeBudget(100, [1, 4, 1, 1, 1, 1], least=25), []
    for _ in range(6):
        allowed.append(budget.share())
        clock.now += allowed[-1] or 0
    assert clock.now <= 100 and allowed == [25, 25, 25, 25, None, None]


def test_the_search_for_a_heavy_measurement_leaves_what_the_others_need(monkeypatch):
    Clock(monkeypatch)
    assert TimeBudget(485, [4, 1, 1, 1], least=25).share() == 410


SCRIPT = """
import sys, time
print("{'a trainer': 'prints'}")
print('{"tokens": 1}', flush=True)
if sys.argv[1] == "hangs": time.sleep(60)
if sys.argv[1] == "breaks": raise RuntimeError("out | of order")
"""


@pytest.mark.parametrize(
    ("how", "last"),
    [
        ("ends", {"tokens": 1}),
        pytest.param("hangs", {"says": "ran out of time after 3 s"}, marks=pytest.mark.slow),
        ("breaks", {"says": "exit 1: RuntimeError: out / of order"}),
    ],
)
def test_what_was_found_is_told_whatever_happens_then(tmp_path, how, last):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    seconds = 3 if how == "hangs" else 60
    found = list(measure_alone(str(script), [how], seconds, rehearse=False))
    assert (found[0], found[-1]) == ({"tokens": 1}, last)


def test_a_machine_that_lacks_a_package_is_told_before_anything_begins(monkeypatch):
    monkeypatch.setattr(gpu_processes, "NEEDED", ("json", "no_such_package"))
    assert gpu_processes.find_hindrance(True) == "The benchmark has not been run: no_such_package not installed."


def test_without_time_nothing_is_begun():
    assert list(measure_alone("no such script", [], None, rehearse=True)) == [{"says": "no time left"}]
