"""Is a text in a given language? Told from its script, and between languages of one script from their commonest words.

Rules of ours in place of a statistical model, so that a verdict is the same everywhere and can be read. A text without
a letter, or too short to hold a common word, passes: nothing speaks against it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

__all__ = ["LANGUAGES", "other_language", "speaks"]

_COMMON: dict[str, dict[str, str]] = {
    "LATIN": {
        "en": "the and of to in is that for it with you this are on as",
        "de": "der die und das ist nicht ein eine zu mit den sie ich von auf",
        "es": "el la los las de que y en un una por con es del se",
        "fi": "ja ei se että oli mutta ovat kun hän myös tai kuin niin olen sekä",
        "fr": "le la les et des est une que pour dans un du de en sont",
        "it": "il la di che e un nel non con una del le è sono gli",
        "pl": "w na z nie się jest są że jak oraz od dla po ale przez",
        "pt": "os de que e um não para com uma dos da em se por são",
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
"""Script -> language -> common words, less what English has too; none where no other language here has the script."""
_CLEAR = 5
_AROUND = ".,;:!?()[]{}\"'*_-–—…«»“”‘’¿¡।؟،۔"

LANGUAGES: frozenset[str] = frozenset(language for group in _COMMON.values() for language in group)


def speaks(text: str, language: str) -> bool:
    """Is the text in this language (ISO 639-1 code, one of ``LANGUAGES``), as far as can be told?"""
    script = _script_of(text)
    if script is None:
        return True
    if language not in _COMMON.get(script, {}):
        return False
    found = _common_words(text, script)
    return found[language] == max(found.values())


def other_language(text: str, prompt: str) -> tuple[str, str] | None:
    """The languages of text and prompt where these are two of one script; None unless it is clear.

    The prompt's is the one of which it has the most common words, two at least. The text's must have five common words
    in it, and twice as many as the prompt's: answers may end in "The answer is" whatever they are told in.
    """
    script = _script_of(prompt)
    if script not in _COMMON or _script_of(text) != script or len(_COMMON[script]) == 1:
        return None
    found, asked = _common_words(text, script), Counter(_common_words(prompt, script)).most_common(2)
    told = max(found, key=found.__getitem__)
    (own, most), (_, second) = asked
    clear = most > max(1, second) and found[told] >= _CLEAR and found[told] >= 2 * found[own]
    return (told, own) if clear and told != own else None


def _script_of(text: str) -> str | None:
    """The script of most of the letters, as Unicode names it; None without a letter."""
    scripts = Counter(unicodedata.name(letter, "?").partition(" ")[0] for letter in text if letter.isalpha())
    if scripts["HIRAGANA"] * 10 > scripts.total():  # Japanese is written in three scripts, and no other has this one
        return "HIRAGANA"
    return scripts.most_common(1)[0][0] if scripts.total() else None


def _common_words(text: str, script: str) -> dict[str, int]:
    """Language of the script -> how many words of the text are among its commonest."""
    words = Counter(word.strip(_AROUND) for word in text.lower().split())
    return {name: sum(words[word] for word in common.split()) for name, common in _COMMON[script].items()}
