"""Cutting documents into sentences, by rules that hold for many languages."""

import re

LONGEST = 2000
"""Characters above which a sentence is cut at white space."""

# A run of stops or of white space is looked at from its start alone, or long ones take for ever.
_CANDIDATE = re.compile(
    r"""(?<![.!?…۔؟։])(?P<stop>[.!?…۔؟։]+["'”’»)\]]*)\s+"""
    r"""|(?P<wide>[。！？।॥]+[」』”’）]*)\s*"""
    r"""|(?<!\s)\s*\n\s*"""
)
_TITLES = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "st", "rev", "gen", "col", "capt", "lt", "vol", "fig", "vs")
)
_LAST_WORD = re.compile(r"\w+$")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, in characters; white space between them belongs to none.

    A sentence ends at ``. ! ? …`` and the stops of Urdu, Arabic and Armenian (``۔ ؟ ։``), with
    closing quotes, before white space, unless a lower-case letter follows, or the point stands
    behind an initial or a title ("J. R. Firth", "Dr. Who"); at the full stops of Chinese, Japanese
    and Hindi; and at a line break, unless the line has no such mark and the next one goes on in
    lower case, as in text with hard line breaks. What is longer than `LONGEST` characters is cut.
    """
    spans, begin = [], 0
    for match in _CANDIDATE.finditer(text):
        if match.start() >= begin and _ends_sentence(text, match):
            end = match.end("wide") if match["wide"] else match.end("stop")
            spans += _cut(text, begin, end if end >= 0 else match.start())
            begin = match.end()
    return spans + _cut(text, begin, len(text))


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    goes_on = text[match.end() : match.end() + 1].islower()
    gap = text[max(match.end("stop"), match.start()) : match.end()]
    if match["wide"] or gap.count("\n") > 1:
        return True
    if match["stop"] is None or "\n" in gap:
        return match["stop"] is not None or not goes_on
    return not goes_on and not (match["stop"] == "." and _abbreviates(text, match.start()))


def _abbreviates(text: str, point: int) -> bool:
    """Whether the word before a point is an initial or a title."""
    found = _LAST_WORD.search(text, max(0, point - 12), point)
    if found is None:
        return False
    word = found[0]
    return (len(word) == 1 and word.isupper() and word != "I") or word.lower() in _TITLES


def _cut(text: str, begin: int, end: int) -> list[tuple[int, int]]:
    """The span without white space at its ends, in pieces of at most `LONGEST` characters."""
    pieces = []
    while end - begin > LONGEST:
        at = text.rfind(" ", begin + 1, begin + LONGEST)
        at = at if at > 0 else begin + LONGEST
        pieces.append((begin, at))
        begin = at
    pieces.append((begin, end))
    trimmed = []
    for low, high in pieces:
        part = text[low:high]
        low += len(part) - len(part.lstrip())
        high -= len(part) - len(part.rstrip())
        if low < high:
            trimmed.append((low, high))
    return trimmed
