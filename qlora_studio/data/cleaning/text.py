"""What a single text shows on its own: secrets, addresses, wrongly decoded or invisible characters, its language."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator

_SECRETS = re.compile(
    r"A[KS]IA[0-9A-Z]{16}"
    r"|hf_[A-Za-z0-9]{30,}"
    r"|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_[A-Za-z0-9_]{40,}"
    r"|glpat-[A-Za-z0-9_-]{20,}"
    r"|sk-[A-Za-z0-9_-]{32,}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{20,}"
    r"|xox[abeprs]-[A-Za-z0-9-]{20,}"
    r"|xapp-[A-Za-z0-9-]{20,}"
    r"|hooks\.slack\.com/services/T[A-Z0-9]+/B[A-Z0-9]+/[A-Za-z0-9]{20,}"
    r"|AIza[A-Za-z0-9_-]{35}"
    r"|ya29\.[A-Za-z0-9_-]{30,}"
    r"|SG\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{30,}"
    r"|npm_[A-Za-z0-9]{36}"
    r"|pypi-[A-Za-z0-9_-]{50,}"
    r"|dop_v1_[a-f0-9]{60,}"
    r"|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"
    r"|\b\d{8,10}:AA[A-Za-z0-9_-]{33}"
    r"|AccountKey=[A-Za-z0-9+/]{60,}={0,2}"
    r"|\b(?:postgres(?:ql)?|mysql|mongodb(?:\+srv)?|redis|amqp)://[^\s:/@]+:[^\s:/@]{6,}@[^\s/]+"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r"|(?i:\b(?:api[_-]?key|secret[_-]?key|access[_-]?token|auth[_-]?token|client[_-]?secret|password)"
    r"[\"']?\s*[:=]\s*[\"'])(?=[^\"'\s]*[0-9])(?=[^\"'\s]*[A-Za-z])(?![^\"']*(?i:your|example|xxx|change|\*\*))"
    r"[A-Za-z0-9_+/=.!@#$%^&-]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----)?",
    re.DOTALL,
)
"""Keys by the fixed openings that their issuers chose so that they can be found, and what a text calls a key."""
_SECRET_OPENINGS = {
    "": ("AKIA", "ASIA", "AIza"),
    ".": ("ya29.", "SG.", "eyJ"),
    "_": ("hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_", "sk_", "rk_", "npm_", "dop_v1_", "shpat_", "shpca_", "shppa_", "shpss_"),
    "-": ("glpat-", "sk-", "xox", "xapp-", "pypi-", "-----BEGIN"),
    ":": (":AA", "postgres", "mysql", "mongodb", "redis:", "amqp:"),
    "/": ("hooks.slack",),
    "=": ("AccountKey",),
}  # fmt: skip
"""What keys open with, by a character that each of them holds: most texts lack it, and are asked for nothing else."""
_SECRET_WORDS = ("key", "token", "secret", "password")

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_HARMLESS_HOSTS = ("example.com", "example.org", "example.net", "test.com", "domain.com", "email.com")

_LOW_BYTES = range(0x80, 0xC0)
_AS_CP1252 = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in _LOW_BYTES)
_AS_CP1251 = "".join(bytes([byte]).decode("cp1251", "ignore") for byte in _LOW_BYTES)
_LOW, _LOW_CYRILLIC = f"[{re.escape(_AS_CP1252)}\u0080-\u00bf]", f"[{re.escape(_AS_CP1251)}]"
"""What the bytes inside a UTF-8 character look like when they are read as Windows-1252 or Windows-1251."""
_MOJIBAKE = re.compile(
    f"[\u00c2\u00c3]{_LOW}"
    f"|(?:[\u00c2-\u00df]{_LOW}){{2,}}"
    f"|[\u00e0-\u00ef]{_LOW}{{2}}"
    f"|[\u00f0-\u00f4]{_LOW}{{3}}"
    f"|(?:[\u0420\u0421]{_LOW_CYRILLIC}){{3,}}"
)
"""UTF-8 that was read as Latin-1, Windows-1252 or Windows-1251: one character became two to four."""
_EAST_ASIAN = re.compile("[\u3040-\u30ff\u3400-\u9fff\uff61-\uff9f\uac00-\ud7af]{6,}")
_EAST_ASIAN_CODECS = ("gb18030", "cp932")
_REPLACEMENT = "\ufffd"

_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""Characters that nobody sees: controls, zero widths, direction marks. Joiners stay: scripts and emoji need them."""

