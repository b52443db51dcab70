from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(request, monkeypatch):
    """Flushing changes no result and takes most of the time; tests of it say `flushes`."""
    if "flushes" not in request.fixturenames:
        monkeypatch.setattr("mofal.files._flush", lambda path: None)


@pytest.fixture
def flushes(monkeypatch):
    """Paths in the order in which they were flushed or renamed."""
    import os

    from mofal import files

    order: list[tuple[str, str]] = []
    flush, rename, replace = files._flush, os.rename, os.replace

    def recorded_flush(path):
        order.append(("flush", str(path)))
        flush(path)

    def recorded(move):
        def moved(source, target):
            # Zarr renames every file that it writes, inside the temporary directory.
            if not str(source).endswith(".partial"):
                order.append(("rename", str(target)))
            move(source, target)

        return moved

    monkeypatch.setattr(files, "_flush", recorded_flush)
    monkeypatch.setattr(files.os, "rename", recorded(rename))
    monkeypatch.setattr(files.os, "replace", recorded(replace))
    return order
