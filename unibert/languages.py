"""What is known of languages: code, name, script, family. No gate: a corpus may hold any language under any code.

`LANGUAGES` has the Wikipedias. `in_107` marks UniBERT's 107 languages: the 103 Wikipedias of multilingual BERT, and
Esperanto, Amharic, Sinhala and Khmer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from unibert.errors import UserError


@dataclass(frozen=True)
class Language:
    """A language that a corpus may hold."""

    code: str
    """Code of its Wikipedia, the part before ``.wikipedia.org``; a standard code where the wiki is being renamed to it,
    as from zh-yue to yue."""
    name: str
    """English name; the code if the name is not known."""
    script: str
    """Script of nearly all its text; several are joined by "+", as in Cyrillic+Latin. Empty if it is not known."""
    family: str
    """Language family, with the branch of Indo-European languages: ``Indo-European: Germanic``; else "unknown"."""
    in_107: bool

    @property
    def label(self) -> str:
        """Code and name for tables, the code alone if the name is not known."""
        return self.code if self.name == self.code else f"{self.code} {self.name}"

    @property
    def scripts(self) -> frozenset[str]:
        """The scripts as a set, empty if they are not known."""
        return frozenset(self.script.split("+")) if self.script else frozenset()


_FORM = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8})*")
_RENAMED = {
    "bat-smg": "sgs",
    "be-x-old": "be-tarask",
    "fiu-vro": "vro",
    "roa-rup": "rup",
    "zh-classical": "lzh",
    "zh-min-nan": "nan",
    "zh-yue": "yue",
}
"""Wikipedias that have a standard code now: the codes they had before, which their dumps still have."""
_SAME_LANGUAGE = {**_RENAMED, "bho": "bh", "cmn": "zh", "egl": "eml", "gsw": "als", "nb": "no", "nrf": "nrm"}
"""Other codes of languages, and the codes that a corpus has for them."""
_TAGS = {
    "als": "gsw",
    "bh": "bho",
    "cbk-zam": "cbk",
    "eml": "egl",
    "map-bms": "jv-x-bms",
    "mo": "ro-Cyrl-MD",
    "nds-nl": "nds-NL",
    "nrm": "nrf",
    "roa-tara": "nap-x-tara",
    "sh": "hbs",
    "simple": "en-simple",
}
"""Codes of Wikipedias that are no BCP 47 tags, or deprecated ones, and the tags that stand for them (MediaWiki's
LanguageCode; ISO 639-3 for sh; RFC 5646 for nds-nl)."""


def language(code: str) -> Language:
    """Return what is known of the language with this code."""
    code = _SAME_LANGUAGE.get(code, code)
    return LANGUAGES.get(code) or Language(code, code, script="", family="unknown", in_107=False)


def is_known(code: str) -> bool:
    """Return whether this is the code of a Wikipedia, or another code for its language."""
    return code in LANGUAGES or code in _SAME_LANGUAGE


def language_code(given: str) -> str:
    """Return the code under which a corpus has the language that a user names: ``be_x_old`` gives ``be-tarask``.

    Raises:
        UserError: if it does not have the form of a language code, naming the nearest code that is known.
    """
    code = given.strip().lower().replace("_", "-")
    code = _SAME_LANGUAGE.get(code, code)
    if code in LANGUAGES or (_FORM.fullmatch(code) and code != "all"):  # "all" names the sum of languages in results
        return code
    known = LANGUAGES[nearest_code(code, LANGUAGES)]
    raise UserError(
        f"language {given!r} is no language code, which has two or three letters; did you mean {known.code!r} "
        f"({known.name})?"
    )


def dump_name(given: str) -> str:
    """Return how the dumps of a language are named: ``zh_yue`` for yue, zh-yue and zh_yue."""
    code = given.replace("_", "-")
    code = _SAME_LANGUAGE.get(code, code)
    old_codes = {new: old for old, new in _RENAMED.items()}
    return old_codes.get(code, code).replace("-", "_")


def language_tag(code: str) -> str:
    """Return the BCP 47 tag of a language, whose first part is an ISO 639 code: ``nap-x-tara`` for roa-tara."""
    return _TAGS.get(code, code)


def iso_code(code: str) -> str:
    """Return the ISO 639 code of a language, as the Hugging Face hub wants it; that of the whole for a variety."""
    return language_tag(code).partition("-")[0]


def nearest_code(code: str, codes: Iterable[str]) -> str:
    """Return the one of ``codes`` that a mistyped code, or a language's name, most likely means."""
    names = {language(known).name.lower(): known for known in codes}
    nearest = difflib.get_close_matches(code.lower(), [*names.values(), *names], n=1, cutoff=0)[0]
    return names.get(nearest, nearest)


