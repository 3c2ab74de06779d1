"""Characters that look like the letters a to z, and the form of a text in which what looks alike is the same.

The table holds the letters that Unicode's confusables.txt (UTS 39; Copyright 1991-2024 Unicode, Inc., Unicode License v3)
calls confusable with one ASCII letter and that compatibility normalisation leaves as they are, with small capitals and letters
with strokes added. Letters whose capital and small forms look like different letters are read as the shape that is given.
"""

# ruff: noqa: RUF001  (letters that look like others are what this file is about)

from __future__ import annotations

import re
import unicodedata
from typing import Final

_LOOK_LIKE: Final = {
    "a": "ɑΑαАаᎪᗅᴀꓮ𐊠𖽀",
    "b": "ƀƄʙΒВЬᏏᏴᑲᖯᗷꓐꞴ𐊂𐊡𐌁",
    "c": "ȼСсᏟᴄⲤⲥꓚꮯ𐊢𐌂𐐕𐐽𐔜",
    "d": "đԁᎠᏧᑯᗞᗪᴅꓒꓓ",
    "e": "ɇΕЕеҽᎬᴇⴹꓰꬲ𐊆𑢦𑢮",
    "f": "ϜքᖴẝꓝꜰꞘꞙꬵ𐊇𐊥𐔥𑢢𑣂",
    "g": "ƍǥɡɢԌցᏀᏳᶃꓖ",
    "h": "ħʜΗНһհᎻᏂᕼⲎꓧ𐋏",
    "i": "ıƖɨɩɪΙιІіӀӏᎥꙇꭵ𑣃",
    "j": "ɉͿϳЈјᎫᒍᴊꓙꞲ",
    "k": "ĸΚКᏦᛕᴋⲔꓗꝁ𐔘",
    "l": "łǀʟᏞᒪᛁⲒⳐⵏꓡꓲ𐊊𐌉𐐛𐔦𑢣𑢲𖼖𖼨",
    "m": "ΜϺМᎷᗰᛖᴍⲘꓟ𐊰𐌑",
    "n": "ɴΝոռⲚꓠ𐔓",
    "o": "øΟοσОоՕօଠഠဝჿዐᴏᴑⲞⲟⵔꓳꬽ𐊒𐊫𐐄𐐬𐓂𐓪𐔖𑢵𑣈𑣗",
    "p": "ΡρРрᏢᑭᴘᵽⲢⲣꓑ𐊕",
    "q": "ԛգզⵕ",
    "r": "ƦɍʀгᎡᏒᖇᴦⲅꓣꭇꭈꮁ𐒴𖼵",
    "s": "ƽЅѕՏᏕᏚꓢꜱꮪ𐊖𐐠𐑈𑣁𖼺",
    "t": "ŧΤТᎢᴛⲦꓔ𐊗𐊱𐌕𑢼𖼊",
    "u": "ʉʋυՍսሀᑌᴜꓴꞟꭎꭒ𐓎𐓶𑢸𑣘𖽂",
    "v": "νѴѵᏙᐯᴠⴸꓦꛟꮩ𐔝𑜆𑢠𑣀𖼈",
    "w": "ɯѡԜԝաᎳᏔᴡꓪꮃ𑜊𑜎𑜏",
    "x": "ΧХхᕁᕽᚷⲬⵝꓫꞳ𐊐𐊴𐌗𐔧",
    "y": "ɣʏΥγУуҮүყᎩᎽᶌỿⲨꓬꭚ𐊲𑢤𑣜𖽃",
    "z": "ƶΖᏃᴢꓜꮓ𑢩𑣄",
}
_LETTERS: Final = {ord(each): letter for letter, others in _LOOK_LIKE.items() for each in others}
_ENCLOSED: Final = (0x1F150, 0x1F170, 0x1F1E6)
"""First of the letters in black circles, in black squares, and for flags, which have no decomposition."""

_LETTERS.update({first + index: chr(ord("a") + index) for first in _ENCLOSED for index in range(26)})

_UNSEEN: Final = re.compile(
    # Default_Ignorable_Code_Point of Unicode, and control characters that are no white space
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)

_DIGITS: Final = str.maketrans("014357892@$l", "oiaestbgzasi")
_STROKES: Final = re.compile(r"[!|](?=\w)")


def without_unseen(text: str, instead: str = "") -> str:
    """The text without characters that nobody sees: zero-width spaces and joiners, direction marks, tags, controls."""
    return _UNSEEN.sub(instead, text)


def folded(text: str) -> str:
    """The text in one compatible form (NFKC), capitals and small letters alike."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def skeleton(text: str) -> str:
    """The text in small letters, without accents, and with Latin letters in place of those that look like them."""
    bare = (each for each in unicodedata.normalize("NFKD", text) if not _is_added(each))
    small = (_LETTERS.get(ord(each)) or each.casefold().translate(_LETTERS) for each in bare)
    return unicodedata.normalize("NFKC", "".join(small))


def words(text: str) -> list[str]:
    """The runs of letters, digits and marks on them; what else there is stands between words."""
    return "".join(
        each if each.isalnum() or unicodedata.category(each).startswith("M") else " " for each in text
    ).split()


def without_digits(text: str) -> str:
    """A skeleton with letters in place of the digits and signs that stand in for them; i, l, 1, ! and | are the same."""
    return _STROKES.sub("i", text).translate(_DIGITS)


def _is_added(each: str) -> bool:
    """Whether a character only adds something to the letter before: an accent, a stroke, a circle."""
    return unicodedata.combining(each) > 0 or unicodedata.category(each) == "Me"
