import bz2
import re
from xml.etree.ElementTree import iterparse

import pytest

from unibert.corpus.normalization import normalize
from unibert.corpus.wikitext import plain_text
from unibert.corpus.wikitext.visible_prose import kept_share

PARAGRAPHS = [
    f"The mill number {n} by the river was built of stone in the reign of the second duke and burnt down."
    for n in "abcd"
]
WIKITEXT = (
    "{{Infobox|name=[[A]]\n|text=words in a template that are many but are never counted as visible prose at all}}\n"
    "== The long heading of a page whose words are not counted as visible prose at all here ==\n"
    + PARAGRAPHS[0].replace("river", "[[river|river]]").replace("stone", "''stone''<ref>''x</ref>")
    + "\n\n{|\n| cell\nA cell with a paragraph of many words which is not counted as visible prose at all\n|}\n\n"
    + PARAGRAPHS[1].replace("duke", "{{lang|de|duke}}").replace("built", "{{lang|de|built}}")
    + "\n* an item of a list with many words is not counted as visible prose at all either\n[[File:x.jpg|thumb|"
    + PARAGRAPHS[0].replace("river", "[[river]]")
    + "]]<!-- "
    + PARAGRAPHS[0]
    + "-->"
)


def characters(text):
    return sum(map(str.isalnum, text))


def test_all_is_kept():
    visible, kept = kept_share(WIKITEXT, "\n".join(PARAGRAPHS))
    assert visible == kept
    # "… built of stone | in the …" and "… was | of stone … second | and burnt down.": no stretch has fewer words
    assert visible == sum(map(characters, PARAGRAPHS[:2])) - characters("duke built")


def test_a_paragraph_that_is_lost_is_lost_though_its_words_occur_elsewhere():
    visible, kept = kept_share("\n\n".join(PARAGRAPHS), PARAGRAPHS[0])
    words = " ".join(PARAGRAPHS[1:])
    changed = characters("mill number b by mill number c by mill number d by")
    assert visible == characters("".join(PARAGRAPHS))
    assert kept < visible
    assert kept_share("\n\n".join(PARAGRAPHS), "") == (visible, 0)
    shuffled = " ".join(sorted(words.split()))
    assert kept_share("\n\n".join(PARAGRAPHS), shuffled)[1] < changed


def test_a_part_that_is_lost():
    text = PARAGRAPHS[0]
    visible, kept = kept_share(text, text.replace(" built of stone in the reign", ""))
    assert visible - kept == characters("built of stone in the reign")


def test_text_that_has_other_spaces_and_order_of_lines_is_kept():
    visible, kept = kept_share("\n\n".join(PARAGRAPHS), normalize("\n".join(reversed(PARAGRAPHS))).replace(" ", "  "))
    assert visible == kept


def test_languages_without_spaces_between_words():
    chinese = "磨坊在河边用石头建成第二任公爵在位时曾两次烧毁后来由面包师重建"
    assert kept_share(chinese, chinese) == (len(chinese), len(chinese))
    assert kept_share(f"{chinese}\n\n{chinese[::-1]}", chinese)[1] < len(chinese) + 4
    # A word of other letters and digits ends where a character of such a language begins.
    japanese = "6月には56隻のAIを使った試験{}を行うなど研究が進む"
    visible, kept = kept_share(japanese.format("<ref>x</ref>"), japanese.format(""))
    assert visible == kept == len(japanese) - len("{}")


@pytest.mark.parametrize(
    "unclosed", ["{{x", "[[File:x|", "<!-- ", "<ref>", "<table>", "\n{|\n| a\n\n", "<nowiki><!--</nowiki>"]
)
def test_what_is_not_closed_makes_nothing_invisible(unclosed):
    assert kept_share(f"{unclosed}\n{PARAGRAPHS[0]}", PARAGRAPHS[0])[0] >= characters(PARAGRAPHS[0])


@pytest.mark.parametrize(
    "unit", ["{{", "[[", "[[a|", "<!--", "<ref>", "<ref/", "\n{|", "}}", "{{[[", "<", "//", "a ", "<table>"]
)
def test_takes_time_proportional_to_the_length(unit):
    page = unit * ((1 << 18) // len(unit))
    kept_share(page, page)
    kept_share(page + "word " * 10_000 + "]]" * 10_000, "")


def real_pages(path):
    """Yield the wikitext of articles of a dump."""
    namespace, text = "0", ""
    with bz2.open(path) as stream:
        for _, element in iterparse(stream):
            match element.tag.rpartition("}")[2]:
                case "ns":
                    namespace = element.text
                case "text":
                    text = element.text or ""
                case "page":
                    if namespace == "0":
                        yield text
                    element.clear()


@pytest.mark.parametrize(
    "name", ["enwiki-pages", "viwiki", "elwiki", "bnwiki", "ukwiki", "jawiki", "bgwiki", "ltgwiki"]
)
def test_visible_prose_of_real_pages_is_kept(shared_data, name):
    """A cleaner that lost a third of one page of the English dump, and a fifth of a Vietnamese one, fails here."""
    (path,) = (shared_data / "wikidump").glob(f"{name}*.bz2")
    pages = 0
    for page in real_pages(path):
        visible, kept = kept_share(page, plain_text(page))
        assert kept >= 0.95 * visible or visible < 2000
        pages += 1
    assert pages > 0


def test_little_markup_is_left_of_real_pages(shared_data):
    characters = leftovers = 0
    for path in sorted((shared_data / "wikidump" / "minidumps").glob("[a-h]*.bz2")):
        for page in real_pages(path):
            text = plain_text(page)
            characters += len(text)
            leftovers += len(
                re.findall(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|''|</?[a-z]+\b[^<>]*>|&[a-z]+;|https?://", text)
            )
            assert not re.search(r"  |[\x00-\x08]|^\s|\s$", text, re.MULTILINE)
    assert leftovers < characters / 50_000
