"""Lists of captions -> rows: lines of JSON, or a table of CSV whose values are set apart by commas, semicolons or tabs.

A line that can't be read costs itself alone. Where a quote is opened and never closed, the lines that it would swallow
are read as if it were not there, so what is lost is counted line by line.
"""

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from sora_jax.data.files import printable
from sora_jax.video.containers import EXTENSIONS

# (line, from 1; what it says, by the names below; why it can't be read, or nothing)
Row = tuple[int, dict, str]
# What a column or key may be called, in any case; the first of them that is there counts.
NAMES = {
  "file": ("file", "file_name", "filename", "file name", "path", "file_path", "filepath", "video", "image", "clip"),
  "caption": ("caption", "captions", "text", "description", "prompt"),
  "short": ("short", "short_caption", "short caption"),
  "long": ("long", "long_caption", "long caption"),
}
WANTED = "file and caption, or file, short and long"
SEPARATORS = ",;\t|"
LISTED = 8  # names that a message repeats
SPANNED = 200  # most lines of a row of a table: a quote that is open for longer is not closed


def by_name(row: Mapping) -> dict:
  """The row with the names that readers of it know; others are left out."""
  given = {key.strip().lower(): key for key in reversed(list(row)) if isinstance(key, str)}
  found = {}
  for name, others in NAMES.items():
    if key := next((each for each in others if each in given), None):
      found[name] = row[name] if name in row else row[given[key]]
  return found


def listed(names: Iterator[str] | Mapping | list[str]) -> str:
  """Names for a message of one line."""
  shown = [printable(" ".join(str(name).split())[:40]) or '""' for name in names]
  return ", ".join(shown[:LISTED]) + (", ..." if len(shown) > LISTED else "") if shown else "nothing"


def json_rows(content: bytes) -> Iterator[Row]:
  for number, line in enumerate(re.split(rb"\r\n|\n|\r", _in_utf8(content)), 1):
    if not line.strip():
      continue
    try:
      for row in _objects(line.decode("utf-8")):
        if isinstance(row, dict):
          yield number, row, ""
        else:
          yield number, {}, "not a JSON object"
    except UnicodeDecodeError:
      yield number, {}, "not UTF-8"
    except (ValueError, RecursionError) as error:
      detail = error.msg if isinstance(error, json.JSONDecodeError) else "nested or long beyond reason"
      yield number, {}, f"bad JSON: {detail}"


def _objects(line: str) -> Iterator[object]:
  """The values of a line: one, or several where an end of line was lost."""
  decoder, space, at = json.JSONDecoder(), re.compile(r"\s*"), 0
  line = line.strip()
  while at < len(line):
    value, at = decoder.raw_decode(line, at)
    yield value
    at = space.match(line, at).end()  # type: ignore[union-attr]  # it always fits


def _in_utf8(content: bytes) -> bytes:
  """Without a byte order mark; from UTF-16 where the mark says so."""
  if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    return content.decode("utf-16", "replace").encode("utf-8", "replace")
  return content.removeprefix(codecs.BOM_UTF8)


def csv_rows(content: bytes) -> Iterator[Row]:
  """Rows of a table; the number is that of a row's first line."""
  text = io.TextIOWrapper(io.BytesIO(_in_utf8(content)), encoding="utf-8", errors="surrogateescape", newline="")
  lines = list(text)
  at = next((at for at, line in enumerate(lines) if line.strip("\r\n")), None)
  if at is None:
    return
  separator, header = _header(lines[at])
  names = by_name(dict.fromkeys(header))
  if not {"file"} < set(names):
    lacks = "caption missing" if "file" in names else 'no "file" key'
    yield at + 1, {}, f"{lacks} in the header ({listed(header)}), which needs {WANTED}"
    return
  at += 1
  while at < len(lines):
    number, (row, used, reason) = at + 1, _record(lines, at, separator, header)
    at += used
    if reason or row:
      yield number, dict(zip(header, row, strict=False)), reason


def _header(line: str) -> tuple[str, list[str]]:
  """(the separator, the names of the columns): whichever separator gives the names that are needed, else most names."""
  headers = {}
  for separator in SEPARATORS:
    row = next(csv.reader([line], delimiter=separator))
    headers[separator] = [name.strip() for name in row]
  fits = [separator for separator in SEPARATORS if {"file"} < set(by_name(dict.fromkeys(headers[separator])))]
  best = fits[0] if fits else max(SEPARATORS, key=lambda separator: len(headers[separator]))
  return best, headers[best]


def _record(lines: list[str], at: int, separator: str, header: list[str]) -> tuple[list[str], int, str]:
  """(values, lines that they take, why they can't be used) of the row that begins at a line."""
  table = csv.reader(itertools.islice(lines, at, at + SPANNED), delimiter=separator, strict=True)
  try:
    row = next(table)
  except csv.Error as error:
    return (
      _alone(lines[at], separator, header),
      1,
      f"bad CSV: {error}{', in a quote that is not closed' if table.line_num > 1 else ''}",
    )
  used = table.line_num
  if any(_is_row(line, separator, header) for line in lines[at + 1 : at + used]):
    return _alone(lines[at], separator, header), 1, "bad CSV: a quote that is not closed on its line, before other rows"
  if any("\udc80" <= character <= "\udcff" for value in row for character in value):
    return [], used, "not UTF-8"
  if row and len(row) != len(header):
    return row, used, f"bad CSV: {len(row)} values for {len(header)} columns"
  return row, used, ""


def _alone(line: str, separator: str, header: list[str]) -> list[str]:
  """The values of a line, read as if its last quote were closed; none where they aren't as many as the columns."""
  try:
    row = next(csv.reader([line], delimiter=separator))
  except csv.Error:
    return []
  return row if len(row) == len(header) else []


def _is_row(line: str, separator: str, header: list[str]) -> bool:
  """Whether a line within a quoted value is a row of its own: as many values, the file among them."""
  file = by_name(dict(zip(header, _alone(line, separator, header), strict=False))).get("file", "")
  return PurePosixPath(file.strip()).suffix.lower() in EXTENSIONS
