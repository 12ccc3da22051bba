"""The key, which no reply, error, log or file may repeat."""

import base64
import html
import logging
import os
import re
import traceback
from functools import cache
from urllib.parse import unquote

SECRET = 8  # shortest key that is secret; local servers take "EMPTY" and the like
BLOT = "[key]"
DEPTH = 3  # encodings inside each other that are undone
LIBRARIES = ("openai", "httpx2", "httpcore2")  # their logs repeat what a server sends
ESCAPE = re.compile(r"\\+(?:u\{?([0-9a-fA-F]{4})\}?|x([0-9a-fA-F]{2}))")


secrets: set[str] = set()


def protected_key() -> str:
    """The key in the environment, empty without one; from now on `without_key` and the libraries' logs blot it out."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if len(key) >= SECRET:
        secrets.add(key)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in LIBRARIES:
            logging.getLogger(name).addFilter(blot_record)
    return key


def without_key(value: object) -> str:
    """The value as text, with "[key]" for the key; "[key]" alone if the key is in it in another encoding.

    Undone are URL, JSON and HTML escapes, three deep, base64 and hexadecimal, in any case and with any spaces between.
    """
    text = str(value)
    for key in secrets:
        text = text.replace(key, BLOT)
    decoded, forms = text, [form for key in secrets for form in encodings(key)]
    for _ in range(DEPTH + 1):
        letters = significant(decoded)
        if any(form in letters for form in forms):
            return BLOT
        decoded = html.unescape(unquote(ESCAPE.sub(lambda code: chr(int(code[1] or code[2], 16)), decoded)))
    return text


@cache
def encodings(key: str) -> list[str]:
    """The key as it may stand in `significant` text: plain, hexadecimal, base64 at the three places of a byte."""
    data = key.encode()
    forms = [key, data.hex()]
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + data).decode()
        inner = encoded[-(-shift * 8 // 6) : (shift + len(data)) * 8 // 6]  # without letters of the bytes around it
        forms += [inner, inner.replace("+", "-").replace("/", "_")]
    return [significant(form) for form in forms]


def significant(text: str) -> str:
    """What is compared: neither spaces nor backslashes nor control characters, in lower case."""
    return "".join(filter(str.isprintable, text)).replace(" ", "").replace("\\", "").lower()


def blot_record(record: logging.LogRecord) -> bool:
    """A filter of logs that lets all pass, without the key."""
    record.msg, record.args = without_key(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = without_key("".join(traceback.format_exception(*record.exc_info)))
    return True
