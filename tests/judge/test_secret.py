"""The key is found however a server writes it."""

import base64
import html
import json
import logging
import urllib.parse

import pytest

from mrc_edit.judge.secret import protected_key, without_key

KEY = "sk-proj+Very/Secret=Key&0123<456>"
BEARER = f"Bearer {KEY}".encode()


def quoted(text):
    return urllib.parse.quote(text, safe="")


ENCODINGS = {
    "plain": KEY,
    "upper case": KEY.upper(),
    "spaced": " ".join(KEY),
    "URL": quoted(KEY),
    "URL, every character": "".join(f"%{ord(letter):02X}" for letter in KEY),
    "URL twice": quoted(quoted(KEY)),
    "JSON": json.dumps("".join(f"\\u{ord(letter):04x}" for letter in KEY)),
    "a Python literal": repr("".join(f"\\x{ord(letter):02x}" for letter in KEY)),
    "HTML": html.escape(KEY),
    "HTML, every character": "".join(f"&#{ord(letter)};" for letter in KEY),
    "hexadecimal": BEARER.hex(),
    "base64": base64.b64encode(BEARER).decode(),
    "base64, a byte on": base64.b64encode(b"x" + BEARER + b"y").decode(),
    "base64, two bytes on": base64.b64encode(b"xx" + BEARER + b"yy").decode(),
    "base64 for URLs": base64.urlsafe_b64encode(BEARER).decode(),
    "base64 in lines": base64.encodebytes(b"Authorization: " + BEARER * 3).decode(),
    "base64 in a URL": quoted(base64.b64encode(BEARER).decode()),
}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return protected_key()


@pytest.mark.parametrize("name", ENCODINGS)
def test_no_encoding_hides_the_key(name):
    assert without_key(f"you sent {ENCODINGS[name]} to me") in ("[key]", "you sent [key] to me")


def test_other_texts_stay_as_they_are():
    for text in ("100% of <it> & \\n more", "sk-proj", "", base64.b64encode(b"other words").decode(), "\\ud83d"):
        assert without_key(text) == text


def test_short_keys_are_no_secret(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert protected_key() == "EMPTY" and without_key("EMPTY") == "EMPTY"


@pytest.mark.parametrize("library", ["openai._base_client", "httpx2", "httpcore2.http11", "httpcore2.connection"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_the_client_does_not_log_it(name, library, caplog):
    from mrc_edit.judge import client  # noqa: F401  # its libraries have loggers once they are imported

    protected_key()
    with caplog.at_level(logging.DEBUG, library):
        logging.getLogger(library).debug("received %r", {"headers": [ENCODINGS[name]]})
        try:
            raise ValueError(ENCODINGS[name])
        except ValueError:
            logging.getLogger(library).debug("failed", exc_info=True)
    assert caplog.text.count("[key]") == 2 and "you sent" not in caplog.text and ENCODINGS[name] not in caplog.text
