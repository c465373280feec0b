from __future__ import annotations

import os
import signal
from functools import partial

import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.workers import Outcome, call_apart, count_workers, map_cases


def work(task: str) -> str:
    if task == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "bad":
        raise UserError("bad.nii.gz: broken; mend it")
    if task == "bug":
        raise ZeroDivisionError("a fault of the program")
    return task.upper()


def test_one_process_and_several_give_the_same() -> None:
    tasks = [(name, name) for name in ("a", "bad", "b")]
    seen: list[str] = []
    expected = [Outcome("a", "A"), Outcome("bad", problem="bad.nii.gz: broken; mend it"), Outcome("b", "B")]
    assert map_cases(work, tasks, 1, seen.append) == expected
    assert seen == ["a", "bad", "b"]
    assert map_cases(work, tasks, 2, seen.append) == expected
    assert sorted(seen[3:]) == ["a", "b", "bad"]


def test_a_killed_worker_is_named_with_its_case_and_replaced() -> None:
    tasks = [(f"case_{i}", name) for i, name in enumerate(("a", "b", "killed", "killed", "c"))]
    outcomes = map_cases(work, tasks, 2)
    assert [o.value for o in outcomes] == ["A", "B", None, None, "C"]
    assert [o.case for o in outcomes] == [name for name, _ in tasks]
    problem = outcomes[2].problem or ""
    assert problem.startswith("case 'case_2': the worker process that read it was killed by signal 9 (SIGKILL)")
    assert "memory" in problem
    assert "now 2" in problem


def test_a_fault_of_the_program_is_no_problem_of_the_case() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)case 'x' failed in a worker.*ZeroDivisionError: a fault"):
        map_cases(work, [("x", "bug"), ("y", "a")], 2)
    with pytest.raises(ZeroDivisionError):
        map_cases(work, [("x", "bug")], 1)


def test_a_call_in_a_process_of_its_own() -> None:
    assert call_apart(os.getpid, "x") != os.getpid()
    with pytest.raises(UserError, match=r"^bad\.nii\.gz: broken; mend it$"):
        call_apart(partial(work, "bad"), "x")
    with pytest.raises(UserError, match="case 'x': the worker process that read it was killed by signal 9"):
        call_apart(partial(work, "killed"), "x")


def test_workers_are_never_more_than_cases() -> None:
    assert count_workers(4, 2) == 2
    assert count_workers(3, 9) == 3
    assert 1 <= count_workers(0, 100) <= 8
    with pytest.raises(UserError, match="workers: -1 is not possible"):
        count_workers(-1, 5)
