"""The Wikipedia languages: code, name, script, family.

`in_107` marks UniBERT's 107 languages: the 103 Wikipedias of multilingual BERT, and Esperanto, Amharic, Sinhala and
Khmer. A corpus may hold the others too.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from unibert.errors import UserError


@dataclass(frozen=True)
class Language:
    """A language with a Wikipedia."""

    code: str
    """Code of its Wikipedia: the part before ``.wikipedia.org``."""
    name: str
    script: str
    """Script of nearly all its text; several are joined by "+", as in Cyrillic+Latin."""
    family: str
    """Language family, with the branch of Indo-European languages: ``Indo-European: Germanic``."""
    in_107: bool

    @property
    def scripts(self) -> frozenset[str]:
        """The scripts as a set."""
        return frozenset(self.script.split("+"))


def language(code: str) -> Language:
    """Return the language with this Wikipedia code.

    Raises:
        UserError: if there is none, naming the nearest code.
    """
    if code in LANGUAGES:
        return LANGUAGES[code]
    names = {known.name.lower(): known.code for known in LANGUAGES.values()}
    nearest = difflib.get_close_matches(code.lower(), [*LANGUAGES, *names], n=1, cutoff=0)[0]
    known = LANGUAGES[names.get(nearest, nearest)]
    raise UserError(f"language {code!r} is unknown; did you mean {known.code!r} ({known.name})?")


_FAMILIES = {
    "Indo-European: Germanic": "Latin af:Afrikaans bar:Bavarian da:Danish de:German en:English fy:West_Frisian "
    "is:Icelandic lb:Luxembourgish nds:Low_Saxon nl:Dutch nn:Norwegian_Nynorsk no:Norwegian_Bokmål sco:Scots "
    "sv:Swedish -als:Alemannic -li:Limburgish -simple:Simple_English Hebrew -yi:Yiddish",
    "Indo-European: Romance": "Latin an:Aragonese ast:Asturian ca:Catalan es:Spanish fr:French gl:Galician it:Italian "
    "la:Latin lmo:Lombard oc:Occitan pms:Piedmontese pt:Portuguese ro:Romanian scn:Sicilian -nap:Neapolitan "
    "-vec:Venetian",
    "Indo-European: Slavic": "Latin bs:Bosnian cs:Czech hr:Croatian pl:Polish sk:Slovak sl:Slovenian "
    "-hsb:Upper_Sorbian Cyrillic be:Belarusian bg:Bulgarian mk:Macedonian ru:Russian uk:Ukrainian "
    "Cyrillic+Latin sh:Serbo-Croatian sr:Serbian",
    "Indo-European: Baltic": "Latin lt:Lithuanian lv:Latvian -ltg:Latgalian",
    "Indo-European: Celtic": "Latin br:Breton cy:Welsh ga:Irish",
    "Indo-European: Indo-Aryan": "Bengali bn:Bengali bpy:Bishnupriya Gujarati gu:Gujarati Gurmukhi pa:Punjabi "
    "Devanagari hi:Hindi mr:Marathi ne:Nepali -sa:Sanskrit Arabic pnb:Western_Punjabi ur:Urdu -sd:Sindhi "
    "Sinhala si:Sinhala",
    "Indo-European: Iranian": "Arabic fa:Persian -ckb:Central_Kurdish -mzn:Mazanderani -ps:Pashto Cyrillic tg:Tajik "
    "-os:Ossetian Latin -ku:Kurdish",
    "Indo-European: Armenian": "Armenian hy:Armenian",
    "Indo-European: Greek": "Greek el:Greek",
    "Indo-European: Albanian": "Latin sq:Albanian",
    "Afro-Asiatic": "Arabic ar:Arabic -arz:Egyptian_Arabic Ethiopic am:Amharic Hebrew he:Hebrew "
    "Latin -ha:Hausa -mt:Maltese -so:Somali",
    "Turkic": "Latin az:Azerbaijani tr:Turkish Arabic azb:South_Azerbaijani Cyrillic ba:Bashkir cv:Chuvash kk:Kazakh "
    "ky:Kyrgyz -sah:Yakut Cyrillic+Latin tt:Tatar uz:Uzbek",
    "Uralic": "Latin et:Estonian fi:Finnish hu:Hungarian Cyrillic -mrj:Hill_Mari",
    "Northeast Caucasian": "Cyrillic ce:Chechen",
    "Kartvelian": "Georgian ka:Georgian",
    "Mongolic": "Cyrillic mn:Mongolian",
    "Japonic": "Han+Hiragana+Katakana ja:Japanese",
    "Koreanic": "Hangul ko:Korean",
    "Sino-Tibetan": "Han zh:Chinese Myanmar my:Burmese Devanagari new:Newar",
    "Kra-Dai": "Thai th:Thai",
    "Austroasiatic": "Khmer km:Khmer Latin vi:Vietnamese",
    "Austronesian": "Latin ceb:Cebuano id:Indonesian jv:Javanese mg:Malagasy min:Minangkabau ms:Malay su:Sundanese "
    "tl:Tagalog war:Waray",
    "Dravidian": "Kannada kn:Kannada Malayalam ml:Malayalam Tamil ta:Tamil Telugu te:Telugu",
    "Niger-Congo": "Latin sw:Swahili yo:Yoruba -ig:Igbo -rw:Kinyarwanda -zu:Zulu",
    "Quechuan": "Latin -qu:Quechua",
    "Basque": "Latin eu:Basque",
    "Creole": "Latin ht:Haitian_Creole",
    "Constructed": "Latin eo:Esperanto io:Ido vo:Volapük -ia:Interlingua",
}
"""Family → scripts, each followed by its languages; "-" marks a language outside the 107."""


def _read_families() -> dict[str, Language]:
    languages = []
    for family, words in _FAMILIES.items():
        script = ""
        for word in words.split():
            code, is_language, name = word.partition(":")
            if is_language:
                languages.append(
                    Language(code.lstrip("-"), name.replace("_", " "), script, family, not code.startswith("-"))
                )
            else:
                script = word
    return {entry.code: entry for entry in sorted(languages, key=lambda entry: entry.code)}


LANGUAGES: dict[str, Language] = _read_families()
"""All known languages by code, sorted."""