_FAMILIES = {
    "Indo-European: Germanic": "Latin af:Afrikaans bar:Bavarian da:Danish de:German en:English fy:West_Frisian "
    "is:Icelandic lb:Luxembourgish nds:Low_Saxon nl:Dutch nn:Norwegian_Nynorsk no:Norwegian_Bokmål sco:Scots "
    "sv:Swedish -als:Alemannic -ang:Old_English -fo:Faroese -frr:North_Frisian -ksh:Ripuarian -li:Limburgish "
    "-nds-nl:Dutch_Low_Saxon -pdc:Pennsylvania_German -pfl:Palatine_German -simple:Simple_English "
    "-stq:Saterland_Frisian -vls:West_Flemish -zea:Zeelandic Hebrew -yi:Yiddish Gothic+Latin -got:Gothic",
    "Indo-European: Romance": "Latin an:Aragonese ast:Asturian ca:Catalan es:Spanish fr:French gl:Galician it:Italian "
    "la:Latin lmo:Lombard oc:Occitan pms:Piedmontese pt:Portuguese ro:Romanian scn:Sicilian -co:Corsican "
    "-eml:Emiliano-Romagnolo -ext:Extremaduran -frp:Arpitan -fur:Friulian -lij:Ligurian -lld:Ladin -mwl:Mirandese "
    "-nap:Neapolitan -nrm:Norman -pcd:Picard -rm:Romansh -roa-tara:Tarantino -rup:Aromanian -sc:Sardinian "
    "-vec:Venetian -wa:Walloon Hebrew+Latin -lad:Ladino Cyrillic -mo:Moldovan",
    "Indo-European: Slavic": "Latin bs:Bosnian cs:Czech hr:Croatian pl:Polish sk:Slovak sl:Slovenian "
    "-csb:Kashubian -dsb:Lower_Sorbian -hsb:Upper_Sorbian -szl:Silesian Cyrillic be:Belarusian bg:Bulgarian "
    "mk:Macedonian ru:Russian uk:Ukrainian -be-tarask:Belarusian_(Taraškievica) -rsk:Pannonian_Rusyn -rue:Rusyn "
    "Cyrillic+Glagolitic -cu:Church_Slavonic Cyrillic+Latin sh:Serbo-Croatian sr:Serbian",
    "Indo-European: Baltic": "Latin lt:Lithuanian lv:Latvian -ltg:Latgalian -sgs:Samogitian",
    "Indo-European: Celtic": "Latin br:Breton cy:Welsh ga:Irish -gd:Scottish_Gaelic -gv:Manx -kw:Cornish",
    "Indo-European: Indo-Aryan": "Bengali bn:Bengali bpy:Bishnupriya -as:Assamese -rki:Arakanese Gujarati gu:Gujarati "
    "Gurmukhi pa:Punjabi Devanagari hi:Hindi mr:Marathi ne:Nepali -anp:Angika -awa:Awadhi -bh:Bhojpuri -dty:Doteli "
    "-mai:Maithili -sa:Sanskrit Devanagari+Latin -gom:Goan_Konkani -pi:Pali Latin -hif:Fiji_Hindi -rmy:Vlax_Romani "
    "Arabic pnb:Western_Punjabi ur:Urdu -sd:Sindhi -skr:Saraiki Arabic+Devanagari -ks:Kashmiri Oriya -or:Odia "
    "Sinhala si:Sinhala Thaana -dv:Maldivian Bengali+Syloti -syl:Sylheti",
    "Indo-European: Iranian": "Arabic fa:Persian -ckb:Central_Kurdish -glk:Gilaki -lrc:Northern_Luri -mzn:Mazanderani "
    "-ps:Pashto Cyrillic tg:Tajik -os:Ossetian Latin -diq:Zazaki -ku:Kurdish Cyrillic+Latin -tly:Talysh",
    "Indo-European: Armenian": "Armenian hy:Armenian -hyw:Western_Armenian",
    "Indo-European: Greek": "Greek el:Greek -pnt:Pontic_Greek",
    "Indo-European: Albanian": "Latin sq:Albanian",
    "Afro-Asiatic": "Arabic ar:Arabic -ary:Moroccan_Arabic -arz:Egyptian_Arabic Ethiopic am:Amharic -ti:Tigrinya "
    "-tig:Tigre Hebrew he:Hebrew Latin -aa:Afar -ha:Hausa -kab:Kabyle -mt:Maltese -om:Oromo -so:Somali Latin+Tifinagh "
    "-shi:Tashelhiyt Tifinagh -zgh:Standard_Moroccan_Amazigh Syriac -arc:Aramaic",
    "Turkic": "Latin az:Azerbaijani tr:Turkish -gag:Gagauz -kaa:Karakalpak -tk:Turkmen Arabic azb:South_Azerbaijani "
    "Arabic+Latin -ug:Uyghur Cyrillic ba:Bashkir cv:Chuvash kk:Kazakh ky:Kyrgyz -alt:Southern_Altai "
    "-krc:Karachay-Balkar -sah:Yakut -tyv:Tuvan Cyrillic+Latin tt:Tatar uz:Uzbek -crh:Crimean_Tatar",
    "Uralic": "Latin et:Estonian fi:Finnish hu:Hungarian -olo:Livvi-Karelian -se:Northern_Sámi -smn:Inari_Sámi "
    "-vep:Veps -vro:Võro Cyrillic -koi:Komi-Permyak -kv:Komi -mdf:Moksha -mhr:Meadow_Mari -mrj:Hill_Mari -myv:Erzya "
    "-udm:Udmurt",
    "Northeast Caucasian": "Cyrillic ce:Chechen -av:Avar -inh:Ingush -lbe:Lak -lez:Lezgian",
    "Northwest Caucasian": "Cyrillic -ab:Abkhaz -ady:Adyghe -kbd:Kabardian",
    "Kartvelian": "Georgian ka:Georgian -xmf:Mingrelian",
    "Mongolic": "Cyrillic mn:Mongolian -bxr:Buryat -xal:Kalmyk",
    "Japonic": "Han+Hiragana+Katakana ja:Japanese",
    "Koreanic": "Hangul ko:Korean",
    "Sino-Tibetan": "Han zh:Chinese -gan:Gan_Chinese -lzh:Classical_Chinese -wuu:Wu_Chinese -yue:Cantonese Han+Latin "
    "-cdo:Eastern_Min -hak:Hakka_Chinese -nan:Southern_Min Myanmar my:Burmese -blk:Pa'O Devanagari new:Newar "
    "Tibetan -bo:Tibetan -dz:Dzongkha Yi -ii:Sichuan_Yi Bengali+Meetei -mni:Manipuri",
    "Kra-Dai": "Thai th:Thai Lao -lo:Lao Myanmar -shn:Shan Latin -za:Zhuang Tai -tdd:Tai_Nuea",
    "Austroasiatic": "Khmer km:Khmer Latin vi:Vietnamese Myanmar -mnw:Mon Ol -sat:Santali",
    "Austronesian": "Latin ceb:Cebuano id:Indonesian jv:Javanese mg:Malagasy min:Minangkabau ms:Malay su:Sundanese "
    "tl:Tagalog war:Waray -ace:Acehnese -ami:Amis -ban:Balinese -bbc:Batak_Toba -bcl:Central_Bikol "
    "-bdr:West_Coast_Bajau -bew:Betawi -bjn:Banjar -btm:Mandailing -bug:Buginese -ch:Chamorro -fj:Fijian "
    "-gor:Gorontalo -haw:Hawaiian -ho:Hiri_Motu -iba:Iban -ilo:Ilocano -kge:Komering -mad:Madurese "
    "-map-bms:Banyumasan -mh:Marshallese -mi:Māori -na:Nauruan -nia:Nias -pag:Pangasinan -pam:Kapampangan -pwn:Paiwan "
    "-sm:Samoan -szy:Sakizaya -tay:Atayal -tet:Tetum -to:Tongan -trv:Seediq -ty:Tahitian",
    "Dravidian": "Kannada kn:Kannada -tcy:Tulu Malayalam ml:Malayalam Tamil ta:Tamil Telugu te:Telugu",
    "Niger-Congo": "Latin sw:Swahili yo:Yoruba -ak:Akan -ann:Obolo -bm:Bambara -dag:Dagbani -dga:Dagaare -ee:Ewe "
    "-fat:Fante -ff:Fula -fon:Fon -gpe:Ghanaian_Pidgin -gur:Frafra -guw:Gun -hz:Herero -ig:Igbo -igl:Igala "
    "-kbp:Kabiye -kcg:Tyap -kg:Kongo -ki:Kikuyu -kj:Kwanyama -kus:Kusaal -lg:Ganda -ln:Lingala -mos:Mossi -ng:Ndonga "
    "-nr:South_Ndebele -nso:Northern_Sotho -nup:Nupe -ny:Chewa -rn:Kirundi -rw:Kinyarwanda -sg:Sango -sn:Shona "
    "-ss:Swazi -st:Sotho -tn:Tswana -ts:Tsonga -tum:Tumbuka -tw:Twi -ve:Venda -wo:Wolof -xh:Xhosa -zu:Zulu "
    "Nko -nqo:N'Ko",
    "Nilo-Saharan": "Latin -din:Dinka -knc:Central_Kanuri -kr:Kanuri",
    "Quechuan": "Latin -qu:Quechua",
    "Aymaran": "Latin -ay:Aymara",
    "Tupian": "Latin -gn:Guarani",
    "Arawakan": "Latin -guc:Wayuu",
    "Uto-Aztecan": "Latin -nah:Nahuatl",
    "Algic": "Canadian+Latin -cr:Cree Latin -atj:Atikamekw -chy:Cheyenne",
    "Na-Dene": "Latin -nv:Navajo",
    "Iroquoian": "Cherokee+Latin -chr:Cherokee",
    "Muskogean": "Latin -cho:Choctaw -mus:Muscogee",
    "Eskimo-Aleut": "Canadian+Latin -iu:Inuktitut Latin -ik:Inupiaq -kl:Greenlandic",
    "Basque": "Latin eu:Basque",
    "Creole": "Latin ht:Haitian_Creole -bi:Bislama -cbk-zam:Zamboanga_Chavacano -gcr:Guianan_Creole "
    "-jam:Jamaican_Patois -pap:Papiamento -pcm:Nigerian_Pidgin -pih:Norfuk -srn:Sranan_Tongo -tpi:Tok_Pisin",
    "Constructed": "Latin eo:Esperanto io:Ido vo:Volapük -avk:Kotava -ia:Interlingua -ie:Interlingue -jbo:Lojban "
    "-lfn:Lingua_Franca_Nova -nov:Novial",
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
