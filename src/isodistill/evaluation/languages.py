"""Is a text in a given language? Told from its script, and between languages of one script from their commonest words.

Rules of ours in place of a statistical model, so that a verdict is the same everywhere and can be read. A text without
a letter, or too short to hold a common word, passes: nothing speaks against it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

__all__ = ["LANGUAGES", "speaks"]

_COMMON: dict[str, dict[str, str]] = {
    "LATIN": {
        "en": "the and of to in is that for it with you this are on as",
        "de": "der die und das ist nicht ein eine zu mit den sie ich von auf",
        "es": "el la los las de que y en un una por con es del se",
        "fi": "ja on ei se että oli mutta ovat kun hän myös tai kuin niin olen",
        "fr": "le la les et des est une que pour dans un du de en sont",
        "it": "il la di che e un per non con una del le è sono gli",
        "pl": "i w na z nie się jest że do to jak o co po ale",
        "pt": "o a os de que e um não para com uma do da em se",
        "sw": "ya na wa kwa ni la katika za cha kuwa hii si yake watu pia",
        "vi": "và của là có không cho được các một người trong với này để những",
    },
    "CYRILLIC": {
        "bg": "и в не на че се е да за от са с по това ще",
        "ru": "и в не на что я с это как он но по все к из",
        "uk": "і в не на що та є це як з до у за його для",
    },
    "ARABIC": {
        "ar": "في من على إلى أن هذا التي هو عن مع هذه ما كان لا أو",
        "fa": "است در به از که را این با برای آن و یک می های خود",
        "ur": "ہے میں کے کی اور کا سے کو ہیں یہ نے پر کہ اس ایک",
    },
    "DEVANAGARI": {
        "hi": "है के में की और का को से हैं यह पर ने एक कि भी",
        "mr": "आहे आणि च्या मध्ये हे या नाही ते आहेत साठी एक ही आपण होते मी",
        "ne": "छ र को मा लागि गर्न हो छन् पनि यो हुन्छ एक गर्ने तपाईं भने",
    },
    "BENGALI": {"bn": ""},
    "CJK": {"zh": ""},
    "GUJARATI": {"gu": ""},
    "GURMUKHI": {"pa": ""},
    "HANGUL": {"ko": ""},
    "HEBREW": {"he": ""},
    "HIRAGANA": {"ja": ""},
    "KANNADA": {"kn": ""},
    "MALAYALAM": {"ml": ""},
    "TAMIL": {"ta": ""},
    "TELUGU": {"te": ""},
    "THAI": {"th": ""},
}
"""Script -> language -> its commonest words; none where no other language here shares the script."""
_AROUND = ".,;:!?()[]{}\"'*_-–—…«»“”‘’¿¡।؟،۔"

LANGUAGES: frozenset[str] = frozenset(language for group in _COMMON.values() for language in group)


def speaks(text: str, language: str) -> bool:
    """Is the text in this language (ISO 639-1 code, one of ``LANGUAGES``), as far as can be told?"""
    script = next(name for name, group in _COMMON.items() if language in group)
    scripts = Counter(_script(letter) for letter in text if letter.isalpha())
    if not scripts:
        return True
    if scripts["HIRAGANA"] * 10 > scripts.total():  # Japanese is written in three scripts, and no other has this one
        scripts["HIRAGANA"] += scripts.pop("CJK", 0) + scripts.pop("KATAKANA", 0)
    if scripts.most_common(1)[0][0] != script:
        return False
    words = Counter(word.strip(_AROUND) for word in text.lower().split())
    found = {name: sum(words[word] for word in common.split()) for name, common in _COMMON[script].items()}
    return found[language] == max(found.values())


def _script(letter: str) -> str:
    return unicodedata.name(letter, "?").partition(" ")[0]
