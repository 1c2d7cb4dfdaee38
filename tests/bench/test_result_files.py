import json

import pytest

from unibert.bench.result_files import FORMAT, read_results, write_result_file
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


def test_a_single_file_is_written_into_a_new_folder(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_result_file({"rows": [1]}, path)
    assert json.loads(path.read_text()) == {"rows": [1]}


def test_a_single_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "results.json"
    with pytest.raises(UserError, match=f"^{path}: cannot be written: "):
        write_result_file({}, path)
