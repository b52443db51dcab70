"""Keys of a campaign: made once, readable by their owner alone, used by all its processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mofal.errors import DependencyError

if TYPE_CHECKING:
    from distributed.security import Security

#: Certificates are made for a year; a campaign that lasts longer gets new ones after this (s).
RENEW_AFTER = 300 * 86400


def make_keys(folder: Path) -> None:
    """Make ``cert.pem`` and ``key.pem`` (0600) in a folder (0700), unless they are there.

    One self-signed certificate is authority, scheduler, worker and client at once: whoever holds
    the campaign's key belongs to it, and nobody else.
    """
    key, certificate = folder / "key.pem", folder / "cert.pem"
    if key.exists() and certificate.exists() and time.time() - key.stat().st_mtime < RENEW_AFTER:
        return
    from distributed.security import Security

    try:
        made = Security.temporary()
    except ImportError as error:
        raise DependencyError(
            "found no `cryptography`, which makes the keys between driver and workers; expected "
            "it: pip install 'mofal[slurm]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    for path, text in ((key, made.tls_client_key), (certificate, made.tls_client_cert)):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
        os.replace(temporary, path)


def load_security(folder: Path) -> Security:
    """Dask's security settings from the files of `make_keys`; plain connections are refused."""
    from distributed.security import Security

    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    roles = {}
    for role in ("client", "scheduler", "worker"):
        roles[f"tls_{role}_key"] = key
        roles[f"tls_{role}_cert"] = certificate
    return Security(require_encryption=True, tls_ca_file=certificate, **roles)
