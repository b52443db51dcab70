"""Who gets in, and who may read what: keys, connections, modes of files."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from pathlib import Path

import pytest
from distributed import Client

from mofal.errors import ScheduleError
from mofal.schedule import Pools, ScheduleSettings, Task, dry_run
from mofal.schedule.files import Layout, read_json
from mofal.schedule.security import load_security, make_keys

from . import tasks

TOKEN = "token-4711-of-a-pool"


def _mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077], ids=["umask-022", "umask-077"])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_make_keys__nobody_elses_to_read(tmp_path, umask):
    folder = tmp_path / "schedule" / "tls"
    make_keys(folder)
    assert _mode(folder) == 0o700
    assert {path.name: _mode(path) for path in folder.iterdir()} == {
        "cert.pem": 0o600,
        "key.pem": 0o600,
    }


def test_make_keys__kept_as_long_as_they_are_secret(tmp_path):
    key = tmp_path / "key.pem"
    make_keys(tmp_path)
    first = key.read_bytes()
    make_keys(tmp_path)
    assert key.read_bytes() == first
    key.chmod(0o644)  # as `cp -r` leaves it: somebody may have read it
    make_keys(tmp_path)
    assert key.read_bytes() != first
    assert _mode(key) == 0o600
    second = key.read_bytes()
    (tmp_path / "cert.pem").unlink()  # stopped between the two
    make_keys(tmp_path)
    assert key.read_bytes() != second
    ssl.create_default_context().load_cert_chain(tmp_path / "cert.pem", key)


def test_make_keys__folder_of_another_user(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("it takes root to make a folder of another user")
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(ScheduleError, match="cannot be kept from others"):
        make_keys(tmp_path)
    assert not (tmp_path / "key.pem").exists()


def test_make_keys__hold_where_certificates_are_read_strictly(tmp_path):
    """Newer versions of Python ask more of a certificate than OpenSSL does by itself."""
    make_keys(tmp_path)
    security = load_security(tmp_path)
    sides = [security.get_connection_args("client"), security.get_listen_args("scheduler")]
    client, server = (side["ssl_context"] for side in sides)
    for context in (client, server):
        context.verify_flags |= getattr(ssl, "VERIFY_X509_STRICT", 0)
        assert context.verify_mode is ssl.CERT_REQUIRED
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(theirs, ours, server_hostname="any"),
        server.wrap_bio(ours, theirs, server_side=True),
    ]
    done = set()
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
    assert len(done) == 2


def _settings(backend="local"):
    pool = {"kinds": ["*"], "workers": 1, "environment": {"MY_TOKEN": TOKEN}}
    return ScheduleSettings.model_validate({"backend": backend, "pools": {"local": pool}})


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    make_keys(folder)
    return load_security(folder)


async def _get_in(address, security):
    """Connect as a client and have the scheduler say its process number."""
    async with Client(address, security=security, asynchronous=True, timeout=3) as client:
        return await client.run_on_scheduler(os.getpid)


@pytest.mark.slow
def test_local__nobody_gets_in_and_secrets_are_kept(tmp_path, umask, foreign):
    """By default: no settings are needed for it."""
    folder = tmp_path / "campaign"
    output = folder / "out.json"
    with Pools.from_settings(_settings(), directory=folder) as pools:
        task = Task("label", "x", tasks.label, {"output": str(output)}, output)
        (outcome,) = pools.run([task])
        assert outcome.ok
        layout = Layout(folder / "schedule")
        address = read_json(layout.scheduler_file)["address"]
        assert address.startswith("tls://127.0.0.1:")
        own = asyncio.run(_get_in(address, load_security(layout.tls)))
        assert own not in (0, os.getpid())  # whoever has the key is let in
        plain = address.replace("tls://", "tcp://")
        for wrong, keys in ((plain, None), (address, foreign)):
            with pytest.raises((OSError, ValueError)):
                asyncio.run(_get_in(wrong, keys))
        # A client that trusts anybody and shows no certificate.
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        host, port = address.removeprefix("tls://").split(":")
        with (
            socket.create_connection((host, int(port)), timeout=5) as connection,
            anybody.wrap_socket(connection) as wrapped,
            pytest.raises(ssl.SSLError, match="certificate required"),
        ):
            wrapped.recv(1)
        files = [path for path in folder.rglob("*") if path.is_file()]
        named = [path for path in files if address.encode() in path.read_bytes()]
        held = [path for path in files if TOKEN.encode() in path.read_bytes()]
        assert layout.scheduler_file in named
        assert held
        for path in (*named, *held):
            assert _mode(path) == 0o600 or _mode(path.parent) == 0o700, path
        for path in folder.rglob("*"):
            assert not _mode(path) & umask, path
        events = folder / "schedule" / "events.jsonl"
        assert _mode(events) == 0o666 & ~umask


@pytest.mark.parametrize("backend", ["inline", "threads"])
def test_own_process__nothing_is_opened(tmp_path, backend):
    with Pools.from_settings(_settings(backend), directory=tmp_path) as pools:
        output = tmp_path / "out.json"
        list(pools.run([Task("label", "x", tasks.label, {"output": str(output)}, output)]))
        own = {os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.exists()}
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = {f"socket:[{fields[9]}]" for fields in lines if fields[3] == "0A"}
        assert not own & listening
    assert {path.name for path in (tmp_path / "schedule").iterdir()} == {"events.jsonl"}


def test_dry_run__says_what_is_open(tmp_path):
    assert "TLS on" in dry_run(ScheduleSettings(workers=1), directory=tmp_path)
    text = dry_run(ScheduleSettings(workers=1, tls=False), directory=tmp_path)
    assert "TLS off" in text
    assert "can run code as you; expected tls: true" in text
