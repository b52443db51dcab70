from __future__ import annotations

import runpy
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "data_store.py"


def test_data_store__tiny(tmp_path, capsys):
    main = runpy.run_path(str(BENCHMARK))["main"]
    assert main(["--size", "tiny", "--directory", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for step in ("write", "open and check", "read one structure", "check every byte"):
        assert any(line.startswith(step) and "MB/s" in line for line in out.splitlines())
    assert list(tmp_path.iterdir()) == []
