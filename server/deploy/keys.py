"""Certificates and keys of a federation: its own authority, the server's certificate, a key pair for every site.

All keys are on the curve P-384, which is what Flower's node authentication takes. What exists is never overwritten:
a lost key can be replaced, a key written over by accident cannot. Private files are for their owner alone.
"""

import ipaddress
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedasym.files import write_atomic

AUTHORITY_LIFETIME = timedelta(days=3652)
SERVER_LIFETIME = timedelta(days=397)  # the most that common TLS clients accept of a server
_SKEW = timedelta(minutes=5)  # by which a site's clock may be behind
_LOCAL = ("localhost", "127.0.0.1")  # as the proxy and Flower's command line on this machine call the server


class KeyFileError(ValueError):
    """A key or certificate is there already, missing, or not what it should be."""


def make_authority(folder: Path, lifetime: timedelta = AUTHORITY_LIFETIME) -> None:
    """Write ``ca.key`` and ``ca.crt``: a certificate authority that signs this federation's server and nothing else.

    Args:
        folder: where; it is made if need be, for its owner alone.
        lifetime: of the certificate, from now.

    Raises:
        KeyFileError: one of the files exists.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(f"fedasym federation {secrets.token_hex(4)}")  # authorities of two federations differ by name too
    now = datetime.now(UTC)
    certificate = (
        _certificate(name, name, key.public_key(), now - _SKEW, now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    _refuse_existing(folder / "ca.key", folder / "ca.crt")
    write_private(folder / "ca.key", _private_pem(key))
    write_public(folder / "ca.crt", _pem(certificate))


def make_server_certificate(
    folder: Path, hosts: Sequence[str], lifetime: timedelta = SERVER_LIFETIME, start: datetime | None = None
) -> None:
    """Write ``server.key`` and ``server.crt``, signed by the folder's authority.

    Args:
        folder: which holds ``ca.key`` and ``ca.crt``.
        hosts: names and addresses by which sites reach the server; this machine's loopback is always added.
        lifetime: of the certificate.
        start: of the lifetime; now if left out.

    Raises:
        KeyFileError: one of the files exists, or the authority's are missing or spoilt.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    _refuse_existing(folder / "server.key", folder / "server.crt")
    certificate = _sign_server(folder, key.public_key(), hosts, lifetime, start)
    write_private(folder / "server.key", _private_pem(key))
    write_public(folder / "server.crt", certificate)


def renew_server_certificate(
    folder: Path, hosts: Sequence[str], lifetime: timedelta = SERVER_LIFETIME, start: datetime | None = None
) -> None:
    """Replace ``server.crt`` by one that lasts longer: same key, same authority, so that sites notice nothing.

    Args:
        folder: as of `make_server_certificate`.
        hosts: as of `make_server_certificate`.
        lifetime: of the certificate.
        start: of the lifetime; now if left out.

    Raises:
        KeyFileError: a key or certificate is missing or spoilt.
    """
    key = _load_private(folder / "server.key")
    write_atomic(folder / "server.crt", _sign_server(folder, key.public_key(), hosts, lifetime, start))


def make_node_keys(folder: Path) -> None:
    """Write a site's ``node.key`` and ``node.pub`` in OpenSSH's format, as Flower reads them.

    Raises:
        KeyFileError: one of the files exists.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    _refuse_existing(folder / "node.key", folder / "node.pub")
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_private(folder / "node.key", private)
    write_public(folder / "node.pub", _public_line(key.public_key()))


def read_public_key(path: Path) -> bytes:
    """Return a site's public key as one OpenSSH line, checked.

    Raises:
        KeyFileError: it is not a public key that Flower takes, or it is a private key.
    """
    if not path.exists():
        raise KeyFileError(f"there is no public key {path}; the site makes one with `ssh-keygen -t ecdsa -b 384`")
    data = path.read_bytes()
    if b"PRIVATE KEY" in data:
        raise KeyFileError(f"{path} is a private key, which must not leave its site; give the .pub file beside it")
    try:
        key = serialization.load_ssh_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} is not an OpenSSH public key ({error}); make one with ssh-keygen") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise KeyFileError(f"{path} is a key of another kind; Flower takes `ssh-keygen -t ecdsa -b 384`")
    return _public_line(key)


def expiry(certificate: Path) -> datetime:
    """Return the end of a certificate's lifetime, in UTC.

    Raises:
        KeyFileError: it is missing or spoilt.
    """
    return _load_certificate(certificate).not_valid_after_utc


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone may read, in a folder that its owner alone may enter.

    Raises:
        KeyFileError: the file exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_new(path, data, 0o600)


def write_public(path: Path, data: bytes) -> None:
    """Write a new file that others may read if they get so far.

    Raises:
        KeyFileError: the file exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write_new(path, data, 0o644)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole or not at all; a link to a name that is taken fails, which a rename would not."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        raise KeyFileError(f"{path} exists and is never overwritten; move it away to make a new one") from None
    finally:
        temporary.unlink()


def _refuse_existing(*paths: Path) -> None:
    """Refuse before the first file of a pair is written, so that no half of a pair is left."""
    for path in paths:
        if path.exists():
            raise KeyFileError(f"{path} exists and is never overwritten; move it away to make a new one")


def _sign_server(
    folder: Path, key: ec.EllipticCurvePublicKey, hosts: Sequence[str], lifetime: timedelta, start: datetime | None
) -> bytes:
    authority_key, authority = _load_private(folder / "ca.key"), _load_certificate(folder / "ca.crt")
    begin = (datetime.now(UTC) - _SKEW) if start is None else start
    end = min((start or datetime.now(UTC)) + lifetime, authority.not_valid_after_utc)
    names = [_alternative(host) for host in dict.fromkeys((*hosts, *_LOCAL))]
    issuer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _certificate(_name("fedasym server"), authority.subject, key, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    return _pem(certificate)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), begin, end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_line(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"


def _load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        raise KeyFileError(f"there is no key {path}; bring it back from where it is kept")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} is not a private key without passphrase ({error}); restore it") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFileError(f"{path} is a private key of another kind; expected one on the curve P-384")
    return key


def _load_certificate(path: Path) -> x509.Certificate:
    if not path.exists():
        raise KeyFileError(f"there is no certificate {path}; bring it back or make a new home")
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise KeyFileError(f"{path} is not a certificate ({error}); restore it") from None
