"""Keys beyond the vectors: any value comes back, and whatever is malformed is refused without being repeated."""

from __future__ import annotations

import base64
import errno
import os
import string
from collections.abc import Callable
from functools import partial

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from hypothesis import example, given
from hypothesis import strategies as st

from agentfs import bech32 as bech
from agentfs.providers.keys import curve, nip04, nip44, seed

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SECRETS = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
BAD_SECRETS = [bytes(32), b"", b"\1" * 31, b"\1" * 33, *(n.to_bytes(32, "big") for n in (ORDER, 2**256 - 1))]
WORDS = "leader monkey parrot ring guide accident before fence cannon height naive bean"
BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
PREFIXES = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_categories=["Lu"]), min_size=1)
KEYS = st.binary(min_size=32, max_size=32)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def refused(call: Callable[[], object], *secrets: str) -> str:
    """EINVAL, with nothing of *secrets* in it or in an exception before it; its text."""
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == errno.EINVAL
    assert caught.value.__context__ is None
    assert not any(secret in str(caught.value) for secret in secrets)
    return str(caught.value.strerror)


@given(secret=SECRETS, message=st.binary(max_size=200), place=st.integers(0, 63), flip=st.integers(1, 255))
def test_a_signature_is_of_one_key_and_message(secret: bytes, message: bytes, place: int, flip: int) -> None:
    public, signature = curve.pubkey(secret), curve.sign(secret, message)
    assert curve.verify(public, message, signature)
    assert curve.sign(secret, message) != signature  # fresh randomness
    changed = bytearray(signature)
    changed[place] ^= flip
    assert not curve.verify(public, message, bytes(changed))
    assert not curve.verify(public, message + b"\0", signature)
    assert not curve.verify(curve.pubkey(curve.fresh()), message, signature)


@given(public=st.binary(max_size=70), message=st.binary(max_size=70), signature=st.binary(max_size=140))
@example(public=b"\xff" * 32, message=b"", signature=b"\xff" * 64)
@example(public=bytes(32), message=bytes(32), signature=bytes(64))
def test_malformed_signatures_are_none(public: bytes, message: bytes, signature: bytes) -> None:
    assert curve.verify(public, message, signature) is False


@given(one=SECRETS, other=SECRETS)
def test_two_keys_share_one_point(one: bytes, other: bytes) -> None:
    assert curve.is_secret(one)
    assert curve.shared_x(one, curve.pubkey(other)) == curve.shared_x(other, curve.pubkey(one))


def test_the_shared_point_is_not_hashed() -> None:
    public = curve.pubkey(curve.fresh())
    assert curve.shared_x((1).to_bytes(32, "big"), public) == public


@pytest.mark.parametrize("secret", BAD_SECRETS, ids=lambda secret: f"{len(secret)}-{secret[:2].hex()}")
def test_what_is_no_secret_key(secret: bytes) -> None:
    assert not curve.is_secret(secret)
    public = curve.pubkey(curve.fresh())
    for call in (curve.pubkey, lambda it: curve.sign(it, bytes(32)), lambda it: curve.shared_x(it, public)):
        assert "secret key" in refused(partial(call, secret))


def test_what_else_the_curve_refuses() -> None:
    for public in (b"", bytes(32), bytes(33), b"\xff" * 32):
        assert "public key" in refused(partial(curve.shared_x, curve.fresh(), public))
    assert "randomness" in refused(lambda: curve.sign(curve.fresh(), bytes(32), b""))


