"""Tasks, their references and what travels to a worker."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

from mofal.errors import ScheduleError
from mofal.schedule import Task
from mofal.schedule.execution import execute_payload, execute_task, make_payload
from mofal.schedule.task import function_reference, resolve

from . import tasks


class _Holder:
    @staticmethod
    def method() -> None:
        """Nested, and importable all the same."""


def test_function_reference__round_trip():
    assert resolve(function_reference(tasks.label)) is tasks.label
    assert resolve(function_reference(_Holder.method)) is _Holder.method


def test_function_reference__lambda_is_refused():
    with pytest.raises(ScheduleError, match="cannot import"):
        function_reference(lambda: None)


def test_function_reference__closure_is_refused():
    def inner() -> None:
        pass

    with pytest.raises(ScheduleError, match="cannot import"):
        function_reference(inner)


def test_function_reference__replaced_function_is_refused(monkeypatch):
    original = tasks.fail
    monkeypatch.setattr(tasks, "fail", tasks.silent)
    with pytest.raises(ScheduleError, match="does not resolve to itself"):
        function_reference(original)


def test_make_payload__large_arguments_are_refused():
    task = Task("label", "1", tasks.label, {"output": np.zeros(10**6)})
    with pytest.raises(ScheduleError, match=r"8\.0 MB of arguments.*write the data to the store"):
        make_payload(task)


def test_make_payload__unpicklable_arguments_are_refused():
    task = Task("label", "1", tasks.label, {"output": (i for i in range(3))})
    with pytest.raises(ScheduleError, match="cannot be pickled"):
        make_payload(task)


def test_execute_payload__module_that_is_not_there():
    payload = {
        "name": "x",
        "function": "no_such_module:f",
        "kwargs": pickle.dumps({}),
        "output": None,
    }
    result = execute_payload(payload)
    assert result["status"] == "failed"
    assert "no_such_module" in result["reason"]


def test_execute_payload__equals_execute_task(tmp_path):
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    a = execute_task(Task("label", "1", tasks.label, {"output": str(one), "value": 3}, one))
    b = execute_payload(
        make_payload(Task("label", "2", tasks.label, {"output": str(two), "value": 3}, two))
    )
    assert a["status"] == b["status"] == "done"
    assert a["summary"] == b["summary"] == {"value": 9}
    assert one.read_text() == two.read_text()


def test_execute_task__output_that_is_there_is_found(tmp_path):
    path = tmp_path / "1.json"
    path.write_text("precious")
    result = execute_task(Task("label", "1", tasks.label, {"output": str(path)}, path))
    assert result["status"] == "found"
    assert path.read_text() == "precious"


def test_execute_task__promise_not_kept(tmp_path):
    result = execute_task(Task("label", "1", tasks.silent, {}, tmp_path / "never.json"))
    assert result["status"] == "failed"
    assert "is not there" in result["reason"]


def test_execute_task__summary_must_be_json():
    result = execute_task(Task("label", "1", tasks.unprintable))
    assert result["status"] == "failed"
    assert "JSON" in result["reason"]


def test_execute_task__exit_of_a_task_is_a_failure():
    result = execute_task(Task("label", "1", sys.exit, {}))
    assert result["status"] == "failed"
    assert result["reason"].startswith("SystemExit")


def test_execute_task__reason_is_one_line():
    result = execute_task(Task("label", "1", tasks.fail, {"text": "first\nsecond"}))
    assert result["reason"] == "ValueError: first"
    assert "second" in result["traceback"]
