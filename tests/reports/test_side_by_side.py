"""Two texts in columns of a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from unibert.reports.side_by_side import columns, side_by_side, wrapped


@given(st.text(st.sampled_from("ab 字\u0301-"), max_size=60), st.integers(2, 20))
def test_wrapped_rows_hold_the_line_and_fit(line, width):
    rows = wrapped(line, width)
    assert "".join(rows).replace(" ", "") == line.replace(" ", "")
    assert all(columns(row) <= width for row in rows)


def test_lines_are_cut_at_spaces_and_wide_characters_take_two_columns():
    assert wrapped("one two three", 8) == ["one two", "three"]
    assert wrapped("漢字漢字", 5) == ["漢字", "漢字"]
    assert columns("e\u0301") == 1


def test_a_line_stands_beside_the_line_that_it_became():
    left = ["{{Infobox}}", "The '''mill''' stands by the [[river]].", "", "It was built of stone."]
    right = ["The mill stands by the river.", "A line of its own.", "It was built of stone."]
    rows = side_by_side(left, right, 83)
    assert [[cell.strip() for cell in row.split("│")] for row in rows] == [
        ["{{Infobox}}", ""],
        [left[1], right[0]],
        ["", ""],
        ["", right[1]],
        [left[3], right[2]],
    ]
    assert max(map(columns, rows)) <= 83
    assert {row.index("│") for row in rows} == {41}
