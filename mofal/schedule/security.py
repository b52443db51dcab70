"""Keys of a campaign: made once, readable by their owner alone, used by all its processes."""

from __future__ import annotations

import datetime
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mofal.errors import DependencyError, ScheduleError
from mofal.files import write_bytes

if TYPE_CHECKING:
    from distributed.security import Security

#: Certificates are made for a year; a campaign that lasts longer gets new ones after this (s).
VALID, RENEW_AFTER = datetime.timedelta(days=365), 300 * 86400


def make_keys(folder: Path) -> None:
    """Make ``cert.pem`` and ``key.pem`` (0600) in a folder (0700), unless they are there.

    One self-signed certificate is authority, scheduler, worker and client at once: whoever holds
    the campaign's key belongs to it, and nobody else. A key that others could read (a copied
    directory, say) is replaced.

    Raises
    ------
    DependencyError
        `cryptography` is not installed.
    ScheduleError
        The folder is another user's, or lies where files cannot be kept from others.
    """
    key, certificate = folder / "key.pem", folder / "cert.pem"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.chmod(folder, 0o700)
    except OSError as error:
        raise _not_kept(folder) from error
    if _is_private(key) and certificate.exists():
        fresh = time.time() - key.stat().st_mtime < RENEW_AFTER
        if fresh:
            return
    key_text, certificate_text = _new_pair()
    certificate.unlink(missing_ok=True)  # whoever is stopped between the two makes both again
    for path, content in ((key, key_text), (certificate, certificate_text)):
        write_bytes(path, content, mode=0o600, durable=False)
    if not _is_private(key) or not _is_private(folder):
        key.unlink(missing_ok=True)
        raise _not_kept(folder)


def _is_private(path: Path) -> bool:
    """Whether a path is there, this user's, and nobody else's to read."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    return facts.st_uid == os.geteuid() and not stat.S_IMODE(facts.st_mode) & 0o077


def _not_kept(folder: Path) -> ScheduleError:
    return ScheduleError(
        f"the keys of this campaign cannot be kept from others in {folder} (another user's "
        "directory, or a file system without permissions); put the campaign elsewhere, or set "
        "schedule: {tls: false} where nobody else can log in"
    )


def _new_pair() -> tuple[bytes, bytes]:
    """A private key and its self-signed certificate, as PEM.

    On an elliptic curve: made in a millisecond, where RSA (as `Security.temporary` has it) takes a
    tenth of a second, and cheaper with every connection.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise DependencyError(
            "found no `cryptography`, which makes the keys between driver and workers; expected "
            "it: pip install 'mofal[parallel]' (without it set schedule: {backend: threads})"
        ) from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mofal-campaign")])
    now = datetime.datetime.now(datetime.UTC)
    unused = ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    unused += ["crl_sign", "encipher_only", "decipher_only"]
    usage = {"digital_signature": True, "key_cert_sign": True, **dict.fromkeys(unused, False)}
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of nodes differ
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


def load_security(folder: Path) -> Security:
    """Dask's security settings from the files of `make_keys`; plain connections are refused."""
    from distributed.security import Security

    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    roles = {}
    for role in ("client", "scheduler", "worker"):
        roles[f"tls_{role}_key"] = key
        roles[f"tls_{role}_cert"] = certificate
    return Security(require_encryption=True, tls_ca_file=certificate, **roles)
