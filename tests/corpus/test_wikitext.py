import pytest

from tests.corpus.inputs import page_xml, read, write_dump
from unibert.corpus.wikitext import plain_text


def assert_text(wikitext, expected):
    assert plain_text(wikitext) == expected


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Berlin''' ist ''die'' Stadt.", "Berlin ist die Stadt."),
        ("[[Berlin]], [[Spree|der Fluss]], [[:Kategorie:Stadt|Städte]]en [[A|]]", "Berlin, der Fluss, Städteen A"),
        ("a{{Infobox|x={{y|[[z]]}}}} b {{{1|c}}}", "a b"),
        ("a<ref>Quelle {{cite}}</ref> b<ref name=x /> c<!-- nein\n\nnein --> d", "a b c d"),
        ("== Geschichte ==\nText\n=== A ===", "Text"),
        ("* eins\n** zwei [[drei]]\n# vier\n: fünf\n; Wort : Sinn", "eins\nzwei drei\nvier\nfünf\nWort Sinn"),
        ("A\n{| class=wikitable\n! x !! y\n|-\n| 1 || [[2]]\n{| \n| innen\n|}\n|}\nB", "A\nB"),
        ("[[File:A.jpg|thumb|Ein [[Bild]] hier]]Text", "Text"),
        ("[[पुचः:x.jpg|100px]]Text", "Text"),
        ("A\n[[Category:B]]\n[[पुचः:भूगोल]]\n[[fr:Berlin]] [[zh:柏林]]\nC", "A\nC"),
        ("The mill [[fr:Moulin]] [[zh-min-nan:Chhia]]stands [[Mill: a novel]].", "The mill stands Mill: a novel."),
        ("A [[en:Berlin]] [[:en:Berlin|auf Englisch]] C", "A auf Englisch C"),
        ("A\n<gallery>\nA.jpg|Bild\n</gallery>\nB", "A\nB"),
        ("E <math>x^2</math> = [http://a.b/c mc²] [http://a.b] http://a.b/d", "E = mc²"),
        ("See [http://a.b the [1] page], http://a.b/c_d.", "See the [1 page],."),
        ("a&nbsp;b &amp; c&mdash;d &#228; <br/>e", "a b & c—d ä e"),
        ("<nowiki>[[kein Link]]</nowiki> <small>klein</small> <span style='x'>ja</span>", "[[kein Link]] klein ja"),
        ("Athen ({{x}}; 1834 groß) ({{x|x}}), Griechenland {{x}}.", "Athen (1834 groß), Griechenland."),
        ("first line\n\n\nsecond line\nthird", "first line\nsecond line\nthird"),
        ("", ""),
        ("{{nur|Vorlagen}}\n----\n* {{x}}\n----", ""),
        ("A\n<!-- a line of its own -->\nB <!-- in -->C", "A\nB C"),
        ("The bus''es'' and '''''all''''' of L'''Iliade''", "The buses and all of L'Iliade"),
        ("rock ''''n' roll'''\n''''''x", "rock 'n' roll\n'x"),
        ("10<sup>6</sup> m<sup>2</sup>, 10<sup>−3</sup>, 2<sup>n</sup>", "10⁶ m2, 10⁻³, 2n"),
        ("[[a|b\nc]] [[d\n|e]]", "b\nc d\n|e"),
    ],
)
def test_wikitext_to_text(wikitext, expected):
    assert_text(wikitext, expected)


def test_a_source_line_stays_a_line():
    lines = [f"Satz [[Nummer|Zahl]] {n} ist '''hier''' zu Ende.<ref>{n}</ref>" for n in range(30)]
    assert plain_text("\n".join(lines)).split("\n") == [f"Satz Zahl {n} ist hier zu Ende." for n in range(30)]


def test_the_wikis_own_namespace_names():
    wikitext = "A [[Soubor:x|náhled|popis]] B [[Kategorie:x]]"
    assert plain_text(wikitext, {"soubor", "kategorie"}) == "A B"


