"""Where a long text may be cut so that both sides, tokenized apart, give the IDs of the whole.

A border is a place between two bytes that ends a word whatever stands further left or right, so the words on both
sides are those of the whole. Each is a regular expression that looks one character back and one ahead. Only
characters are named whose class no version of Unicode disputes.

    "the cat sat on the m"    a border before each " ", the last one at 18
    "今日は晴れ。明日"        one before "。", at 15
"""

import re
from collections.abc import Callable
from typing import Any

from pipeline.backends import GPT2, LATER, components, is_bytes, is_split, no_merges, parse

# Not white space, nor what could be taken for it: controls, and the neighbours of U+0085, 00A0, 1680, 180E,
# 2000-206F, 3000 and FEFF.
SOLID = (
    rb"(?<![\x00-\x20])(?<!\xc2[\x80-\xbf])(?<!\xe1[\x9a\xa0][\x80-\xbf])(?<!\xe2[\x80\x81][\x80-\xbf])"
    rb"(?<!\xe3\x80[\x80-\xbf])(?<!\xef\xbb\xbf)"
)
# Letters: Latin, Cyrillic U+0400-047F, Hiragana and Katakana, ideographs U+4E00-9F7F, Hangul syllables.
LETTER = (
    rb"(?:(?<=[A-Za-z])|(?<=[\xd0\xd1][\x80-\xbf])|(?<=\xe3\x81[\x82-\xbf])|(?<=\xe3\x82[\x80-\x96\xa1-\xbf])"
    rb"|(?<=\xe3\x83[\x80-\xba])|(?<=\xe4[\xb8-\xbf][\x80-\xbf])|(?<=[\xe5-\xe8\xeb\xec][\x80-\xbf]{2})"
    rb"|(?<=\xe9[\x80-\xbd][\x80-\xbf])|(?<=\xea[\xb0-\xbf][\x80-\xbf])|(?<=\xed[\x80-\x9d][\x80-\xbf]))"
)
# ASCII less the apostrophe, which begins a contraction; then the marks of Chinese and Japanese.
MARK = rb"[!-&(-/:-@\[-`{-~]|\xe3\x80[\x81\x82\x88-\x91]|\xef\xbc[\x81\x8c\x8e\x9a\x9b\x9f]"
# A run of letters ends before a digit or mark, a run of digits before a letter or mark, in GPT2 and LATER alike:
# no alternative there holds characters of two kinds but for one leading space, one leading mark, the apostrophe
# of a contraction and line breaks after marks; none of these lies across such a border.
KINDS = rb"(?=[0-9]|" + MARK + rb")" + LETTER + rb"|(?=[A-Za-z]|" + MARK + rb")(?<=[0-9])"
BORDERS = {
    # Nothing but leading white space holds white space, so it ends every word (in LATER, line breaks do not).
    "gpt2": rb"(?=[\t-\r ])" + SOLID + rb"|" + KINDS,
    "later": rb"(?=[\t ])" + SOLID + rb"|" + KINDS,
    # White space is dropped and each mark stands alone, whatever the cleaning of BertNormalizer does beside them:
    # it works character by character but for the order of accents, and these cannot pass a character without one.
    "bert": rb"(?=[\t\n\r ]|[!-/:-@\[-`{-~]|\xe3\x80[\x81\x82])",
    "bert cjk": rb"(?=[\t\n\r ]|[!-/:-@\[-`{-~]|\xe3\x80[\x81\x82]|[\xe5-\xe8])",
    "white space": rb"(?=[\t-\r ])",
    "space": rb"(?= )" + SOLID,
    "any": rb"(?=[\x00-\x7f\xc0-\xff])",
}
# Pre-tokenizers that may follow one that drops white space: they see one word at a time.
EACH_WORD = {"WhitespaceSplit", "Whitespace", "Split", "Punctuation", "Digits", "ByteLevel", "BertPreTokenizer"}


