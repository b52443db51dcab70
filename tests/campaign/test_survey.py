"""A campaign file that names a Dask cluster: who is there is known before the preparation."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import yaml

import mofal
from mofal.cli import main
from tests.campaign.conftest import BASE, in_time

distributed = pytest.importorskip("distributed")


def _file(folder: Path, address: str) -> Path:
    content = {**yaml.safe_load(BASE), "schedule": {"backend": "client", "address": address}}
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _run(file: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, float]:
    began = time.monotonic()
    with in_time():
        status = main(["run", str(file), "--directory", str(file.parent / "out"), *more])
    out, err = capsys.readouterr()
    assert not (file.parent / "out").exists()
    assert "Traceback" not in err
    return status, out + err, time.monotonic() - began


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as made:
        yield made


def test_dry_run__nobody_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound and never listening: refused as long as this lasts
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr("mofal.campaign.driver.CONNECT", 1.0)
        file = _file(tmp_path, address)
        for more, most in ((["--dry-run"], 15.0), ([], 10.0)):
            status, text, seconds = _run(file, capsys, *more)
            assert status == 1
            (line,) = text.strip().splitlines()
            assert line.startswith(f"mofal: found no Dask scheduler at {address} (")
            assert "expected one that runs" in line
            assert seconds < most


def test_dry_run__no_scheduler_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mofal.campaign.driver.CONNECT", 0.5)
    status, text, _ = _run(_file(tmp_path, str(tmp_path / "sched.json")), capsys)
    assert status == 1
    assert f"found no scheduler file {tmp_path / 'sched.json'}; expected" in text
    assert "dask scheduler --scheduler-file" in text


def test_dry_run__asks_the_workers(
    cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it should be; then a worker with another mofal, and one with none."""
    file = _file(tmp_path, cluster.scheduler_address)
    with distributed.Client(cluster, set_as_default=False) as client:
        # What is in the queue, or how long, delays nothing.
        busy = client.submit(time.sleep, 6, pure=False)
        status, text, seconds = _run(file, capsys, "--dry-run")
        assert status == 0
        assert f"the scheduler at {cluster.scheduler_address} answers; 1 worker, mofal as" in text
        assert seconds < 20
        assert not busy.done()
        client.run(exec, "import mofal; mofal.__version__ = '0.0.1'")
        status, text, _ = _run(file, capsys, "--dry-run")
        assert status == 1
        assert f"found mofal 0.0.1 on a worker ({socket.gethostname()})" in text
        assert f"and {mofal.__version__} here; expected one version" in text
        client.run(exec, "import sys; sys.modules['mofal'] = None")
        status, text, _ = _run(file, capsys, "--dry-run")
        assert status == 1
        assert "cannot import mofal (ModuleNotFoundError" in text
        assert len(text.strip().splitlines()) == 1


def test_dry_run__no_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said, and no refusal: a cluster that adapts has none before there is work."""
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as cluster:
        status, text, _ = _run(_file(tmp_path, cluster.scheduler_address), capsys, "--dry-run")
    assert status == 0
    assert f"warning: the scheduler at {cluster.scheduler_address} has no worker" in text
