import json

import pytest

from unibert.bench.result_files import FORMAT, read_results
from unibert.errors import UserError


def test_rows_survive_writing_and_reading(tmp_path):
    rows = [{"loss": "mlm", "provider": "eager", "side": "peer"}]
    (tmp_path / "results.json").write_text(json.dumps({"format": FORMAT, "rows": rows}))
    assert read_results(tmp_path)["rows"] == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 1, "rows": []}, "has format 1, this version reads 2; run the benchmark again"),
        ({"format": FORMAT}, "is not a results file of 'unibert bench'"),
        ([], "is not a results file of 'unibert bench'"),
    ],
)
def test_other_files_are_rejected(content, message, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_results(tmp_path)