@given(prefix=PREFIXES, data=st.binary(max_size=60))
def test_bech32_comes_back(prefix: str, data: bytes) -> None:
    if len(prefix) + 1 + -(-len(data) * 8 // 5) + 6 > 90:
        assert "longer" in refused(lambda: bech.encode(prefix, data))
        return
    text = bech.encode(prefix, data)
    assert bech.decode(text) == bech.decode(text.upper()) == (prefix, data)


@given(key=KEYS, place=st.integers(0, 62), letter=st.characters(min_codepoint=33, max_codepoint=126))
def test_one_wrong_letter_is_always_noticed(key: bytes, place: int, letter: str) -> None:
    text = bech.nsec(key)
    changed = text[:place] + letter + text[place + 1 :]
    if changed != text:
        refused(lambda: bech.secret_of(changed), changed, text[5:])


@given(text=st.text(max_size=100))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        prefix, data = bech.decode(text)
    except OSError as exc:
        assert exc.errno == errno.EINVAL
    else:
        assert bech.encode(prefix, data) == text.lower()


def test_a_key_is_of_one_kind() -> None:
    key = curve.fresh()
    assert "not an npub" in refused(lambda: bech.public_of(bech.nsec(key)), bech.nsec(key))
    assert "not an nsec" in refused(lambda: bech.secret_of(bech.npub(key)))
    assert "not an nsec" in refused(lambda: bech.secret_of(bech.encode("nsec", key[:31])))
    assert "32 bytes" in refused(lambda: bech.nsec(key[:31]))
    assert "prefix" in refused(lambda: bech.encode("NPUB", key))
    assert "prefix" in refused(lambda: bech.encode("", key))
    assert "mixed case" in refused(lambda: bech.public_of(bech.npub(key).capitalize()))


@pytest.mark.parametrize("text", ["a1q3g6mn3", "a1qqqd87cpp", "a1qpamnt9j", "a1qqqqqqqqqvgade4"])
def test_bech32_of_other_than_whole_bytes_is_refused(text: str) -> None:
    assert "padding" in refused(lambda: bech.decode(text))  # the checksum is right, the last bits are too many or not 0


@given(text=TEXTS, one=SECRETS, other=SECRETS)
def test_nip44_comes_back(text: str, one: bytes, other: bytes) -> None:
    key = nip44.conversation_key(one, curve.pubkey(other))
    payload = nip44.encrypt(text, key)
    assert nip44.decrypt(payload, nip44.conversation_key(other, curve.pubkey(one))) == text
    assert nip44.encrypt(text, key) != payload


@given(text=TEXTS, key=KEYS, data=st.data())
def test_nip44_notices_every_change(text: str, key: bytes, data: st.DataObject) -> None:
    raw = bytearray(base64.b64decode(nip44.encrypt(text, key)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    said = refused(lambda: nip44.decrypt(base64.b64encode(raw).decode(), key))
    assert "wrong MAC" in said or "unknown version" in said


@given(text=st.text(max_size=300))
def test_nip44_refuses_any_other_text(text: str) -> None:
    refused(lambda: nip44.decrypt(text, bytes(32)))


def test_nip44_refuses_what_is_no_text_or_key() -> None:
    assert "UTF-8" in refused(lambda: nip44.encrypt("secret \ud800", bytes(32)), "secret")
    assert "32 bytes" in refused(lambda: nip44.encrypt("x", bytes(31)))
    assert "32 bytes" in refused(lambda: nip44.encrypt("x", bytes(32), bytes(31)))
    payload = nip44.encrypt("hello", bytes(32), bytes(32))
    assert "32 bytes" in refused(lambda: nip44.decrypt(payload, b""))
    assert "not base64" in refused(lambda: nip44.decrypt(payload[:-1] + "\n", bytes(32)))
    payload = nip44.encrypt("x" * 33, bytes(32))
    assert payload.endswith("=")
    spelled = payload[:-2] + BASE64[BASE64.index(payload[-2]) + 1] + "="  # the same bytes, spelled otherwise
    assert base64.b64decode(spelled) == base64.b64decode(payload)
    assert "not base64" in refused(lambda: nip44.decrypt(spelled, bytes(32)))


@pytest.mark.parametrize("plain", [b"\xff\xfe secret", b"\xc3"])
def test_nip44_of_what_is_not_utf8(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nip44, "_utf8", lambda _text: plain)
    payload = nip44.encrypt("", bytes(32))
    assert "not UTF-8" in refused(lambda: nip44.decrypt(payload, bytes(32)), "secret", "0xff")


def cbc(plain: bytes, key: bytes) -> str:
    """A NIP-04 payload of *plain* with no padding added."""
    iv = os.urandom(16)
    hidden = Cipher(AES(key), CBC(iv)).encryptor().update(plain)
    return f"{base64.b64encode(hidden).decode()}?iv={base64.b64encode(iv).decode()}"


def test_nip04_refuses_in_one_wording() -> None:
    secret, public = curve.fresh(), curve.pubkey(curve.fresh())
    key = curve.shared_x(secret, public)
    assert nip04.decrypt(cbc(b"hello" + b"\x0b" * 11, key), secret, public) == "hello"
    good, _, iv = cbc(b"hello" + b"\x0b" * 11, key).partition("?iv=")
    bad = ["", "?iv=", good, f"?iv={iv}", f"{good}?iv=", f"{good}?iv={iv[:-4]}", f"{good[:-4]}?iv={iv}",
           f"*{good}?iv={iv}", f"{good}?iv={iv}?iv={iv}", f"é?iv={iv}", cbc(b"hello" + b"\x0c" * 11, key),
           cbc(bytes(16), key), cbc(b"\xff" * 5 + b"\x0b" * 11, key)]  # fmt: skip
    said = {refused(partial(nip04.decrypt, payload, secret, public)) for payload in bad}
    assert said == {"invalid argument: NIP-04: it cannot be decrypted"}
    assert "secret key" in refused(lambda: nip04.decrypt(cbc(bytes(16), key), bytes(32), public))


@pytest.mark.parametrize(("bits", "count"), [(128, 12), (256, 24)])
def test_fresh_words(bits: int, count: int) -> None:
    words = seed.fresh_words(bits)
    assert len(words.split()) == count
    assert seed.check_words(words) == words != seed.fresh_words(bits)


@pytest.mark.parametrize("bits", [0, 64, 127, 160, 512])
def test_other_strengths_are_refused(bits: int) -> None:
    assert "128 or 256" in refused(lambda: seed.fresh_words(bits))


def test_words_are_told_by_place_only() -> None:
    shown = WORDS.split()
    assert seed.check_words("  " + WORDS.replace(" ", "\n ")) == WORDS
    assert "0 words" in refused(lambda: seed.check_words(""))
    assert "11 words" in refused(lambda: seed.check_words(WORDS.rpartition(" ")[0]), *shown)
    assert "word 3 is" in refused(lambda: seed.check_words(WORDS.replace("parrot", "parott")), "parott", *shown)
    assert "word 1 is" in refused(lambda: seed.check_words(WORDS.capitalize()), "Leader", *shown)
    assert "checksum" in refused(lambda: seed.check_words(" ".join(sorted(shown))), *shown)
    assert "checksum" in refused(lambda: seed.seed_of(WORDS.replace("bean", "zoo")), "zoo", *shown)


def test_seeds_and_accounts() -> None:
    made = seed.seed_of(WORDS)
    assert len(made) == 64
    assert made != seed.seed_of(WORDS, "passphrase")
    assert seed.seed_of(WORDS, "é") == seed.seed_of(WORDS, "e\u0301")  # BIP-39: NFKD
    secrets = [seed.secret_at(made, account) for account in (0, 1, 2, 2**31 - 1)]
    assert len(set(secrets)) == 4
    assert all(curve.is_secret(secret) for secret in secrets)
    for account in (-1, 2**31, 2**32):
        assert "account" in refused(partial(seed.secret_at, made, account))
    assert "64 bytes" in refused(lambda: seed.secret_at(made[:63]))
    assert "UTF-8" in refused(lambda: seed.seed_of(WORDS, "pass\ud800"), "pass\ud800")