def test_a_page_that_names_itself(tmp_path):
    dump = write_dump(tmp_path / "dewiki.xml.bz2", page_xml(1, "Lange Brücke", "'''{{PAGENAME}}''' heißt sie."))
    assert [page.text for page in read(dump)[0]] == ["Lange Brücke heißt sie."]
    assert_text("{{PAGENAME}} heißt sie.", "heißt sie.")


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        (  # italics that are not closed end with the reference, the caption, the template, the cell, the line
            "The mill was built of stone in the reign of the second duke.<ref>''Mills of the north, p. 3</ref> It "
            "burnt. Today it is a museum called ''Stone House'' that shows how flour was made.\n\nA second one.",
            "The mill was built of stone in the reign of the second duke. It burnt. Today it is a museum "
            "called Stone House that shows how flour was made.\nA second one.",
        ),
        (
            "[[File:Tower.jpg|thumb|The ''tower seen from the sea]] The tower was used as a prison.<ref>Hill</ref> In "
            "its ''upper'' room hangs a bell.",
            "The tower was used as a prison. In its upper room hangs a bell.",
        ),
        ("{{Infobox|name=''Tower}}\nThe ''tower'' is old.", "The tower is old."),
        ("{|\n| ''Tower\n|}\nThe '''tower''' is old.", "The tower is old."),
        ("The '''tower is old.\nIt is ''high''.", "The tower is old.\nIt is high."),
        # what is never closed is text, without its delimiter
        ("Offen [[Link und {{Vorlage\nnoch da", "Offen Link und Vorlage\nnoch da"),
        ("Offen <b>fett '''\n|} Rest\n| a || b\nnoch da</div>", "Offen fett\nnoch da"),
        ("The mill <ref>stands by the river.\n\nIt is old.", "The mill stands by the river.\nIt is old."),
        ("{{Infobox mill\n| name = Mill\n| river = [[Spree]]\nThe mill is old.", "The mill is old."),
        ("{{lang|de|Die Mühle is old.\n\nIt [[burn|burnt]] {{x}} down.", "lang|de|Die Mühle is old.\nIt burnt down."),
        ("A\n[[File:x.jpg|thumb|A [[mill]] by the river\nThe mill is old.", "A\nThe mill is old."),
        ("{| class=wikitable\n! Year\n|-\n| 1900\n\nThe mill is old.\n\nIt burnt.", "The mill is old.\nIt burnt."),
        ("{|\n{| class=x\n| 1\n\nThe mill is old.\n{|\n|2\n|}\nIt burnt.", "The mill is old.\nIt burnt."),
        ("{{quote|\n{| class=x\n| 1\nThe mill is old.}}\nIt burnt.", "The mill is old.\nIt burnt."),
        ("<table><tr><td>1\nThe mill is old.\n\nIt burnt.", "The mill is old.\nIt burnt."),
        ("Mill -{is old.\n\nIt burnt.", "Mill -{is old.\nIt burnt."),
        ("One <math>x is {{lang|fr|un}}. <!-- end\n\nnot shown", "One x is un."),
        ("One <nowiki>two [[three]].\n\nFour <ref", "One two three.\nFour <ref"),
        ("The {{lang|la|[[pons}} is long.\n\nIt {{nowrap|is}} old.", "The lang|la|pons is long.\nIt is old."),
        ("A page [http://a.b with a link.\nIt is [1] old.", "A page with a link.\nIt is [1] old."),
    ],
)
def test_markup_that_is_not_closed_costs_its_own_line_at_most(wikitext, expected):
    assert_text(wikitext, expected)


