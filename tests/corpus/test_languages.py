import csv

import pytest

from unibert.errors import UserError
from unibert.languages import LANGUAGES, language


def test_the_107_languages_are_those_of_mbert_and_four_more():
    codes = {code for code, entry in LANGUAGES.items() if entry.in_107}
    assert len(codes) == 107
    assert {"eo", "am", "si", "km"} <= codes
    assert not {"ha", "ckb", "ltg", "simple"} & codes


def test_unknown_code_names_the_nearest():
    assert language("ja").scripts == {"Han", "Hiragana", "Katakana"}
    with pytest.raises(UserError, match=r"'englsh' is unknown; did you mean 'en' \(English\)"):
        language("englsh")


def test_agrees_with_the_real_data(shared_data):
    with (shared_data / "languages.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        entry = language(row["code"])
        assert (row["in_mbert104"] == "yes") == (entry.in_107 and entry.code not in ("eo", "am", "si", "km")), entry
        assert set(row["script"].split("+")) <= entry.scripts, entry
    for dump in (shared_data / "wikidump").rglob("*.bz2"):
        language(dump.name.split("wiki")[0])