def safe_cut(tokenizer_json: bytes) -> Callable[[memoryview], int] | None:
    """Where this tokenizer allows a text to be cut; None where we can prove no such place.

    `cut(data)` gives the last known position p such that the IDs of `data[:p]` and those of `data[p:]` with
    whatever follows are together the IDs of the whole, and 0 where there is none in `data`. It holds whether
    special tokens in text are matched or not: no cut falls inside one, nor so near the end that one could have
    begun before it. `data` is valid UTF-8. The search goes backward from the end, no further than it must. Raises
    TokenizerError where the JSON is no tokenizer.
    """
    spec = parse(tokenizer_json)
    added = spec["added_tokens"]
    literals = sorted((token["content"].encode() for token in added if token["content"]), key=len, reverse=True)
    # A token that takes in white space to its right, or asks for no letter beside it, sees over the cut.
    if any(token["rstrip"] or token["single_word"] for token in added):
        return None
    # One that is looked for in normalized text may be spelled in ways we do not know.
    if spec["normalizer"] is not None and any(token["normalized"] for token in added):
        return None
    kind = _border(spec)
    if kind is None:
        return None
    border = re.compile(rb"(?s:.*)(?:" + BORDERS[kind] + rb")")
    longest = len(literals[0]) if literals else 1
    literal = re.compile(rb"(?=(" + b"|".join(map(re.escape, literals)) + rb"))") if literals else None

    def cut(data: memoryview) -> int:
        # A literal that begins before the cut must end within data to be seen.
        end = min(len(data), len(data) - longest + 2)
        while (position := _last(border, data, end)) and literal is not None:
            base = max(0, position - longest + 1)
            around = bytes(data[base : position + longest - 1])
            starts = [base + m.start() for m in literal.finditer(around) if base + m.start() < position < base + m.end(1)]
            if not starts:
                break
            end = starts[0] + 1
        return position

    return cut


def _last(border: re.Pattern[bytes], data: memoryview, end: int) -> int:
    """The last border before `end`, in windows that grow backward; 0 where there is none."""
    size = 1 << 12
    while end > 0:
        start = max(0, end - size)
        match = border.match(bytes(data[start:end]))
        if match and (match.end() > 2 or not start):  # closer to the edge it could not look back a whole character
            return start + match.end()
        if not start:
            return 0
        end, size = start + 6, min(size * 4, 1 << 20)
    return 0


def _border(spec: dict[str, Any]) -> str | None:
    """Which of BORDERS holds for a tokenizer, None for none that we can prove."""
    steps = components(spec["pre_tokenizer"])
    normal = components(spec["normalizer"])
    guarded = bool(steps) and _is_guard(steps[0], spec)  # reads no further than the letters of a special token
    steps = steps[guarded:]
    types = [step["type"] for step in steps]
    if types == ["BertPreTokenizer"] and [step["type"] for step in normal] in ([], ["BertNormalizer"]):
        return "bert cjk" if normal and normal[0]["handle_chinese_chars"] else "bert"
    # Lowercase goes character by character. NFC joins nothing to an ASCII character, ideographic mark or space
    # that follows, and leaves those named in BORDERS in their class.
    if not {step["type"] for step in normal} <= {"Lowercase", "NFC"}:
        return None
    # In normalized text a guard may find a special token that is spelled otherwise in ours, as K is k.
    if guarded and normal:
        solid = all(token["content"].split() == [token["content"]] for token in spec["added_tokens"])
        return "white space" if solid and types[:1] == ["WhitespaceSplit"] and set(types) <= EACH_WORD else None
    if no_merges(spec) and not spec["model"].get("fuse_unk"):
        # Every character (or byte of it) is a token by itself, however the text is split before.
        alone = not steps or (len(steps) == 1 and is_bytes(steps[0], None))
        return "any" if alone and "NFC" not in {step["type"] for step in normal} else None
    if len(steps) == 1 and is_bytes(steps[0], True):
        return "gpt2"
    if len(steps) == 2 and (is_bytes(steps[1], False) or _is_metaspace(steps[1], "never", False)):
        if is_split(steps[0], (GPT2,)):
            return "gpt2"
        if is_split(steps[0], LATER):
            return "later"
    if types and types[0] in ("WhitespaceSplit", "Whitespace") and set(types) <= EACH_WORD:
        return "white space"
    # Each space begins a word and itself becomes the mark that would otherwise be put before the text.
    if len(steps) == 1 and _is_metaspace(steps[0], None, True):
        return "space"
    return None


def _is_metaspace(step: dict[str, Any], prepend_scheme: str | None, split: bool) -> bool:
    if step["type"] != "Metaspace" or step.get("split", True) != split:
        return False
    return prepend_scheme is None or step.get("prepend_scheme") == prepend_scheme


def _is_guard(step: dict[str, Any], spec: dict[str, Any]) -> bool:
    """Is it the rule by which our trained tokenizers set the first letter of a spelled-out special token apart?"""
    rules = [(t["content"][0], t["content"][1:]) for t in spec["added_tokens"] if len(t["content"]) > 1]
    parts = [f"{re.escape(first)}(?={re.escape(rest)})" for first, rest in rules]
    pattern = step.get("pattern", {}).get("Regex", "") if step["type"] == "Split" else ""
    return bool(pattern) and "|".join(part for part in parts if part in pattern) == pattern and is_split(step, (pattern,))