@pytest.mark.parametrize(
    "verbatim", ["<!--", "{{", "[[", "<ref>", "{|", "-{", "'''", "__NOTOC__", "[[File:A.jpg|", "}}"]
)
@pytest.mark.parametrize("element", ["<nowiki>{}</nowiki>", "<code><nowiki>{}</nowiki></code>"])
def test_what_is_in_nowiki_is_text(verbatim, element):
    element = element.format(verbatim)
    text = f"A remark begins with {element} and ends with two dashes.\n\n{{{{x}}}}Teachers use [[such|these]] remarks."
    assert_text(text, f"A remark begins with {verbatim} and ends with two dashes.\nTeachers use these remarks.")


@pytest.mark.parametrize("element", ["pre", "syntaxhighlight", "math", "source", "SOURCE", "ref"])
def test_a_comment_does_not_begin_in_code_or_formulas(element):
    text = f"One <{element} lang=x><!-- {{{{ [[ <x</{element} > two.\n\nThree."
    assert_text(text, "One two.\nThree.")


@pytest.mark.parametrize(
    "text",
    [
        "The &lt;ref&gt; element holds a note. A reader finds it at the foot of the page.",
        "The &lt;b&gt; element makes words heavy and the &lt;i&gt; element makes them lean.",
        "A template is called &#123;&#123;name}} or &#91;&#91;File:x.jpg]], a list &#42; or &#58; or &lt;!-- so.",
        "In the set {a, {b, c}} there are two members, in [1, [2, 3]] as well, and in [[1, 2], [3, 4]] too.",
        "The sets {{a, b}, {c, d}} are {finite}, f(x) = {x} -{ y }.",
        "When x&lt;y and z>w hold, x<y, a <- b, #include <stdio.h> and List<String> are code, a || b is one as well.",
        "!Kung speakers write a click = an exclamation mark, which looks odd !! to those who read it first.",
        "|x| is the absolute value of x.",
        "= is not a heading, nor is == this.",
        "The method __init__ is called first, like __name__, __FILE__ and __VA_ARGS__; ___ is a blank.",
        "2-{4-propyl}-1-pentanol is a name.",
        "Use & and &unknown; and &amp;amp; and AT&T.",
        "Mc''Donald' s 'quotes'.",
    ],
)
def test_what_is_no_markup_is_read_as_on_the_page(text):
    shown = text.replace("&lt;", "<").replace("&gt;", ">").replace("''", "").replace("&amp;", "&")
    for number, character in ((123, "{"), (91, "["), (42, "*"), (58, ":")):
        shown = shown.replace(f"&#{number};", character)
    assert_text(text, shown)


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("-{zh-hans:计算机;zh-hant:電腦}-和-{A|zh-cn:x;zh-tw:y}--{于}-", "计算机和x于"),
        ("'''-{A|zh-hans:信息技术;zh-hant:資訊科技}-'''是学科", "信息技术是学科"),
        ("导演-{zh-hant|陳大文}-说-{R|後台}-，乐队-{A;B}-也", "导演陳大文说後台，乐队A;B也"),
        ("前面的-{\n\nzh-hans:软件;\n\nzh-hant:軟體;\n}-后面", "前面的软件后面"),
        ("-{H|zh-hans:甲;zh-hant:乙}-丙-{T|丁}--{-|zh-cn:戊}--{D|zh-cn:己}--{N|zh}--{}-", "丙"),
        ("-{R|zh-cn:甲}-和-{A;H|zh-cn:乙;zh-tw:丙}--{R;D|丁}-", "zh-cn:甲和丁"),
        ("-{zh-cn:[[甲|乙]]<b>丙</b>;zh-tw:丁}-", "乙丙"),
        ("-{zh-cn:甲-{R|乙}-丙;zh-tw:丁}-", "甲乙丙"),
        ("-{zh-cn:甲&amp;乙;zh-tw:丁}-", "甲&乙"),
        ("[[甲|-{zh-hans:乙;zh-hant:丙}-]]-{zh;zh-hans|丁}-", "乙丁"),
        ("Životinja -{Homo sapiens}- je -{sr-ec:čovek; sr-el:covek}-.", "Životinja Homo sapiens je čovek."),
        ("-{zh-hans:{{lang|en|a}}-b;zh-hant:c}-", "a-b"),
    ],
)
def test_variants_of_a_language(wikitext, expected):
    assert_text(wikitext, expected)


