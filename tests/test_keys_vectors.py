"""Keys against the official vectors of each standard, valid and invalid; each file is counted, so none is empty."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bip32 import BIP32

from agentfs import bech32 as bech
from agentfs.providers.keys import curve, nip44, seed

VECTORS = Path(__file__).parent.parent / "conformance" / "vectors"
COUNTS = {  # file: how many vectors are in it
    "bip32-invalid.json": 16,
    "bip32.json": 17,
    "bip340.csv": 19,
    "bip39.json": 240,
    "bip173.json": 19,
    "nip06.json": 2,
    "nip19.json": 2,
    "nip44.json": 128,
}


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def refused(call: Callable[[], object], *secrets: str) -> str:
    """EINVAL, without any of *secrets* in the text; the text."""
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == errno.EINVAL
    assert not any(secret in str(caught.value) for secret in secrets if secret)
    assert caught.value.__context__ is None or not any(secret in repr(caught.value.__context__) for secret in secrets)
    return str(caught.value.strerror)


BIP340 = list(csv.DictReader((VECTORS / "bip340.csv").read_text().splitlines()))
NIP44 = load("nip44.json")["v2"]
VALID, INVALID = NIP44["valid"], NIP44["invalid"]
MESSAGE_KEYS = VALID["get_message_keys"]
BIP39 = load("bip39.json")
BIP32_PATHS = [(root, *step) for root, steps in load("bip32.json").items() for step in steps]
BIP173 = load("bip173.json")


def test_every_file_holds_what_it_should() -> None:
    found = {
        "bip32-invalid.json": len(load("bip32-invalid.json")),
        "bip32.json": len(BIP32_PATHS),
        "bip340.csv": len(BIP340),
        "bip39.json": sum(map(len, BIP39.values())),
        "bip173.json": sum(map(len, BIP173.values())),
        "nip06.json": len(load("nip06.json")),
        "nip19.json": len(load("nip19.json")),
        "nip44.json": sum(len(group) for part in (VALID, INVALID) for group in part.values() if isinstance(group, list))
        + len(MESSAGE_KEYS["keys"]),
    }
    assert found == COUNTS
    assert {path.name for path in VECTORS.iterdir()} == {"README.md", *COUNTS}


@pytest.mark.parametrize("name", COUNTS)
def test_the_files_are_as_their_source_has_them(name: str) -> None:
    digest = hashlib.sha256((VECTORS / name).read_bytes()).hexdigest()
    assert re.search(rf"`{re.escape(name)}`.*`{digest}`", (VECTORS / "README.md").read_text())


@pytest.mark.parametrize("row", BIP340, ids=lambda row: row["index"])
def test_bip340(row: dict[str, str]) -> None:
    public, message, signature = (bytes.fromhex(row[name]) for name in ("public key", "message", "signature"))
    assert curve.verify(public, message, signature) is (row["verification result"] == "TRUE")
    if row["secret key"]:
        secret = bytes.fromhex(row["secret key"])
        assert curve.pubkey(secret) == public
        assert curve.sign(secret, message, bytes.fromhex(row["aux_rand"])) == signature
        assert curve.verify(public, message, curve.sign(secret, message))


def test_bip340_has_signers_and_all_lengths() -> None:
    assert sum(bool(row["secret key"]) for row in BIP340) == 8
    assert sum(row["verification result"] == "FALSE" for row in BIP340) == 10
    assert {len(row["message"]) // 2 for row in BIP340} == {0, 1, 17, 32, 100}


@pytest.mark.parametrize("case", VALID["get_conversation_key"], ids=lambda case: case["sec1"][:8])
def test_nip44_conversation_key(case: dict[str, str]) -> None:
    made = nip44.conversation_key(bytes.fromhex(case["sec1"]), bytes.fromhex(case["pub2"]))
    assert made.hex() == case["conversation_key"]


@pytest.mark.parametrize("case", MESSAGE_KEYS["keys"], ids=lambda case: case["nonce"][:8])
def test_nip44_message_keys(case: dict[str, str]) -> None:
    made = nip44.message_keys(bytes.fromhex(MESSAGE_KEYS["conversation_key"]), bytes.fromhex(case["nonce"]))
    assert [part.hex() for part in made] == [case["chacha_key"], case["chacha_nonce"], case["hmac_key"]]


@pytest.mark.parametrize(("size", "padded"), VALID["calc_padded_len"])
def test_nip44_padded_length(size: int, padded: int) -> None:
    assert nip44.padded_length(size) == padded


@pytest.mark.parametrize("case", VALID["encrypt_decrypt"], ids=lambda case: case["nonce"][-8:])
def test_nip44_encrypt_decrypt(case: dict[str, str]) -> None:
    one, other = bytes.fromhex(case["sec1"]), bytes.fromhex(case["sec2"])
    key = nip44.conversation_key(one, curve.pubkey(other))
    assert key == nip44.conversation_key(other, curve.pubkey(one)) == bytes.fromhex(case["conversation_key"])
    assert nip44.encrypt(case["plaintext"], key, bytes.fromhex(case["nonce"])) == case["payload"]
    assert nip44.decrypt(case["payload"], key) == case["plaintext"]


@pytest.mark.parametrize("case", VALID["encrypt_decrypt_long_msg"], ids=lambda case: case["nonce"][:8])
def test_nip44_long_messages(case: dict[str, Any]) -> None:
    text, key = case["pattern"] * case["repeat"], bytes.fromhex(case["conversation_key"])
    assert hashlib.sha256(text.encode()).hexdigest() == case["plaintext_sha256"]
    payload = nip44.encrypt(text, key, bytes.fromhex(case["nonce"]))
    assert hashlib.sha256(payload.encode()).hexdigest() == case["payload_sha256"]
    assert nip44.decrypt(payload, key) == text


@pytest.mark.parametrize("size", INVALID["encrypt_msg_lengths"])
def test_nip44_lengths_that_are_refused(size: int) -> None:
    assert "a text is 1 to 65535 bytes" in refused(lambda: nip44.encrypt("x" * size, bytes(32)), "xx")


@pytest.mark.parametrize("case", INVALID["get_conversation_key"], ids=lambda case: case["note"])
def test_nip44_keys_that_are_refused(case: dict[str, str]) -> None:
    secret, public = bytes.fromhex(case["sec1"]), bytes.fromhex(case["pub2"])
    said = refused(lambda: nip44.conversation_key(secret, public), case["sec1"])
    assert ("secret key" if case["note"].startswith("sec1") else "public key") in said


@pytest.mark.parametrize("case", INVALID["decrypt"], ids=lambda case: case["note"])
def test_nip44_payloads_that_are_refused(case: dict[str, str]) -> None:
    said = refused(
        lambda: nip44.decrypt(case["payload"], bytes.fromhex(case["conversation_key"])),
        case["payload"], case["conversation_key"], f" {case['plaintext']} ",
    )  # fmt: skip
    reasons = {"unknown": "unknown version", "base64": "not base64", "MAC": "wrong MAC", "padding": "wrong padding"}
    reasons["payload length"] = "wrong length"
    assert next(ours for theirs, ours in reasons.items() if theirs in case["note"]) in said


@pytest.mark.parametrize("case", BIP39["english"], ids=lambda case: case[0][:8])
def test_bip39(case: tuple[str, str, str, str]) -> None:
    entropy, words, made, root = case
    assert seed.ENGLISH.to_mnemonic(bytes.fromhex(entropy)) == words
    assert seed.check_words(words) == words
    assert seed.seed_of(words, "TREZOR").hex() == made
    assert BIP32.from_seed(bytes.fromhex(made)).get_xpriv() == root


@pytest.mark.parametrize("language", sorted(BIP39.keys() - {"english"}))
def test_bip39_of_other_languages_is_refused(language: str) -> None:
    for _entropy, words, *_ in BIP39[language]:
        refused(partial(seed.check_words, words), *[word for word in words.split() if len(word) > 4])


@pytest.mark.parametrize(("root", "path", "public", "private"), BIP32_PATHS)
def test_bip32(root: str, path: str, public: str, private: str) -> None:
    top = BIP32.from_seed(bytes.fromhex(root))
    assert (top.get_xpub_from_path(path), top.get_xpriv_from_path(path)) == (public, private)
    assert BIP32.from_xpub(public).get_xpub() == public
    assert BIP32.from_xpriv(private).get_xpriv() == private


@pytest.mark.parametrize(("text", "why"), load("bip32-invalid.json"))
def test_bip32_keys_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError):  # the library has no narrower one for all of them
        (BIP32.from_xpub if text.startswith("xpub") else BIP32.from_xpriv)(text)


@pytest.mark.parametrize("case", load("nip06.json"), ids=lambda case: case["npub"][:12])
def test_nip06(case: dict[str, str]) -> None:
    secret = seed.secret_at(seed.seed_of(case["mnemonic"]))
    assert (secret.hex(), bech.nsec(secret)) == (case["private key"], case["nsec"])
    public = curve.pubkey(secret)
    assert (public.hex(), bech.npub(public)) == (case["public key"], case["npub"])


@pytest.mark.parametrize("case", load("nip19.json"), ids=lambda case: case["text"][:12])
def test_nip19(case: dict[str, str]) -> None:
    to, back = (bech.npub, bech.public_of) if case["text"].startswith("npub") else (bech.nsec, bech.secret_of)
    assert (to(bytes.fromhex(case["hex"])), back(case["text"]).hex()) == (case["text"], case["hex"])


@pytest.mark.parametrize("text", BIP173["valid"])
def test_bip173(text: str) -> None:
    prefix, data = bech.decode(text)
    assert bech.encode(prefix, data) == text.lower()
    place = text.rindex("1") + 1
    refused(lambda: bech.decode(text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]))


@pytest.mark.parametrize(("text", "why"), BIP173["invalid"])
def test_bip173_texts_that_are_refused(text: str, why: str) -> None:
    refused(lambda: bech.decode(text), text)
