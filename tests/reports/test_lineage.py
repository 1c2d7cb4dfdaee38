"""Runs that branched off others make one line."""

import json
import shutil

from tests.reports.test_run_page import heldout_line, training_line
from unibert.reports.lineage import read_lineage
from unibert.reports.run_records import read_run


def write_run(folder, first, last, parent=None, loss=5.0):
    folder.mkdir()
    lines = [training_line(step, loss=loss) for step in range(first + 1, last + 1)]
    if parent is not None:
        branch = {"branch_of": {"run": parent.name}, "stream": "continues", "changed": {"seed": {"from": 0, "to": 1}}}
        lines.insert(0, {"step": first, "tokens": first * 4096, **branch, "reason": None})
        record = {"parent": str(parent), "step": first, "stream": {}}
        (folder / "parent.json").write_text(json.dumps(record))
    lines.append(heldout_line(last, loss))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_branch_follows_its_ancestors_up_to_its_beginning(tmp_path):
    root = tmp_path / "runs"
    root.mkdir()
    parent = write_run(root / "parent", 0, 30, loss=5.0)
    child = write_run(root / "child", 20, 40, parent, loss=4.0)
    grandchild = write_run(root / "grandchild", 25, 45, child, loss=3.0)
    early = write_run(root / "early", 10, 12, child, loss=2.0)
    run = read_run(grandchild)
    expected = {step: 5.0 if step <= 20 else 4.0 if step <= 25 else 3.0 for step in range(1, 46)}
    assert {record["step"]: record["loss"] for record in run.training} == expected
    assert [record["step"] for record in run.branches] == [20, 25]
    assert [record["step"] for record in run.heldout] == [45]
    # Before its own branch point the child is its parent.
    assert [segment.run_dir.name for segment in read_lineage(early).segments] == ["parent", "early"]

    # Moved together, runs find each other; alone, a branch says what is missing.
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    assert [record["step"] for record in read_run(moved / "grandchild").training] == list(expected)
    shutil.rmtree(moved / "parent")
    assert read_lineage(moved / "child").missing == parent
    assert [record["step"] for record in read_run(moved / "child").training] == list(range(21, 41))