_CONTROL_LIKE = re.compile(
    r"<[|\uff5c]/?[a-zA-Z_][\w\u2581 .:/-]{1,40}[|\uff5c]>|<\|?(?:turn|channel|tool|tool_call|tool_response|think|image)\|>"
    r"|<\|(?:turn|channel|tool|tool_call|tool_response|think|image)>"
    r"|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_(?:turn|image|utterance)>|<end_of_utterance>"
    r"|\[/?(?:TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|SYSTEM_PROMPT|TOOL_CONTENT|IMG|gMASK)\]"
    r"|<(?:bos|eos|pad|unk|sop|eop|mask)>|<(?:unused|SPECIAL_|extra_id_)\d+>|<fim_(?:prefix|middle|suffix|pad)>"
    r"|<(?:begin|end)_of_text>|<(?:start|end)_function_(?:call|response)>"
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
    if not _opens_a_secret(text) and not _names_a_secret(text):
        return []
    return [match[0] for match in _SECRETS.finditer(text)]


def _opens_a_secret(text: str) -> bool:
    """Whether something stands in a text that a key could open with."""
    for mark, openings in _SECRET_OPENINGS.items():
        if mark in text:
            for opening in openings:
                if opening in text:
                    return True
    return False


def _names_a_secret(text: str) -> bool:
    """Whether a text could hold something like `password = "..."`."""
    if ("=" not in text and ":" not in text) or ('"' not in text and "'" not in text):
        return False
    lower = text.lower()
    return any(word in lower for word in _SECRET_WORDS)


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
    if match:
        return match[0]
    if _REPLACEMENT in text:
        return _REPLACEMENT
    return next((piece[0] for piece in _EAST_ASIAN.finditer(text) if _from_east_asian(piece[0], True)), None)


def fix_mojibake(text: str) -> str:
    """The text decoded again as it should have been, stretch by stretch. Replacement characters cannot be mended."""
    if not find_mojibake(text):
        return text
    text = "".join(_decoded_again(piece) for piece in _pieces(text))
    return _EAST_ASIAN.sub(lambda match: _from_east_asian(match[0]) or match[0], text)


def _pieces(text: str) -> Iterator[str]:
    """Stretches of ASCII and of other characters by turns."""
    return iter(re.findall(r"[\x00-\x7f]+|[^\x00-\x7f]+", text))


def _decoded_again(piece: str) -> str:
    if piece.isascii() or not _MOJIBAKE.search(piece):
        return piece
    ways: tuple[Callable[[], bytes], ...] = (lambda: b"".join(map(_byte, piece)), lambda: piece.encode("cp1251"))
    for turn_back in ways:
        try:
            return turn_back().decode("utf-8")
        except (UnicodeEncodeError, UnicodeDecodeError):
            continue
    return _MOJIBAKE.sub(lambda match: _stretch_again(match[0]), piece)


def _stretch_again(stretch: str) -> str:
    """A stretch that looks decoded wrongly, beside characters that are right."""
    try:
        raw = stretch.encode("cp1251") if stretch[0] in "\u0420\u0421" else b"".join(map(_byte, stretch))
        return raw.decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return stretch


def _from_east_asian(stretch: str, may_be_cut: bool = False) -> str:
    """UTF-8 that was read as a Chinese or Japanese code page, decoded again; empty where it was not.

    Such text often lacks the last bytes of its last character; `may_be_cut` takes what stands before them.
    """
    for codec in _EAST_ASIAN_CODECS:
        try:
            raw = stretch.encode(codec)
            decoder = codecs.getincrementaldecoder("utf-8")()
            made = decoder.decode(raw, final=not may_be_cut)
        except (UnicodeEncodeError, UnicodeDecodeError):
            continue
        if len(made) < len(stretch):
            return made
    return ""


def _byte(character: str) -> bytes:
    """One character as Windows-1252, and as Latin-1 for the five places that code page leaves empty."""
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")


_STOPS = tuple(".!?\u2026:;\"')]}>*`|~_\u201d\u2019\u00bb\u3002\uff01\uff1f\uff09\u300d\u300f\u0964\u061f")
_OPEN_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "or",
        "but",
        "of",
        "to",
        "in",
        "on",
        "at",
        "for",
        "with",
        "from",
        "by",
        "as",
        "is",
        "are",
        "was",
        "were",
        "that",
        "which",
        "who",
        "because",
        "if",
        "when",
        "while",
        "so",
        "der",
        "die",
        "das",
        "und",
        "oder",
        "aber",
        "mit",
        "von",
        "zu",
        "im",
        "ist",
        "sind",
        "dass",
        "weil",
        "le",
        "la",
        "les",
        "et",
        "ou",
        "de",
        "des",
        "du",
        "que",
        "qui",
        "pour",
        "dans",
        "el",
        "los",
        "las",
        "y",
    ]
)
_LISTED = re.compile(r"\s*(?:[-*+#>|]|\d+[.)]|[A-Za-z][.)]\s)")


def find_unfinished(answer: str) -> str:
    """`sure` where an answer plainly ends in the middle, `likely` where its last sentence has no end, else nothing."""
    if answer.count("```") % 2:
        return "sure"
    if answer.endswith(_STOPS) or len(answer) < 80 or "```" in answer:
        return ""
    line = answer.rpartition("\n")[2]
    words = line.split()
    if len(words) < 8 or _LISTED.match(line) or (not line[-1].isalnum() and line[-1] not in ",-("):
        return ""
    if answer[-1] in ",-(" or words[-1].lower() in _OPEN_WORDS:
        return "sure"
    return "likely" if re.search(r"[.!?]\s", answer) else ""


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
