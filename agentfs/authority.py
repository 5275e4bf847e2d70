"""Certificates in plain values: a small authority's own, those it issues, its list of the revoked, and who one names.

It opens no file and no socket; where keys are kept and which certificate is believed is its callers' business.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agentfs.errors import error
from agentfs.types import Principal, agent_id

YEARS: Final = 10
SKEW: Final = timedelta(minutes=5)  # a client's clock may be behind: what is issued is valid from a little earlier
OPERATOR_URI: Final = "agentfs:operator"
AGENT_URI: Final = "agentfs:agent:"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_HOST: Final = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
_LISTS: Final = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)

Revoked: TypeAlias = frozenset[tuple[bytes, int]]
"""Issuer and serial number of each certificate that is no longer believed."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    cert: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Peer:
    """What a client's certificate says: the principal it names (None: nobody), until when, issuer and serial."""

    principal: Principal | None
    until: datetime
    ident: tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class About:
    """A certificate for people: its name, what it is for, its serial number (hex) and its time."""

    name: str
    use: str
    serial: str
    since: datetime
    until: datetime


def found(name: str, now: datetime) -> Pair:
    """A new authority *name* that signs certificates of clients and servers only, for ten years. EC P-256."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), _name(name)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    cert = (
        _draft(subject, subject, key.public_key(), (now - SKEW, now + timedelta(days=365 * YEARS + YEARS // 4)))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(own, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(cert, key)


def client(authority: Pair, name: str, principal: Principal, since: datetime, until: datetime) -> Pair:
    """A certificate with which a client is *principal* between *since* and *until*. EINVAL for a bad name."""
    uri = OPERATOR_URI if principal.is_operator else AGENT_URI + agent_id(principal.name)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    return _issue(authority, name, names, ExtendedKeyUsageOID.CLIENT_AUTH, (since, until))


def server(authority: Pair, name: str, hosts: Sequence[str], since: datetime, until: datetime) -> Pair:
    """A certificate for a server that is reached as *hosts*, DNS names and addresses. EINVAL for a bad name."""
    return _issue(authority, name, [_host(h) for h in hosts], ExtendedKeyUsageOID.SERVER_AUTH, (since, until))


def revoke(authority: Pair, held: bytes, serials: Sequence[int], now: datetime) -> bytes:
    """The list *held* (empty: none yet) with *serials* added, signed anew.

    It is good for as long as the authority: it is read where it is written, so its age says nothing. EINVAL for a
    damaged list or authority.
    """
    cert, key = _authority(authority)
    gone = {entry.serial_number: entry for entry in _list(held)} if held else {}
    for serial in serials:
        if serial not in gone:
            gone[serial] = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(cert.subject)
        .last_update(now - SKEW)
        .next_update(cert.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
    )
    for entry in gone.values():
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def revoked(lists: bytes) -> Revoked:
    """What the PEM *lists* say is no longer believed. EINVAL when there is none, or a damaged one."""
    found = _LISTS.findall(lists)
    if not found:
        raise error(errno.EINVAL, detail="not a PEM list of revoked certificates")
    gone = set()
    for one in found:
        held = _list(one)
        gone |= {(held.issuer.public_bytes(), entry.serial_number) for entry in held}
    return frozenset(gone)


def peer(der: bytes) -> Peer:
    """What the certificate *der*, already verified, says of its holder. EINVAL when it cannot be read."""
    try:
        cert = x509.load_der_x509_certificate(der)
        ident = (cert.issuer.public_bytes(), cert.serial_number)
        return Peer(principal(_uris(cert)), cert.not_valid_after_utc, ident)
    except (ValueError, x509.DuplicateExtension, UnsupportedAlgorithm) as exc:
        raise error(errno.EINVAL, detail=f"certificate: {exc}") from exc


def principal(uris: Sequence[str]) -> Principal | None:
    """The one principal that the alternative names *uris* stand for; None for nobody, or more than one."""
    own = [uri for uri in uris if uri.startswith("agentfs:")]
    if own == [OPERATOR_URI]:
        return Principal("operator")
    if len(own) != 1 or not own[0].startswith(AGENT_URI):
        return None
    try:
        return Principal("agent", agent_id(own[0].removeprefix(AGENT_URI)))
    except OSError:
        return None


def about(cert: bytes) -> About:
    """What is to be shown of a PEM certificate. EINVAL when it is none."""
    try:
        parsed = x509.load_pem_x509_certificate(cert)
        names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name = str(names[0].value) if names else ""
        use = " ".join(_uris(parsed) or _hosts(parsed))
    except (ValueError, x509.DuplicateExtension) as exc:
        raise error(errno.EINVAL, detail=f"not a PEM certificate: {exc}") from exc
    return About(name, use, f"{parsed.serial_number:x}", parsed.not_valid_before_utc, parsed.not_valid_after_utc)


def check_name(name: str) -> str:
    """*name* if a certificate, and the files it is kept in, may have it. EINVAL."""
    if not _NAME.match(name) or name in ("ca", "crl"):
        raise error(errno.EINVAL, name[:80], "name: want 1 to 64 of A-Z a-z 0-9 . _ -, not ca or crl")
    return name


def now() -> datetime:
    """The time as certificates have it: UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def _issue(
    authority: Pair, name: str, names: list[x509.GeneralName], use: x509.ObjectIdentifier,
    valid: tuple[datetime, datetime],
) -> Pair:  # fmt: skip
    cert, signer = _authority(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(valid[1], cert.not_valid_after_utc)
    if until <= valid[0]:
        raise error(errno.EINVAL, name, "it would end before it begins")
    issued = (
        _draft(_name(check_name(name)), cert.subject, key.public_key(), (valid[0], until))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _pair(issued, key)


def _draft(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid: tuple[datetime, datetime]
) -> x509.CertificateBuilder:
    blank = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return blank.serial_number(x509.random_serial_number()).not_valid_before(valid[0]).not_valid_after(valid[1])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host.strip("[]")))
    except ValueError:
        if not _HOST.match(host):
            raise error(errno.EINVAL, host[:80], "server: want a DNS name or an address, without a port") from None
        return x509.DNSName(host.lower())


def _uris(cert: x509.Certificate) -> list[str]:
    return _alternatives(cert).get_values_for_type(x509.UniformResourceIdentifier)


def _hosts(cert: x509.Certificate) -> list[str]:
    names = _alternatives(cert)
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _alternatives(cert: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])


def _pair(cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    return Pair(cert.public_bytes(pem), key.private_bytes(pem, form, plain))


def _authority(pair: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        cert = x509.load_pem_x509_certificate(pair.cert)
        key = serialization.load_pem_private_key(pair.key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise error(errno.EINVAL, detail=f"the authority's certificate or key is damaged: {exc}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
        raise error(errno.EINVAL, detail="the authority's key is not that of its certificate")
    return cert, key


def _list(pem: bytes) -> x509.CertificateRevocationList:
    try:
        return x509.load_pem_x509_crl(pem)
    except ValueError as exc:
        raise error(errno.EINVAL, detail=f"not a PEM list of revoked certificates: {exc}") from exc
