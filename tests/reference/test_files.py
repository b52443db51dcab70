"""Files of records: who may read them."""

from __future__ import annotations

import os
import stat

import pytest

from mofal.files import write_bytes
from mofal.reference.files import write_new


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("write", [write_bytes, write_new])
def test_write__umask_holds(tmp_path, umask, write):
    before = os.umask(umask)
    try:
        write(tmp_path / "ab" / "record", b"text")
    finally:
        os.umask(before)
    file = tmp_path / "ab" / "record"
    assert file.read_bytes() == b"text"
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o777 & ~umask
    assert [path.name for path in file.parent.iterdir()] == ["record"]
