import csv
import unicodedata

import pytest

from unibert.errors import UserError
from unibert.languages import LANGUAGES, language, language_code


def test_the_107_languages_are_those_of_mbert_and_four_more():
    codes = {code for code, entry in LANGUAGES.items() if entry.in_107}
    assert len(codes) == 107
    assert {"eo", "am", "si", "km"} <= codes
    assert not {"ha", "ckb", "ltg", "simple"} & codes


def test_codes_that_users_give():
    assert language("ja").scripts == {"Han", "Hiragana", "Katakana"}
    assert [language_code(given) for given in ("en", "XH", "be_x_old", "zh-yue", "nb", "gsw", "xq")] == [
        "en",
        "xh",
        "be-tarask",
        "yue",
        "no",
        "als",
        "xq",
    ]
    for given in ("englsh", "english", "", "e", "../en", "en/", "all", "tokenizer"):
        with pytest.raises(UserError, match="is no language code"):
            language_code(given)
    with pytest.raises(UserError, match=r"'englsh'.*did you mean 'en' \(English\)"):
        language_code("englsh")


def test_a_language_of_which_nothing_is_known():
    entry = language("xq")
    assert (entry.code, entry.name, entry.scripts, entry.family) == ("xq", "xq", set(), "unknown")
    assert language("zh-yue") == language("yue")


def test_scripts_are_the_first_words_of_character_names():
    words = {unicodedata.name(chr(code), "?").split()[0].capitalize() for code in range(0x20000)} | {"Han"}
    assert {script for entry in LANGUAGES.values() for script in entry.scripts} <= words


def test_agrees_with_the_real_data(shared_data):
    with (shared_data / "languages.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        entry = language(row["code"])
        assert (row["in_mbert104"] == "yes") == (entry.in_107 and entry.code not in ("eo", "am", "si", "km")), entry
        assert set(row["script"].split("+")) <= entry.scripts, entry
    for dump in (shared_data / "wikidump").rglob("*.bz2"):
        assert dump.name.split("wiki")[0] in LANGUAGES
