import pytest

from unibert.corpus.filters import DropReason, FilterConfig, drop_reason, letters_by_script
from unibert.corpus.normalization import normalize
from unibert.languages import language


def reason(text: str, code: str, config: FilterConfig) -> DropReason | None:
    return drop_reason(text, letters_by_script(text), language(code), config)


GERMAN = "Berlin ist die Hauptstadt und als Land eine parlamentarische Republik der Bundesrepublik Deutschland."


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        (GERMAN, "de", None),
        ("Zu kurz.", "de", "too_short"),
        ("柏林是德意志聯邦共和國首都，也是德国最大的城市。", "zh", None),  # 22 characters, as much as 60 letters
        ("柏林是首都。", "zh", "too_short"),
        ("กรุงเทพมหานครเป็นเมืองหลวงและนครที่มีประชากรมากที่สุดของประเทศไทย", "th", None),
        ("বার্বাডোস ক্যারিবীয় সাগরে ক্যারিবীয় দ্বীপপুঞ্জের একটি দ্বীপ রাষ্ট্র। ক্যারিবীয় সাগর", "bn", None),
        ("서울특별시는 대한민국의 수도이자 최대 도시이며 정치 경제의 중심지이다", "ko", None),
        ("ベルリンは、ドイツの首都。16ある連邦州のうちのひとつで都市州である。", "ja", None),
        (GERMAN, "ru", "foreign_script"),
        ("Википедия — свободная энциклопедия, которую может редактировать каждый. Wikipedia", "ru", None),
        ("Београд је главни и највећи град Србије. Beograd je glavni i najveći grad Srbije.", "sr", None),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 = " * 4 + "abcdefghij" * 6, "de", "few_letters"),
        ("\n".join([GERMAN, "Ein Satz.", GERMAN, GERMAN]), "de", "repeated_lines"),
        ("\n".join([GERMAN, GERMAN[::-1], "Ein Satz.", "Ein Satz."]), "de", None),
    ],
)
def test_reasons(text, code, expected):
    assert reason(text, code, FilterConfig()) == expected


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (FilterConfig(min_letters=1), "Zu kurz."),
        (FilterConfig(min_letter_share=0.0), "1 2 3 4 5 6 7 8 9 : " * 20 + "a" * 50),
        (FilterConfig(max_repeated_line_share=1.0), f"{GERMAN}\n{GERMAN}\n{GERMAN}"),
        (FilterConfig(min_script_share=0.0), "Википедия — свободная энциклопедия, которую может редактировать"),
    ],
)
def test_every_limit_can_be_lifted(config, text):
    assert reason(text, "de", FilterConfig()) is not None
    assert reason(text, "de", config) is None


def test_impossible_limits_name_the_key():
    with pytest.raises(ValueError, match=r"^min_letters: "):
        FilterConfig(min_letters=0)
    with pytest.raises(ValueError, match=r"^min_script_share: "):
        FilterConfig(min_script_share=1.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t b\u00a0\u3000c  ", "a b c"),
        ("a\r\n\r\n  b\u2028c\u0085d\x0be\n", "a\nb\nc\nd\ne"),
        ("e\u0301", "é"),
        ("a\u00ad\u200bb\ufeff\ue000\x00\u202e\u061c\ud800", "ab"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # the non-joiner is spelling
    ],
)
def test_normalization(text, expected):
    assert normalize(text) == expected
