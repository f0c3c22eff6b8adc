"""Rows of lists of captions: separators, names of columns, quotes that are not closed, and damaged lines."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_jax.data import tables


def table(content: str | bytes) -> tuple[list[tuple[int, str, str]], list[tuple[int, str]]]:
  """(line, file, caption) of what is read, (line, reason) of what is lost."""
  rows = list(tables.csv_rows(content.encode() if isinstance(content, str) else content))
  named = [(number, tables.by_name(row)) for number, row, reason in rows if not reason]
  return [(number, row["file"], row["caption"]) for number, row in named], [(n, r) for n, _, r in rows if r]


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
  "header", ["file,caption", "File,Caption", "FILE_NAME,Text", " path , prompt ", "video,caption,id"]
)
def test_separators_and_headers(separator: str, header: str):
  names = header.split(",")
  rows = [names, ["a.png", "A cat", *["7"] * (len(names) - 2)]]
  used, lost = table("\n".join(separator.join(row) for row in rows))
  assert used == [(2, "a.png", "A cat")] and not lost


def test_captions_may_hold_the_other_separators():
  assert table("file;caption\na.png;A cat, a dog\n")[0] == [(2, "a.png", "A cat, a dog")]
  assert table("file,caption\na.png,A cat; a dog\n")[0] == [(2, "a.png", "A cat; a dog")]


def test_the_plain_name_counts_where_a_table_has_two():
  row = {"path": "x", "File": "a.png", "text": "x", "caption": "A cat"}
  assert tables.by_name(row) == {"file": "a.png", "caption": "A cat"}
  assert tables.by_name({"FILE": "b", "file": "a"}) == {"file": "a"}


def numbered(count: int, row: str, at: int, quoted: bool) -> str:
  mark = '"' if quoted else ""
  rows = [f"{mark}{k:03}.png{mark},{mark}Picture {k}.{mark}" for k in range(count)]
  return "\n".join(["file,caption", *rows[:at], row, *rows[at + 1 :]]) + "\n"


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("at", [0, 20, 39])
@pytest.mark.parametrize("row", ['x.png,"A sign says stop.', '"x.png,A sign', 'x.png,"A sign, "stop"', '"x.png","A"b"'])
def test_a_quote_that_is_not_closed_costs_its_line(row: str, at: int, quoted: bool):
  used, lost = table(numbered(40, row, at, quoted))
  assert [line for line, _ in lost] == [at + 2] and "bad CSV" in lost[0][1]
  assert len(used) == 39 and all(caption == f"Picture {int(file[:3])}." for _, file, caption in used)


@pytest.mark.parametrize("later", ['030.png,5",x', '030.png,A 5"', '030.png,"A, b"', '"030.png",""""', '030.png,""'])
def test_nor_where_a_later_quote_closes_it(later: str):
  """Some of these would make one value of 10 rows, and a table in order."""
  rows = [f"{k:03}.png,Picture {k}." for k in range(40)]
  rows[20], rows[30] = '020.png,"A sign says stop.', later
  used, lost = table("\n".join(["file,caption", *rows]))
  assert lost[0][0] == 22 and len(used) >= 38
  assert len(used) + len(lost) == 40


def test_several_quotes_that_are_not_closed_cost_a_line_each():
  rows = [f"{k:03}.png,{chr(34) if k % 7 == 3 else ''}Picture {k}." for k in range(40)]
  used, lost = table("\n".join(["file,caption", *rows]))
  assert [line for line, _ in lost] == [k + 2 for k in range(40) if k % 7 == 3] and len(used) == 34


def test_values_of_several_lines_are_kept():
  used, lost = table('file,caption\na.png,"Two\nlines, ""so"" to say\n\nfour"\nb.png,B\n')
  assert used == [(2, "a.png", 'Two\nlines, "so" to say\n\nfour'), (6, "b.png", "B")] and not lost


def test_a_quote_that_is_open_for_long_is_not_closed():
  """However many lines open one, each reads so many of the next at most."""
  text = "\n".join(["word"] * (tables.SPANNED + 1))
  used, lost = table(f'file,caption\na.png,"{text}"\nb.png,B\n')
  assert lost[0][0] == 2 and "a quote that is not closed" in lost[0][1] and used[-1][1:] == ("b.png", "B")
  fits = text[: -len("\nword")]
  assert table(f'file,caption\na.png,"{fits}"\n') == ([(2, "a.png", fits)], [])


def test_a_header_that_fits_nothing_ends_it():
  assert table("words\tname\nx\ty\n")[1] == [
    (1, f'no "file" key in the header (words, name), which needs {tables.WANTED}')
  ]
  long = ",".join(f"column{k}" for k in range(99))
  assert len(table(f"{long}\n")[1][0][1]) < 300


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_encodings(encoding: str):
  """A spreadsheet's "Unicode text" is UTF-16 with tabs."""
  used, lost = table("file\tcaption\r\na.png\tBär\r\n".encode(encoding))
  assert used == [(2, "a.png", "Bär")] and not lost


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), max_size=9), st.binary(max_size=40))
def test_anything_is_rows_or_reasons(pairs: list, noise: bytes):
  for content in (b"file,caption\n" + noise, noise, json.dumps(pairs).encode() + noise):
    for rows in (tables.csv_rows(content), tables.json_rows(content)):
      assert all(isinstance(row, dict) and "\n" not in reason for _, row, reason in rows)


def lines(content: str | bytes) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
  """(line, file) of what is read, (line, reason) of what is lost."""
  rows = list(tables.json_rows(content.encode() if isinstance(content, str) else content))
  return [(n, tables.by_name(row)["file"]) for n, row, why in rows if not why], [(n, why) for n, _, why in rows if why]


ONE = '{"File": "a.png", "caption": "A"}'


@pytest.mark.parametrize(
  ("content", "used"),
  [
    (f"{ONE}\r\n\r\n{ONE}\r\n", [1, 3]),
    (f"\ufeff{ONE}\n{ONE}", [1, 2]),
    (f"{ONE}\r{ONE}\r{ONE}", [1, 2, 3]),
    (f"{ONE}{ONE}\n {ONE} {ONE}", [1, 1, 2, 2]),  # ends of lines were lost
    (f"{ONE}\n".encode("utf-16"), [1]),
  ],
)
def test_json_of_many_writers(content: str | bytes, used: list[int]):
  assert lines(content) == ([(number, "a.png") for number in used], [])


@pytest.mark.parametrize(
  ("bad", "reason"),
  [
    ('{"file": "a', "bad JSON"),
    ("\0" * 99, "bad JSON"),
    (ONE + '{"file"', "bad JSON"),
    ("[" * 10**6, "bad JSON"),
    ('{"file": "a.png", "caption": "' + "x" * 10**7, "bad JSON"),
    ("7", "not a JSON object"),
    (b"\xff\xff", "not UTF-8"),
  ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_a_bad_line_of_json_costs_itself_alone(bad: str | bytes, reason: str, end: bytes):
  bad = bad.encode() if isinstance(bad, str) else bad
  used, lost = lines(ONE.encode() + end + bad + end + ONE.encode())
  assert {1, 3} <= {number for number, _ in used} and [(n, why.partition(":")[0]) for n, why in lost] == [(2, reason)]


def test_names_for_a_message():
  assert tables.listed(["a", "b\nc", ""]) == 'a, b c, ""'
  assert tables.listed({}) == "nothing"
  assert tables.listed(["\x1b[2J"]) == "\\x1b[2J"  # which would clear a terminal
