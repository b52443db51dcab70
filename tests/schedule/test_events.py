"""The event log and what is read from it."""

from __future__ import annotations

import json

from mofal.schedule import EventLog, read_events


def test_event_log__round_trip(tmp_path):
    log = EventLog(tmp_path)
    log.write("end", kind="label", wall_time=1.5)
    log.close()
    log.write("late")
    (event,) = read_events(tmp_path)
    assert (event["event"], event["kind"], event["wall_time"]) == ("end", "label", 1.5)


def test_read_events__nothing_there(tmp_path):
    assert list(read_events(tmp_path)) == []


def test_read_events__torn_and_foreign_lines_are_skipped(tmp_path):
    log = EventLog(tmp_path)
    log.write("one")
    log.close()
    with log.path.open("ab") as stream:
        stream.write(b'[1, 2]\nnonsense\n{"t": 1}\n{"t": 1, "event": "torn')
    log = EventLog(tmp_path)  # the next driver
    log.write("two")
    log.close()
    assert [event["event"] for event in read_events(tmp_path)] == ["one", "two"]


def test_read_events__from_a_place(tmp_path):
    log = EventLog(tmp_path)
    log.write("one")
    place = log.path.stat().st_size
    log.write("two")
    log.close()
    assert [event["event"] for event in read_events(tmp_path, start=place)] == ["two"]


def test_event_log__a_line_is_one_json_object(tmp_path):
    log = EventLog(tmp_path)
    log.write("message", text="first\nsecond")
    log.close()
    (line,) = log.path.read_text().splitlines()
    assert json.loads(line)["text"] == "first\nsecond"


def test_event_log__full_disk_costs_lines_only(tmp_path):
    log = EventLog(tmp_path)
    log._fd, full = None, log._fd
    assert full is not None
    import os

    log._fd = os.open("/dev/full", os.O_WRONLY)
    log.write("lost")
    os.close(log._fd)
    log._fd = full
    log.write("kept")
    log.close()
    assert [event["event"] for event in read_events(tmp_path)] == ["kept"]
