import json

from unibert.bench.result_files import read_results


def test_files_of_version_0_1_0_are_read(tmp_path):
    rows = [{"loss": "mlm", "contestant": "eager", "side": "peer"}]
    (tmp_path / "results.json").write_text(json.dumps({"format": 1, "rows": rows}))
    assert read_results(tmp_path)["rows"] == [{"loss": "mlm", "provider": "eager", "side": "peer"}]
