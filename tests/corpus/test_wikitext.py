import pytest

from unibert.corpus.wikitext import WikitextTooComplex, plain_text


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Berlin''' ist ''die'' Stadt.", "Berlin ist die Stadt."),
        ("[[Berlin]], [[Spree|der Fluss]], [[:Kategorie:Stadt|Städte]]en", "Berlin, der Fluss, Städteen"),
        ("a{{Infobox|x={{y|[[z]]}}}} b {{{1|c}}}", "a b"),
        ("a<ref>Quelle {{cite}}</ref> b<ref name=x /> c<!-- nein\n\nnein --> d", "a b c d"),
        ("== Geschichte ==\nText\n=== A ===", "Text"),
        ("* eins\n** zwei [[drei]]\n# vier\n: fünf\n; Wort : Sinn", "eins\nzwei drei\nvier\nfünf\nWort Sinn"),
        ("A\n{| class=wikitable\n! x !! y\n|-\n| 1 || [[2]]\n{| \n| innen\n|}\n|}\nB", "A\nB"),
        ("[[File:A.jpg|thumb|Ein [[Bild]] hier]]Text", "Text"),
        ("[[पुचः:x.jpg|100px]]Text", "Text"),
        ("A\n[[Category:B]]\n[[पुचः:भूगोल]]\n[[fr:Berlin]] [[zh:柏林]]\nC", "A\nC"),
        ("A [[en:Berlin]] [[:en:Berlin|auf Englisch]] C", "A auf Englisch C"),
        ("A\n<gallery>\nA.jpg|Bild\n</gallery>\nB", "A\nB"),
        ("E <math>x^2</math> = [http://a.b/c mc²] [http://a.b] http://a.b/d", "E = mc²"),
        ("a&nbsp;b &amp; c&mdash;d &#228; <br/>e", "a b & c—d ä e"),
        ("<nowiki>[[kein Link]]</nowiki> <small>klein</small> <span style='x'>ja</span>", "kein Link klein ja"),
        ("__NOTOC__A __БЕЗ_ОГЛАВЛЕНИЯ__", "A __БЕЗ_ОГЛАВЛЕНИЯ__"),
        ("Athen ({{lang-el|Αθήνα}}; 1834 groß) ({{IPA|x}}), Griechenland {{x}}.", "Athen (1834 groß), Griechenland."),
        ("-{zh-hans:计算机;zh-hant:電腦}-和-{A|zh-cn:x;zh-tw:y}--{于}-", "计算机和于"),
        ("first line\n\n\nsecond line\nthird", "first line\nsecond line\nthird"),
        ("Offen [[Link und {{Vorlage\nnoch da", "noch da"),
        ("Offen <b>fett '''\n|} Rest\n| a || b\nnoch da</div>", "Offen fett\nnoch da"),
        ("", ""),
        ("{{nur|Vorlagen}}\n----\n* {{x}}\n----", ""),
    ],
)
def test_wikitext_to_text(wikitext, expected):
    assert plain_text(wikitext) == expected


def test_a_source_line_stays_a_line():
    lines = [f"Satz [[Nummer|Zahl]] {n} ist '''hier''' zu Ende.<ref>{n}</ref>" for n in range(30)]
    assert plain_text("\n".join(lines)).split("\n") == [f"Satz Zahl {n} ist hier zu Ende." for n in range(30)]


def test_the_wikis_own_namespace_names():
    wikitext = "A [[Soubor:x|náhled|popis]] B [[Kategorie:x]]"
    assert plain_text(wikitext, {"soubor", "kategorie"}) == "A B"


@pytest.mark.parametrize(
    "unit",
    ["{{{a|", "<b>", "<ref>{{cite", "[[File:x|[[", "[http://a.b ", "{|\n|-\n| a || {{b|\n", '<b a="', "<br a='"],
)
def test_markup_that_the_parser_would_retry_for_minutes_is_refused(unit):
    with pytest.raises(WikitextTooComplex):
        plain_text(unit * (100_000 // len(unit)))


@pytest.mark.parametrize("unit", ["''x", ";a:b\n:c '' ''' ", "&#x41;&", "}}{{", "]] [[", "<li>", "=a ''b", "<!-- "])
def test_odd_markup_that_parses_fast_is_read(unit):
    plain_text(unit * (10_000 // len(unit)))


def test_unbalanced_markup_at_the_end_of_a_long_page_is_read():
    text = "Ein ganz gewöhnlicher Satz mit [[Links]].\n" * 2000 + "{{ [[ <b> {|"
    assert plain_text(text).startswith("Ein ganz gewöhnlicher Satz mit Links.")


@pytest.mark.parametrize(("start", "end"), [("{{a|", "}}"), ("<b>", "</b>"), ("[[File:x|", "]]"), ("{|\n|", "\n|}\n")])
def test_deep_nesting(start, end):
    plain_text(start * 30 + end * 30)
    with pytest.raises(WikitextTooComplex):
        plain_text(start * 5000 + end * 5000)
