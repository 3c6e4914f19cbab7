"""The certificates verify as a strict TLS client verifies them; keys are private and never written over."""

import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from server.deploy import keys

HOSTS = ("fed.example.org", "192.0.2.7")
PAIRS = ("ca.key", "ca.crt", "server.key", "server.crt", "node.key", "node.pub")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "home")


def make(folder: Path) -> Path:
    keys.make_authority(folder)
    keys.make_server_certificate(folder, HOSTS)
    keys.make_node_keys(folder)
    return folder


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def greet(server: Path, trusted: Path, host: str) -> None:
    """Do a TLS handshake in memory."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(server / "server.crt", server / "server.key")
    theirs = ssl.create_default_context(cafile=str(trusted / "ca.crt"))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides: Iterator[ssl.SSLObject] = iter(
        (theirs.wrap_bio(down, up, server_hostname=host), ours.wrap_bio(up, down, server_side=True))
    )
    waiting = list(sides)
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not waiting


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1"])
def test_a_site_reaches_the_server_by_each_of_its_names(folder: Path, host: str) -> None:
    greet(folder, folder, host)


def test_another_name_another_authority_and_a_certificate_past_its_end_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    other = make(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        greet(folder, folder, "elsewhere.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        greet(folder, other, HOSTS[0])
    past = datetime.now(UTC) - timedelta(days=2)
    keys.renew_server_certificate(folder, HOSTS, timedelta(days=1), past)
    assert keys.expiry(folder / "server.crt") < datetime.now(UTC)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        greet(folder, folder, HOSTS[0])


def test_a_second_verifier_agrees_and_the_lifetimes_are_as_promised(folder: Path) -> None:
    authority, server = certificate(folder / "ca.crt"), certificate(folder / "server.crt")
    policy = PolicyBuilder().store(Store([authority]))
    policy.build_server_verifier(x509.DNSName(HOSTS[0])).verify(server, [])
    late = policy.time(datetime.now(UTC) + keys.SERVER_LIFETIME + timedelta(hours=1))
    with pytest.raises(VerificationError):
        late.build_server_verifier(x509.DNSName(HOSTS[0])).verify(server, [])
    for found, lifetime in ((authority, keys.AUTHORITY_LIFETIME), (server, keys.SERVER_LIFETIME)):
        left = found.not_valid_after_utc - datetime.now(UTC)
        assert lifetime - timedelta(minutes=5) < left <= lifetime
        assert isinstance(found.public_key(), ec.EllipticCurvePublicKey)
        assert found.public_key().curve.name == "secp384r1"
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_server_certificate_never_outlives_its_authority(tmp_path: Path) -> None:
    keys.make_authority(tmp_path, timedelta(days=10))
    keys.make_server_certificate(tmp_path, HOSTS)
    assert keys.expiry(tmp_path / "server.crt") == keys.expiry(tmp_path / "ca.crt")


def test_a_renewed_certificate_has_the_old_key_and_sites_notice_nothing(folder: Path) -> None:
    key, before = (folder / "server.key").read_bytes(), certificate(folder / "server.crt")
    keys.renew_server_certificate(folder, [*HOSTS, "new.example.org"])
    after = certificate(folder / "server.crt")
    assert (folder / "server.key").read_bytes() == key
    assert after.public_key() == before.public_key() and after.serial_number != before.serial_number
    greet(folder, folder, "new.example.org")


def test_private_files_are_for_their_owner_alone(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in PAIRS:
        assert stat.S_IMODE((folder / name).stat().st_mode) == (0o600 if name.endswith(".key") else 0o644)
    assert {path.name for path in folder.iterdir()} == set(PAIRS)  # and nothing temporary is left


@pytest.mark.parametrize("kept", PAIRS)
def test_nothing_that_exists_is_overwritten_and_no_half_of_a_pair_is_left(folder: Path, kept: str) -> None:
    for name in PAIRS:
        if name.partition(".")[0] == kept.partition(".")[0] and name != kept:
            (folder / name).unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = {
        "ca": keys.make_authority,
        "server": lambda where: keys.make_server_certificate(where, HOSTS),
        "node": keys.make_node_keys,
    }[kept.partition(".")[0]]
    with pytest.raises(keys.KeyFileError, match="never overwritten"):
        again(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_name_that_is_taken_between_look_and_write_is_not_overwritten(tmp_path: Path) -> None:
    keys.write_private(tmp_path / "secret", b"first")
    with pytest.raises(keys.KeyFileError, match="never overwritten"):
        keys.write_private(tmp_path / "secret", b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_node_keys_are_a_pair_in_the_format_that_flower_reads(folder: Path) -> None:
    private = serialization.load_ssh_private_key((folder / "node.key").read_bytes(), None)
    public = serialization.load_ssh_public_key((folder / "node.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(private.sign(b"now", ec.ECDSA(hashes.SHA256())), b"now", ec.ECDSA(hashes.SHA256()))
    assert keys.read_public_key(folder / "node.pub") == (folder / "node.pub").read_bytes()


def test_what_is_not_a_sites_public_key_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    line = edwards.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (tmp_path / "other.pub").write_bytes(line)
    for path, words in (
        (folder / "node.key", "private key, which must not leave"),
        (tmp_path / "note.txt", "not an OpenSSH public key"),
        (tmp_path / "other.pub", "another kind"),
        (tmp_path / "none.pub", "there is no public key"),
    ):
        with pytest.raises(keys.KeyFileError, match=words):
            keys.read_public_key(path)


def test_a_missing_or_spoilt_authority_is_named(folder: Path) -> None:
    (folder / "ca.key").write_text("spoilt")
    with pytest.raises(keys.KeyFileError, match="not a private key"):
        keys.renew_server_certificate(folder, HOSTS)
    (folder / "ca.key").unlink()
    with pytest.raises(keys.KeyFileError, match="there is no key"):
        keys.renew_server_certificate(folder, HOSTS)
    (folder / "ca.crt").write_text("spoilt")
    with pytest.raises(keys.KeyFileError, match="not a certificate"):
        keys.expiry(folder / "ca.crt")
