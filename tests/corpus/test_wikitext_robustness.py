"""Any input is read, in time proportional to its length: a quadratic search would run into the time limit of tests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unibert.corpus.wikitext import plain_text

_LONG = 1 << 18
_PIECES = [
    "{{", "}}", "{{{", "}}}", "{", "}", "[[", "]]", "[", "]", "|", "||", "=", "\n", "\n\n", "\n{|", "\n|}", "\n|-",
    "\n| ", "\n! ", "!!", "\n== ", " ==", "\n* ", "\n; ", ": ", "''", "'''", "''''", "<ref>", "</ref>",
    "<ref name=x/>", "<b>", "</b>", "<nowiki>", "</nowiki>", "<nowiki/>", "<!--", "-->", "<table>", "</table>",
    "<td>", "<br/>", "<math>", "</math>", "-{", "}-", "zh-hans:", ";", "A|", "H|", "File:", "fr:", "lang|de|",
    "convert|", "quote|", "1=", "ipac-en|", "zh|", "#if:", "formatnum:", "PAGENAME", "__TOC__", "__", "&amp;", "&#",
    "&#0;", "&nbsp;", "http://a.b/c", "[http://a ", "\x00", "\x01", "\x010\x01", "\x02", "(", ")", ",", ".", " ",
    "  ", "word", "two words", "東京", "\u0939\u093f", "\u2028", "\ud800",
]  # fmt: skip


@given(st.lists(st.sampled_from(_PIECES), max_size=60).map("".join) | st.text())
def test_any_input_is_read(wikitext):
    lines = plain_text(wikitext, title="T").split("\n")
    assert all(line == line.strip() and "\x02" not in line and "  " not in line for line in lines)
    assert lines == [""] or all(lines)


@given(st.lists(st.sampled_from(_PIECES), max_size=40).map("".join))
def test_prose_after_a_blank_line_is_kept_unless_something_before_is_closed_after_it(wikitext):
    """What is opened before and closed by nothing cannot hide it; only a comment can, up to the end of the page."""
    if "<!--" not in wikitext:
        assert plain_text(wikitext + "\n\nThe mill is old").endswith("The mill is old")


@pytest.mark.parametrize(
    "unit",
    [
        "{{", "}}", "{{{", "{", "[[", "]]", "[", "-{", "}-", "<b>", "</b>", "<b", "''", "'''a ", "<ref>", "<ref",
        "<ref name=a ", "<nowiki>", "</ref ", "<!--", "<!-- ", "\n{|", "\n|}", "\n|-\n| a", "<table>", "</table>",
        "\n| a || b", "\n|", "{{a|", "{{{a|", "{{lang|de|", "{{quote|", "{{convert|1|", "[[File:x|", "[[a|",
        "[[a:b]]", "[[a:b]] x ", "[http://a ", "http://a.", "-{zh-hans:a;", "-{A|", "\n= a", "\n; a:b", "__a", "__A",
        "_", "&#", "&a", " ", "\n", "\n\n", "({{x}},", "{{x}},", ", ", "{{x}} ", '"{{x}}', "}}{{", "]] [[",
        "[[a]]{{lang|", "{{a}}-{", "{|\n", "=a ''b", "<br a='", "a_",
    ],
)  # fmt: skip
def test_a_long_page_of_odd_markup_is_read(unit):
    plain_text(unit * (_LONG // len(unit)))


@pytest.mark.parametrize("unit", ["<ref>", "<ref ", "<nowiki>", "<!--", "{{x}},", "({{x}},", "[[a:b]] x ", "\n= a"])
def test_a_megabyte_is_searched_once(unit):
    plain_text(unit * ((1 << 20) // len(unit)))


@pytest.mark.parametrize(
    ("start", "end"),
    [("{{a|", "}}"), ("{{lang|de|", "}}"), ("<b>", "</b>"), ("[[File:x|", "]]"), ("[[x|", "]]"), ("{|\n|", "\n|}\n"),
     ("-{zh-hans:", "}-"), ("{{{a|", "}}}"), ("<table>", "</table>"), ("{{formatnum:", "}}")],
)  # fmt: skip
def test_deep_nesting(start, end):
    assert plain_text(f"One.\n{start * 20_000}two{end * 20_000}\nThree.").split("\n")[::2][:1] == ["One."]
    assert plain_text(f"One.\n{start * 20_000}two{end * 20_000}\nThree.").endswith("Three.")


def test_templates_that_show_text_are_nested_as_deep_as_mediawiki_allows():
    assert plain_text("{{nowrap|" * 40 + "deep" + "}}" * 40 + " end") == "deep end"
    assert plain_text("{{nowrap|" * 41 + "deep" + "}}" * 41 + " end") == "end"


def test_unbalanced_markup_at_the_end_of_a_long_page_is_read():
    text = "Ein ganz gewöhnlicher Satz mit [[Links]].\n" * 2000 + "{{ [[ <b> {|"
    assert plain_text(text).count("Ein ganz gewöhnlicher Satz mit Links.") == 2000
