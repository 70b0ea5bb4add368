"""A signing certificate of one's own, for development: nobody else trusts it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

VALID = timedelta(days=3650)  # without a timestamp a picture can be checked only while its certificate is valid


class Chain(NamedTuple):
    """PEM. certificates: the signer's, then its issuer's. anchors: the issuer's, what those who check are to trust."""

    certificates: bytes
    private_key: bytes
    anchors: bytes


def development_chain() -> Chain:
    """A new issuer and a signer's certificate from it, ES256. The issuer's own key is thrown away.

    The extensions are what the C2PA specification's certificate profile demands (chapter on trust, X.509 certificates):
    a signer's certificate has an issuer other than itself and names that issuer's key, may sign and isn't an authority,
    and is meant for an allowed purpose, here emailProtection.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(common: str) -> x509.Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "VCA development, not to be trusted")
        return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def certificate(common: str, key: ec.EllipticCurvePrivateKey, *, authority: bool) -> x509.Certificate:
        usage = x509.KeyUsage(
            digital_signature=not authority,
            key_cert_sign=authority,
            crl_sign=authority,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(common))
            .issuer_name(name("issuer"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + VALID)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if not authority:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
            builder = builder.add_extension(purpose, critical=False).add_extension(issuer, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    now = datetime.now(UTC)
    issuer_key, signer_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    signer_pem, issuer_pem = (
        certificate(common, key, authority=authority).public_bytes(serialization.Encoding.PEM)
        for common, key, authority in (("signer", signer_key, False), ("issuer", issuer_key, True))
    )
    private_pem = signer_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Chain(certificates=signer_pem + issuer_pem, private_key=private_pem, anchors=issuer_pem)