@pytest.mark.parametrize(
    "text",
    [
        "Que fait le meunier du village ? Il dit : « le blé est bon ; la farine aussi ! » Puis il part.",
        "Setu amañ an dud : « Demat ! » Petra ?",
    ],
)
def test_spaces_before_punctuation_stay(text):
    assert_text(text, text)
    assert_text(text.replace(" ?", "&nbsp;?").replace(" :", "\u00a0:"), text)


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("built from 1510{{x}}1533 for 5{{x|y}}pence", "built from 1510 1533 for 5 pence"),
        ("गाँव{{x}}में 1990<ref>a</ref>1991", "गाँव में 1990 1991"),
        ("東京{{x}}は、서울<ref>a</ref>은", "東京は、서울은"),
        ("the town {{x}}, the mill{{x}}; the river {{x}} {{y}} end {{x}}.", "the town, the mill; the river end."),
        ("mot{{x}} : suite {{x}} ! et {{x}}; fin", "mot : suite ! et; fin"),
        ("({{x}}) a ({{x}}, b; {{y}}) c “{{x}}” d [{{x}}] e", "a (b) c d e"),
        ("a{{x}}-{{y}}b {{#if:x|y}}c", "a-b c"),
    ],
)
def test_what_is_left_out_leaves_no_hole(wikitext, expected):
    assert_text(wikitext, expected)


def test_entities_of_html_5_in_links_too():
    wikitext = (
        "A film on [[35&nbsp;mm film]] was tested with the [[x|Kruskal&ndash;Wallis]] test, it&apos;s &check;, "
        "painter&lsqb;s&rsqb; &ThinSpace;[http://a.b M&uuml;ller &#x263a;] &Ouml;l &#0; {{nowrap|a&hellip;}}"
    )
    expected = "A film on 35 mm film was tested with the Kruskal–Wallis test, it's ✓, painter[s] Müller ☺ Öl \ufffd a…"
    assert_text(wikitext, expected)


def test_tags_that_stand_between_words():
    wikitext = (
        "<h2>History</h2>The market is known:\n<ul><li>One apple</li><li>Two pears</li></ul>Red<hr>blue<p>green<br>grey"
        "<dl><dt>Plum</dt><dd>a fruit</dd></dl><div>x</div>y<blockquote>z</blockquote>H<sub>2</sub>O"
    )
    expected = "History\nThe market is known:\nOne apple\nTwo pears\nRed\nblue\ngreen grey\nPlum\na fruit\nx\ny\nz\nH2O"
    assert_text(wikitext, expected)


@pytest.mark.parametrize(
    "word",
    ["NOTOC", "notoc", "БЕЗ_ОГЛАВЛЕНИЯ", "KEIN_INHALTSVERZEICHNIS", "विषय_सूची_हीन", "ללא_תוכן", "لافهرس", "目次非表示"],
)
def test_behaviour_switches_of_all_languages(word):
    assert_text(f"__{word}__\nA __{word}__ mill.__{word}__", "A mill.")


def test_pages_that_only_seem_complex():
    sums = "The sum was taken whenever <math>0<x<y</math> held.\n" * 2000
    code = "The program <syntaxhighlight lang=c>#include <stdio.h></syntaxhighlight> is short.\n" * 2000
    old = "<p>Old pages never close it.\n" * 2000
    assert plain_text(sums) == "\n".join(["The sum was taken whenever held."] * 2000)
    assert plain_text(code) == "\n".join(["The program is short."] * 2000)
    assert plain_text(old) == "\n".join(["Old pages never close it."] * 2000)
