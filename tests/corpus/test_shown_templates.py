import pytest

from unibert.corpus.wikitext import plain_text


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{lang|la|Pons Longus}}", "Pons Longus"),
        ("{{Lang-el|γράφω}}", "γράφω"),
        ("{{lang-cu2|Кіевъ}}", "Кіевъ"),
        ("{{cizojazyčně|la|pons}}", "pons"),
        ("{{convert|1300|m|ft}}", "1300 m"),
        ("{{Convert|10|-|20|C|F|abbr=on}}", "10–20 C"),
        ("{{cvt|5|to|7.5|by|3|km}}", "5 to 7.5 by 3 km"),
        ("{{convert|87|e6acre|km2}}", "87×10⁶ acre"),
        ("{{cvt|22,1|/km2|sortable=on}}", "22,1/km2"),
        ("{{formatnum:12500}} {{FORMATNUM:{{nowrap|12.5}}|R}}", "12500 12.5"),
        ("{{uc:abc}}{{#if:a|b|c}}", "ABC"),
        ("{{val|6.24|0.05|e=-18|u=kg}}", "6.24±0.05×10⁻¹⁸ kg"),
        ("{{frac|3|1|2}}, {{sfrac|1|2}}, {{frac|4}}", "3 1/2, 1/2, 1/4"),
        ("5{{frac|1|2}} ({{frac|1|2}}) {{unité|5|{{e|3}} km}}", "5 1/2 (1/2) 5 ×10³ km"),
        ("{{nowrap|40 tons}}", "40 tons"),
        ("{{nowrap|1=''E'' = ''mc''<sup>2</sup>}}", "E = mc2"),
        ("{{nobr|{{lang|fr|[[pont|le pont]]}}}}", "le pont"),
        ("{{abbr|etc.|et cetera}}{{ndash}}{{mdash}}", "etc.–—"),
        ("{{nihongo|Samurai|侍|samurai}}", "Samurai (侍, samurai)"),
        ("{{nihongo||侍}}", "侍"),
        ("{{読み仮名|東京|とうきょう}}", "東京（とうきょう）"),
        ("{{仮リンク|ビル|en|Building}}{{仮リンク|label=家|x|en|y}}", "ビル家"),
        ("{{ill|Old Mill|de|Alte Mühle|lt=the mill}} {{ill|Tower|fr}}", "the mill Tower"),
        ("{{нп|Вежа|вежею|en|Tower}} {{Нп5|Міст}} {{iw|Tower}}", "вежею Міст Tower"),
        ("{{lien|langue=en|trad=Mill|fr=Moulin|texte=moulin}}", "moulin"),
        ("{{IPA|[ɬ]}} {{IPA-de|bɛʁˈliːn|lang}} {{МФА|a}}", "[ɬ] bɛʁˈliːn a"),
        ("{{IPAc-en|b|ɜːr|ˈ|l|ɪ|n|,_|ˈ|b}} {{respell|bur|LIN}}", "/bɜːrˈlɪn, ˈb/ bur-LIN"),
        ("{{transl|ja|Takagi}}", "Takagi"),
        (
            "{{unité|5|km|2}} {{unité|100|km}} {{date|31|janvier|2007}} {{heure|4|30}}",
            "5 km² 100 km 31 janvier 2007 4 h 30",
        ),
        ("{{s|XIX}} {{chem|H|2|O}}", "XIX H2O"),
        ("{{zh|c=中文|p=Zhōngwén}}", "中文, Zhōngwén"),
        ("{{color|red|warm}} {{tooltip|a|b}}", "warm a"),
        ("{{hlist|[[a]]|b}}", "a · b"),
        ("{{citation|Il faut.|auteur=X}}{{Citation|和書|title=T}}", "Il faut."),
        ("{{vol-lv|viduklis}} {{USS|Maine}} {{circa|1300}}", "viduklis USS Maine c. 1300"),
        ("{{ lang_\n| fr\n| un\n}}", "un"),
    ],
)
def test_templates_that_show_text(template, shown):
    assert plain_text(f"Say {template} now.") == f"Say {shown} now."


@pytest.mark.parametrize(
    "template",
    [
        "{{quote|We shall build it.|The mayor}}",
        "{{Quote|text=We shall build it.|author=The mayor}}",
        "{{Zitat|Text=We shall build it.|Autor=X}}",
        "{{цитата|We shall [[build]] it.}}",
        "{{cquote\n|quote = We shall build it.\n|author = X\n}}",
        "{{citation bloc|1=We shall build it.}}",
    ],
)
def test_quotations_stand_on_lines_of_their_own(template):
    assert plain_text(f"The mayor said:{template}Then he left.") == "The mayor said:\nWe shall build it.\nThen he left."


def test_a_sentence_of_templates():
    wikitext = (
        "'''{{PAGENAME}}''' ({{lang|la|Pons Longus}}) is {{convert|1300|m|ft}} long and was built from "
        "1510{{snd}}1533. The toll was 5{{nbsp}}pence. The word {{lang|de|Brücke}} is carved above the gate, and about "
        "{{formatnum:12500}} people cross it every day. It weighs {{nowrap|40 tons}}."
    )
    assert plain_text(wikitext, title="Long Bridge") == (
        "Long Bridge (Pons Longus) is 1300 m long and was built from 1510 – 1533. The toll was 5 pence. The word "
        "Brücke is carved above the gate, and about 12500 people cross it every day. It weighs 40 tons."
    )


@pytest.mark.parametrize("name", ["age|1900|1|1", "birth date|1900", "cite book|title=x", "in lang|de", "coord|1|2"])
def test_other_templates_show_nothing(name):
    assert plain_text(f"Say {{{{{name}}}}} now.") == "Say now."
