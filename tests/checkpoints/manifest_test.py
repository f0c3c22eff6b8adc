"""Manifests: each kind of damage is found and named, here and in a bucket, and nothing else is."""

import json
import os
import pathlib

import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from sora_jax.checkpoints import manifest
from sora_jax.checkpoints.manifest import CheckpointError

FILES = {
  "_METADATA": b"{}",
  "meta/metadata": b'{"task": "dit"}',
  "ema/d/0": bytes(range(256)) * 40,
  "ema/manifest": b"m" * 100,
  "params/d/0": b"p" * 5000,
}


class Bucket(MemoryFileSystem):
  """What epath takes for a bucket's client."""

  protocol = ("gcs", "gs", "memory")
  store, pseudo_dirs = {}, [""]

  @classmethod
  def _strip_protocol(cls, path: str) -> str:
    return super()._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path, monkeypatch) -> epath.Path:
  """A folder here and an address, both to be dealt with alike."""
  if request.param == "disk":
    return epath.Path(tmp_path / "run")
  bucket = Bucket()
  bucket.store.clear()
  bucket.pseudo_dirs[:] = [""]
  monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: bucket)
  monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)  # it would be asked instead
  return epath.Path("gs://b/run")


def put(path: epath.Path, content: bytes) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)


def make_step(workdir: epath.Path, step: int, files: dict[str, bytes] = FILES) -> epath.Path:
  """The folder of the steps, with a committed one and its manifest."""
  folder = manifest.root(workdir)
  for name, content in files.items():
    put(folder / str(step) / name, content)
  put(folder / str(step) / "commit_success.txt", b"committed")
  manifest.write(folder, step)
  return folder


def names(folder: epath.Path) -> list[str]:
  return sorted(path.name for path in folder.iterdir())


def test_the_root_of_an_address_is_an_address():
  assert os.fspath(manifest.root("gs://bucket/run")) == "gs://bucket/run/checkpoints"
  assert os.fspath(manifest.root(epath.Path("gs://bucket/run"))) == "gs://bucket/run/checkpoints"


def test_the_root_of_a_relative_folder_is_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert pathlib.Path(manifest.root("run")) == tmp_path / "run" / "checkpoints"


def test_what_was_written_has_no_faults(workdir):
  folder = make_step(workdir, 8)
  assert manifest.faults(folder, 8) == []
  assert names(folder) == ["8", "8.manifest.json"]
  saved = json.loads((folder / "8.manifest.json").read_text())
  assert {name: entry["bytes"] for name, entry in saved["files"].items()} == {
    **{name: len(content) for name, content in FILES.items()},
    "commit_success.txt": 9,
  }


