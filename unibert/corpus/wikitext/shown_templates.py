"""Templates whose arguments stand in the sentence, with what a reader sees of them.

Names are those of the large Wikipedias, in lower case with spaces. A template that is not here shows nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from unibert.corpus.wikitext.isolation import HOLE

_SEPARATORS_OF_NAMES = re.compile(r"[\s_]+")
_NAMED = re.compile(r"([^\W\d][\w -]{0,40}|[1-9][0-9]?)\s*=")
_EXPONENT = re.compile("[-−]?[0-9]")
_POWER_IN_UNIT = re.compile(r"^e(3|6|9|12|15)(?=[^\W\d])")  # e6acre: million acres
SUPERSCRIPTS = str.maketrans("0123456789-−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻")
"""An exponent must not look like a digit of the number before it."""


class Arguments:
    """Arguments of a template by name; those without a name have their number."""

    def __init__(self, arguments: list[str]) -> None:
        self._values: dict[str, str] = {}
        self.positional = 0
        for argument in arguments:
            argument = argument.strip()
            if match := _NAMED.match(argument):
                self._values[match[1].strip().lower()] = argument[match.end() :].lstrip()
            else:
                self.positional += 1
                self._values[str(self.positional)] = argument

    def first(self, *names: str | int) -> str:
        """Return the first value that is not empty."""
        return next((value for name in names if (value := self._values.get(str(name), ""))), "")

    def all(self, start: int = 1) -> list[str]:
        """Return the values without a name that are not empty, from a number on."""
        numbers = range(start, max(self.positional, *map(int, filter(str.isdigit, self._values)), 0) + 1)
        return [value for number in numbers if (value := self._values.get(str(number), ""))]


Show = Callable[[Arguments], str]


def shown(name: str) -> Show | None:
    """Return what shows a template, for its name as written; None if it shows nothing."""
    name = _SEPARATORS_OF_NAMES.sub(" ", name).strip().lower()
    if show := _SHOWN.get(name):
        return show
    if match := _LANGUAGE_IN_NAME.match(name):
        return _phonemes if match[1] == "ipac" else _argument(1, "text")
    return None


def shown_function(name: str) -> Show | None:
    """Return what shows a parser function, for ``name:value`` as written; None if it shows nothing."""
    function, colon, _ = name.partition(":")
    return _FUNCTIONS.get(function.strip().lower()) if colon else None


def shown_variable(name: str, title: str) -> str:
    """Return the value of a variable on a page with this title, empty if it is not known."""
    name = name.strip().lower()
    return title if name in _TITLE_VARIABLES else _VARIABLES.get(name, "")


def _argument(*names: str | int) -> Show:
    return lambda arguments: arguments.first(*names)


def _constant(text: str) -> Show:
    return lambda _: text


def _joined(separator: str, start: int = 1) -> Show:
    return lambda arguments: separator.join(arguments.all(start))


def _quotation(*names: str | int) -> Show:
    return lambda arguments: f"\n{arguments.first(*names)}\n"


def _converted(arguments: Arguments) -> str:
    """Value and unit as written; a range is ``{{convert|10|-|20|C|F}}``."""
    values = arguments.all()
    text = values[0] if values else ""
    position = 1
    while position + 1 < len(values) and values[position].lower() in _RANGES:
        text += _RANGES[values[position].lower()] + values[position + 1]
        position += 2
    if position >= len(values):
        return text
    unit = _POWER_IN_UNIT.sub(lambda power: f"×10{power[1].translate(SUPERSCRIPTS)} ", values[position])
    return text + ("" if unit[0] in "/×" else " ") + unit


def _quantity(arguments: Arguments) -> str:
    """``{{unité|5|km|2}}``: a number after a unit is its exponent."""
    number, *units = arguments.all() or [""]
    return number + "".join(unit.translate(SUPERSCRIPTS) if _EXPONENT.fullmatch(unit) else f" {unit}" for unit in units)


def _value(arguments: Arguments) -> str:
    number = arguments.first(1)
    if error := arguments.first(2):
        number += f"±{error}"
    if exponent := arguments.first("e"):
        number += f"×10{exponent.translate(SUPERSCRIPTS)}"
    return f"{number} {arguments.first('u', 'ul', 'up', 'upl')}".strip()


def _power(arguments: Arguments) -> str:
    return f"×10{arguments.first(1).translate(SUPERSCRIPTS)}"


def _translation_with_original(arguments: Arguments) -> str:
    """``{{nihongo|Samurai|侍|samurai}}`` shows Samurai (侍, samurai)."""
    translation, *originals = (arguments.first(number) for number in (1, 2, 3, 4))
    original = ", ".join(filter(None, originals))
    if not translation:
        return original
    return f"{translation} ({original})" if original else translation


def _with_reading(arguments: Arguments) -> str:
    reading = arguments.first(2)
    return arguments.first(1) + (f"（{reading}）" if reading else "")


def _phonemes(arguments: Arguments) -> str:
    sounds = "".join(value for value in arguments.all() if value.lower() not in _IPA_KEYWORDS)
    return f"/{sounds.replace('_', ' ')}/"


def _fraction(arguments: Arguments) -> str:
    """``{{frac|3|1|2}}`` shows 3 1/2 and ``{{frac|4}}`` a quarter, apart from a number before it."""
    *numbers, denominator = arguments.all() or [""]
    *whole, numerator = numbers or ["1"]
    return HOLE + " ".join([*whole, f"{numerator}/{denominator}"]) if denominator else ""


def _named_language(arguments: Arguments) -> str:
    return f"{arguments.first(2)}: {arguments.first(3)}"


def _chinese(arguments: Arguments) -> str:
    return ", ".join(
        filter(None, (arguments.first(name) for name in ("c", "s", "t", "p", "w", "j", "hangul", "hanja")))
    )


def _prefixed(prefix: str) -> Show:
    return lambda arguments: f"{prefix} {arguments.first(1)}"


def _citation(arguments: Arguments) -> str:
    """A quotation on the French Wikipedia, a reference on others."""
    return "" if arguments.first("title", "url", "year", "date", "publisher", "last", "last1") else arguments.first(1)


def _date(arguments: Arguments) -> str:
    """A date as written, unless the template turns the number of a month into its name."""
    text = " ".join(arguments.all())
    return text if any(map(str.isalpha, text)) else ""


def _clock_time(arguments: Arguments) -> str:
    return " h ".join(arguments.all())


_RANGES = {
    "-": "–", "–": "–", "to": " to ", "and": " and ", "or": " or ", "to(-)": " to ", "to about": " to about ",
    "x": " × ", "×": " × ", "*": " × ", "by": " by ", "by(x)": " by ", "+/-": " ± ", "±": " ± ", "&": " & ",
    "and(-)": " and ", ",": ", ", "до": " до ", "и": " и ", "to-": " to ", "bis": " bis ", "à": " à ", "a": " a ",
}  # fmt: skip
_IPA_KEYWORDS = frozenset(("lang", "pron", "audio", "us", "uk", "also", "local", "small", "icon"))
# {{lang-la|…}}, {{IPA-de|…}}, {{vol-lv|…}}: the language is part of the name
_LANGUAGE_IN_NAME = re.compile(r"(lang|ipac?|vol|мова|jęz)-[a-z]{2,4}(?:-?[a-z0-9]+)*$")

_GROUPS: dict[Show, str] = {
    # Wrappers: an argument with another font, colour or size, or with a note
    _argument(1, "text"): (
        "nowrap, nobr, nobreak, s, small, smaller, big, bigger, large, larger, resize, sub, sup, em, strong, bold, "
        "italic, italics, u, underline, strike, mono, monospace, code, kbd, key, keypress, button, tt, var, mvar, "
        "samp, dfn, abbr, abbrlink, tooltip, comment, hover, sc, smallcaps, allcaps, smcp, angbr, angbr ipa, center, "
        "centre, centered, unicode, polytonic, script, script/hebrew, script/arabic, script/nastaliq, sic, as written, "
        "not a typo, typo, noitalic, noitalics, bdi, rtl, ltr, nastaliq, plainlist, plain list, linkfarbe, "
        "visible anchor, vanchor, annotated link, wikt, wt, красный, зелёный, red, green, blue, gray, grey, "
        # numbers as they are written
        "nts, ntsh, number table sorting, formatnum, fmtn, num, szám, formatnumber, число, ч, rn, nombre romain, "
        "ordinal, ord, rail gauge, railgauge, track gauge, "
        # centuries and the like
        "siècle, s-, s2-, sap, sav, séc, segle, siglo, secolo, numéro, n°, ling, "
        # pronunciations
        "ipa, ipa2, ipalink, ipa link, ipablink, ipa blink, ipaslink, ipa slink, api, afi, мфа, мфа2, δφα, προφορά, "
        "вимова, произношение, আধ্বব, lautschrift, "
        # countries with their flags
        "flag, flagu, flagcountry, flag country, "
        # ударение: stress
        "ударение, наголос"
    ),
    # The second argument, after a language, a colour or a key
    _argument(2, "text"): (
        "lang, langue, lang2, lingua, idioma, dil, ভাষা, भाषा, γλώσσα, ξγ, мова, язык, rtl-lang, rtl lang, native name, "
        "native phrase, nativename, cizojazyčně, cj, vjz, vjazyce, vjazyce2, cudzojazyčne, color, colour, couleur, "
        "colore, farbe, цвет, font color, fontcolor, font, bgcolor, background color, legend, légende, hover title, "
        "hint, подсказка, sort, citation étrangère, wikt-lang"
    ),
    _argument(3, 2, 1): "transl, transliteration, tlit, translitération",
    # Links to pages that another Wikipedia has
    _argument("lt", "display", 1): (
        "ill, illm, ill2, ill-wd, interlanguage link, interlanguage link multi, interlanguage link wikidata, "
        "liên kết đa ngôn ngữ, enlace interlingüístico"
    ),
    _argument("trad-text", "texte", 1): "lien",
    _argument("label", 1): "仮リンク",
    _argument(2, 1, "текст"): (
        "нп, нп1, нп2, нп3, нп4, нп5, не переведено, не переведено 2, не переведено 3, не переведено 5, "
        "не перекладено, iw, iw2"
    ),
    _argument(4, 3, 2): "tsl, translink",
    _argument("d", 4, 1): "link-en, internal link helper, internal link helper/en, le, lj",
    # Quotations
    _quotation("text", "quote", 1, "zitat", "texte", "citat", "цитата", "текст", "texto", "testo", "cita"): (
        "quote, blockquote, bquote, bq, block quote, quotation, cquote, centered pull quote, pull quote, quote box, "
        "quotebox, quote frame, poem quote, poemquote, zitat, citation bloc, cita, citazione, citação, citação2, "
        "citat, citaat, citát, cytat, sitat, sitaatti, idézet, alıntı, цитата, цытата, 引用, اقتباس, نقل قول, ציטוט, "
        "उद्धरण, উক্তি, উদ্ধৃতি, คำพูด, kutipan, petikan, απόσπασμα, παράθεμα, verse, вірш, стих"
    ),
    _citation: "citation",
    # Numbers with units
    _converted: (
        "convert, cvt, convertir, converter, convertito, konwertuj, রূপান্তর, conversie, перевести, конвертувати, muunna, "
        "çevir, chuyển đổi"
    ),
    _quantity: "unité, unidad, unitat, unità, nombre, nb",
    _joined(" "): "tmp, température, gaps, sortname, sort name",
    _date: "date, date-, dato",
    _clock_time: "heure",
    _value: "val",
    _power: "e",
    _fraction: "frac, fraction, sfrac",
    # Several arguments in a row
    _joined(""): "chem, chem2, linktext, formule chimique",
    _joined(" · "): "hlist, flatlist",
    _joined(", "): "hlist-comma, cslist, comma separated entries",
    _joined("\n"): "ubl, unbulleted list, plain unbulleted list, bulleted list, ordered list",
    _joined("-"): "respell, pronunciation respelling",
    _phonemes: "ipac-en",
    # Words in another script with a reading or a translation
    _translation_with_original: "nihongo, nihongo4, nihongo foot, giapponese, japonais, japanisch, нихонго, 日本語",
    _argument(1, 2): "nihongo2",
    _argument(3, 1, 2): "nihongo3",
    _with_reading: "読み仮名, 読み仮名 ruby不使用, ルビ, ruby, 振り仮名, ふりがな",
    _named_language: "langwithname, rtl-langwithname",
    _chinese: "zh, chinese, korean",
    # Constants
    _constant("–"): "ndash, en dash, –",
    _constant("—"): "mdash, em dash, —, --",
    _constant(" – "): "snd, spnd, spaced ndash, sndash, spaced en dash, spndash, dash, nsndns",
    _constant(" — "): "smd, spaced mdash, spaced em dash, тире",
    _constant(" · "): "·, middot, dot, •, bullet, bull, *",
    _constant("'"): "', apostrophe, -', ´",
    _constant("'s"): "'s, -'s",
    _constant("’"): "’, ʼ",
    _constant("×"): "×, times",
    _constant("°"): "deg, degree",
    _constant("1er"): "1er, ier",
    _constant("К."): "к.",
    _constant("М."): "м.",
    _constant(" "): (
        "nbsp, space, spaces, spc, thinsp, thin space, hair space, hsp, sp, gap, break, br, nnbsp, clear space"
    ),
    _prefixed("USS"): "uss",
    _prefixed("HMS"): "hms",
    _prefixed("HMAS"): "hmas",
    _prefixed("HMCS"): "hmcs",
    _prefixed("RMS"): "rms",
    _prefixed("c."): "circa, c., ca.",
}  # fmt: skip
_SHOWN = {name.strip(): show for show, names in _GROUPS.items() for name in re.split(r",\s+", names)}

_TITLE_VARIABLES = frozenset(
    ("pagename", "fullpagename", "basepagename", "subpagename", "articlepagename", "subjectpagename")
)
_VARIABLES = {"!": HOLE, "=": "="}
_FUNCTIONS: dict[str, Show] = {
    **dict.fromkeys(("formatnum", "число", "formatzahl", "zahlenformat"), _argument(1)),
    "lc": lambda arguments: arguments.first(1).lower(),
    "uc": lambda arguments: arguments.first(1).upper(),
    "lcfirst": lambda arguments: arguments.first(1)[:1].lower() + arguments.first(1)[1:],
    "ucfirst": lambda arguments: arguments.first(1)[:1].upper() + arguments.first(1)[1:],
}
