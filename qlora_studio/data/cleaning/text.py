"""What a single text shows on its own: secrets, addresses, wrongly decoded or invisible characters, its language."""

from __future__ import annotations

import re
from collections.abc import Iterator

_SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}"
    r"|hf_[A-Za-z0-9]{30,}"
    r"|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_[A-Za-z0-9_]{40,}"
    r"|sk-[A-Za-z0-9_-]{32,}"
    r"|xox[baprs]-[A-Za-z0-9-]{20,}"
    r"|AIza[A-Za-z0-9_-]{35}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----)?",
    re.DOTALL,
)
"""Keys by the fixed openings that their issuers chose so that they can be found."""
_SECRET_OPENINGS = ("AKIA", "hf_", "gh", "sk-", "xox", "AIza", "eyJ", "-----BEGIN")

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_HARMLESS_HOSTS = ("example.com", "example.org", "example.net", "test.com", "domain.com", "email.com")

_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]"
    "|\u00e2\u20ac[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u02dc\u2013-\u203a\u20ac\u2122]?"
    "|\u00ef\u00bb\u00bf"
)
"""UTF-8 that was read as Latin-1 or Windows-1252: an accent became two characters, a curly quote three."""
_REPLACEMENT = "\ufffd"

_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""Characters that nobody sees: controls, zero widths, direction marks. Joiners stay: scripts and emoji need them."""

_CONTROL_LIKE = re.compile(
    r"<\|[a-zA-Z_][a-zA-Z0-9_ ]{1,30}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)

_WORD = re.compile(r"[^\W\d_]+")
_SMALL_WORDS = {
    "English": "the and is of to in that it for with you this are what how",
    "German": "der die das und ist nicht ein eine mit für wie ich sie auf zu",
    "French": "le la les des est une et pour dans que qui vous pas sur avec",
    "Spanish": "el los las una es por para con que como del más pero este su",
    "Italian": "il che di una per con non sono come della gli più questo nel le",
    "Portuguese": "os uma para com não como mais dos por você isso são na em do",
    "Dutch": "het een van en dat niet zijn voor met aan hoe ook wordt de bij",
}
_LANGUAGES = {name: frozenset(words.split()) for name, words in _SMALL_WORDS.items()}
_SCRIPTS = (
    ("Cyrillic", "\u0400", "\u04ff"),
    ("Greek", "\u0370", "\u03ff"),
    ("Arabic", "\u0600", "\u06ff"),
    ("Hebrew", "\u0590", "\u05ff"),
    ("Devanagari", "\u0900", "\u097f"),
    ("Thai", "\u0e00", "\u0e7f"),
    ("Japanese", "\u3040", "\u30ff"),
    ("Korean", "\uac00", "\ud7af"),
    ("Chinese", "\u4e00", "\u9fff"),
)


def find_secrets(text: str) -> list[str]:
    """Keys and private keys in a text."""
    if not any(opening in text for opening in _SECRET_OPENINGS):
        return []
    return [match[0] for match in _SECRETS.finditer(text)]


def mask_secrets(text: str) -> str:
    return _SECRETS.sub("[secret removed]", text) if find_secrets(text) else text


def find_emails(text: str) -> list[str]:
    """Addresses of people; those of example domains are none."""
    if "@" not in text:
        return []
    return [match[0] for match in _EMAIL.finditer(text) if not match[0].lower().endswith(_HARMLESS_HOSTS)]


def mask_emails(text: str) -> str:
    for address in find_emails(text):
        text = text.replace(address, "name@example.com")
    return text


def find_mojibake(text: str) -> str | None:
    """The first stretch that was decoded wrongly, or a replacement character."""
    if text.isascii():
        return None
    match = _MOJIBAKE.search(text)
    return match[0] if match else (_REPLACEMENT if _REPLACEMENT in text else None)


def fix_mojibake(text: str) -> str:
    """The text decoded again as it should have been, stretch by stretch. Replacement characters cannot be mended."""
    return "".join(_decoded_again(piece) for piece in _pieces(text)) if find_mojibake(text) else text


def _pieces(text: str) -> Iterator[str]:
    """Stretches of ASCII and of other characters by turns."""
    return iter(re.findall(r"[\x00-\x7f]+|[^\x00-\x7f]+", text))


def _decoded_again(piece: str) -> str:
    if piece.isascii() or not _MOJIBAKE.search(piece):
        return piece
    try:
        return b"".join(_byte(character) for character in piece).decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return piece


def _byte(character: str) -> bytes:
    """One character as Windows-1252, and as Latin-1 for the five places that code page leaves empty."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")


def find_odd(text: str) -> str | None:
    """The first invisible character."""
    match = _ODD.search(text)
    return match[0] if match else None


def remove_odd(text: str) -> str:
    return _ODD.sub("", text)


def find_control_like(text: str) -> str | None:
    """Something that is a control token in many models, whether or not it is one in the chosen model."""
    if "<" not in text and "[" not in text:
        return None
    match = _CONTROL_LIKE.search(text)
    return match[0] if match else None


def language_of(text: str) -> str:
    """The likely language of a text: by script, else by its small words; `unknown` where neither says enough."""
    sample = text[:600]
    if not sample.isascii():
        for name, first, last in _SCRIPTS:
            if sum(first <= character <= last for character in sample) > len(sample) * 0.2:
                return name
    words = [word.lower() for word in _WORD.findall(sample)]
    counts = {name: sum(word in known for word in words) for name, known in _LANGUAGES.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= max(2, len(words) // 20) else "unknown"