DAMAGE = {
  "truncated": (lambda old: old[:-1], "ema/d/0 is 10239 bytes long, not 10240"),
  "longer": (lambda old: old + b"x", "ema/d/0 is 10241 bytes long, not 10240"),
  "empty": (lambda old: b"", "ema/d/0 is 0 bytes long, not 10240"),
  "zeroed": (lambda old: b"\0" * len(old), "ema/d/0 is not what was written: its sha256 differs"),
  "one bit": (lambda old: old[:-1] + bytes([old[-1] ^ 1]), "ema/d/0 is not what was written: its sha256 differs"),
  "missing": (None, "ema/d/0 is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(workdir, kind):
  """F03."""
  change, message = DAMAGE[kind]
  folder = make_step(workdir, 8)
  path = folder / "8" / "ema" / "d" / "0"
  if change is None:
    path.unlink()
  else:
    path.write_bytes(change(path.read_bytes()))
  assert manifest.faults(folder, 8) == [f"8/{message}"]
  assert manifest.faults(folder, 8, ("params", "meta")) == []
  assert manifest.faults(folder, 8, ("ema",)) == [f"8/{message}"]
  by_size = [] if kind in ("zeroed", "one bit") else [f"8/{message}"]
  assert manifest.faults(folder, 8, contents=False) == by_size
  found = manifest.verify(workdir)
  assert found == {"checked": [8], "unchecked": [], "faults": [f"8/{message}"]}


def test_files_beside_the_items_belong_to_every_part(workdir):
  folder = make_step(workdir, 8)
  (folder / "8" / "_METADATA").write_bytes(b"{")
  assert manifest.faults(folder, 8, ("ema",)) == ["8/_METADATA is 1 bytes long, not 2"]


def test_a_file_whose_place_a_folder_took_is_named(tmp_path):
  folder = make_step(epath.Path(tmp_path), 8)
  path = folder / "8" / "ema" / "d" / "0"
  path.unlink()
  path.mkdir()
  [fault] = manifest.faults(folder, 8)
  assert fault.startswith("8/ema/d/0 is ")


def test_a_file_that_came_later_is_no_fault(workdir):
  folder = make_step(workdir, 8)
  put(folder / "8" / "ema" / ".nfs01", b"x")
  assert manifest.faults(folder, 8) == []


def test_without_a_manifest_nothing_is_known(workdir):
  folder = make_step(workdir, 8)
  (folder / "8.manifest.json").unlink()
  assert manifest.faults(folder, 8) is None
  assert manifest.verify(workdir) == {"checked": [], "unchecked": [8], "faults": []}
  assert manifest.listing(workdir)["checkpoints"][0]["state"] == "unknown"


GOOD = {"bytes": 1, "sha256": "0"}
MANIFESTS = {
  "zeros": (b"\0" * 64, "holds no JSON"),
  "no text": (b"\xff\xfe", "holds no JSON"),
  "too deep": (b"[" * 100_000, "holds no JSON"),
  "a list": (b"[]", "lists no files"),
  "no files": (b'{"format": 1}', "lists no files"),
  "a newer format": (b'{"format": 2, "saved_at": "", "files": {}}', "is of format 2, and this version reads 1"),
  "no sum": (b'{"format": 1, "saved_at": "", "files": {"a": {"bytes": 1}}}', "says nothing of 'a'"),
  "above": (json.dumps({"format": 1, "saved_at": "", "files": {"../x": GOOD}}).encode(), "'../x' is not inside"),
  "absolute": (json.dumps({"format": 1, "saved_at": "", "files": {"/dev/zero": GOOD}}).encode(), "is not inside"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_is_none_is_a_fault_of_its_own(tmp_path, kind):
  content, message = MANIFESTS[kind]
  folder = make_step(epath.Path(tmp_path), 8)
  (folder / "8.manifest.json").write_bytes(content)
  [fault] = manifest.faults(folder, 8)
  assert fault.startswith("8.manifest.json ") and message in fault
  assert manifest.listing(tmp_path)["checkpoints"][0]["state"] == "damaged"


def test_a_manifest_that_was_cut_short_while_written_is_none(tmp_path):
  folder = make_step(epath.Path(tmp_path), 8)
  (folder / "8.manifest.json").rename(folder / "8.manifest.json.0.part")
  assert manifest.faults(folder, 8) is None
  manifest.write(folder, 8)
  assert manifest.faults(folder, 8) == []


def test_manifests_of_deleted_steps_go_with_the_next_one(workdir):
  folder = make_step(workdir, 8)
  make_step(workdir, 9)
  manifest.set_aside(folder, 8)
  put(folder / "7.manifest.json", b"{}")
  make_step(workdir, 10)
  assert names(folder) == sorted(
    ["8.damaged", "8.damaged.manifest.json", "9", "9.manifest.json", "10", "10.manifest.json"]
  )


def test_a_forgotten_manifest_is_gone_and_may_be_forgotten_again(workdir):
  folder = make_step(workdir, 8)
  manifest.forget(folder, 8)
  manifest.forget(folder, 8)
  assert names(folder) == ["8"]


def test_steps_are_set_aside_whole_under_names_of_their_own(workdir):
  folder = make_step(workdir, 8)
  assert manifest.set_aside(folder, 8) == "8.damaged"
  make_step(workdir, 8, {"ema/d/0": b"second"})
  (folder / "8.manifest.json").unlink()
  assert manifest.set_aside(folder, 8) == "8.damaged.2"
  assert names(folder) == ["8.damaged", "8.damaged.2", "8.damaged.manifest.json"]
  assert (folder / "8.damaged" / "ema" / "d" / "0").read_bytes() == FILES["ema/d/0"]
  assert (folder / "8.damaged.2" / "ema" / "d" / "0").read_bytes() == b"second"
  assert manifest.committed(folder) == []
  assert manifest.listing(workdir) == {"steps": [], "checkpoints": [], "not_used": ["8.damaged", "8.damaged.2"]}


def test_steps_are_in_order_of_their_number(workdir):
  for step in (100, 9, 10):
    folder = make_step(workdir, step)
  put(folder / "notes" / "commit_success.txt", b"")
  put(folder / "007" / "commit_success.txt", b"")
  put(folder / "11.orbax-checkpoint-tmp" / "ema" / "0", b"")
  put(folder / "12", b"a file")
  assert manifest.committed(folder) == [9, 10, 100]
  assert [row["step"] for row in manifest.listing(workdir)["checkpoints"]] == [9, 10, 100]
  assert manifest.listing(workdir)["not_used"] == ["007", "11.orbax-checkpoint-tmp", "notes"]


@pytest.mark.parametrize("workdir", ["bucket"], indirect=True)
def test_a_step_in_a_bucket_without_its_commit_marker_is_none(workdir):
  """F04: as a copy from a bucket may lack it."""
  folder = make_step(workdir, 8)
  (folder / "8" / "commit_success.txt").unlink()
  assert manifest.committed(folder) == []
  assert (folder / "8" / "ema" / "d" / "0").exists()


def test_a_step_is_pinned_until_it_is_not(workdir):
  folder = make_step(workdir, 8)
  assert manifest.pin(workdir, 8, True) == {"step": 8, "pinned": True}
  assert manifest.is_pinned(folder, 8)
  assert manifest.listing(workdir)["checkpoints"][0]["pinned"]
  manifest.pin(workdir, 8, True)
  assert manifest.pin(workdir, 8, False) == {"step": 8, "pinned": False}
  manifest.pin(workdir, 8, False)
  assert not manifest.is_pinned(folder, 8)


def test_a_step_that_goes_while_it_is_pinned_is_an_error_and_leaves_no_pin(workdir, monkeypatch):
  folder = make_step(workdir, 8)
  looks = iter([[8], []])
  monkeypatch.setattr(manifest, "committed", lambda _: next(looks))
  with pytest.raises(CheckpointError, match=r"no step 8 under .*: it holds \[\]"):
    manifest.pin(workdir, 8, True)
  assert not manifest.is_pinned(folder, 8)


def test_a_list_tells_bytes_and_time(workdir):
  make_step(workdir, 8)
  [row] = manifest.listing(workdir)["checkpoints"]
  assert row["bytes"] == sum(map(len, FILES.values())) + len(b"committed")
  assert row["saved_at"].endswith("+00:00") and row["state"] == "complete"


def test_verify_takes_one_step_or_all(workdir):
  for step in (8, 9):
    folder = make_step(workdir, step)
  (folder / "9" / "meta" / "metadata").write_bytes(b"")
  assert manifest.verify(workdir, 8)["faults"] == []
  assert manifest.verify(workdir) == {
    "checked": [8, 9],
    "unchecked": [],
    "faults": ["9/meta/metadata is 0 bytes long, not 15"],
  }


def test_what_is_not_there_is_an_error(workdir):
  for call in (manifest.listing, manifest.verify, lambda place: manifest.pin(place, 8, True)):
    with pytest.raises(CheckpointError, match=f"no checkpoints under {workdir}"):
      call(workdir)
  make_step(workdir, 8)
  for call in (lambda: manifest.verify(workdir, 7), lambda: manifest.pin(workdir, 7, True)):
    with pytest.raises(CheckpointError, match=r"no step 7 under .*: it holds \[8\]"):
      call()
