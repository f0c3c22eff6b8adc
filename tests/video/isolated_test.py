"""The decoder's process: the same frames as in this one, and whatever happens to it is told of one file."""

import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from sora_jax.video import io as video_io
from sora_jax.video import isolated
from sora_jax.video.io import UnreadableFile
from sora_jax.video.isolated import Decoder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("clips") / "clip.mp4"
  video_io.write(path, np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3)).astype(np.uint8), 8)
  return path


@pytest.fixture
def decoder():
  found = Decoder()
  yield found
  found.close()


def starts(monkeypatch, code: str) -> None:
  """The next processes run `code` in the place of a decoder."""
  command = [sys.executable, "-c", code]
  start = lambda memory: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  monkeypatch.setattr(isolated, "_start", start)


def test_the_same_probe_and_frames_as_in_this_process(decoder, clip):
  assert decoder.probe(clip) == video_io.probe(clip)
  for how in ({"fps": 8.0, "max_frames": 20}, {"fps": 3.0, "max_frames": 2, "start": 0.4, "size": (7, 5)}):
    np.testing.assert_array_equal(decoder.read(clip, **how), video_io.read(clip, **how))


def test_reasons_and_wrong_arguments_come_through(decoder, clip, tmp_path):
  (tmp_path / "empty.mp4").write_bytes(b"")
  with pytest.raises(UnreadableFile, match="^the file is empty$"):
    decoder.probe(tmp_path / "empty.mp4")
  with pytest.raises(ValueError, match="fps > 0") as caught:
    decoder.read(clip, fps=0.0, max_frames=1)
  assert not isinstance(caught.value, UnreadableFile)
  assert decoder.probe(clip).frames == 9


@pytest.mark.parametrize(
  ("code", "reason"),
  [
    ("import os; input(); os.abort()", "the decoder died (SIGABRT)"),
    ("import os, signal; input(); os.kill(os.getpid(), signal.SIGSEGV)", "the decoder died (SIGSEGV)"),
    ("input(); raise SystemExit(3)", "the decoder died (exit status 3)"),
    ("raise SystemExit(4)", "the decoder died (exit status 4)"),
    ("input(); print('{\"shape\": [9, 9, 9, 3]}', flush=True)", "the decoder died (exit status 0)"),
    ("import time; input(); time.sleep(60)", "decoding took more than 0.5 s"),
    ("import time; input(); print('{\"shape\": [9, 9, 9, 3]}', flush=True); time.sleep(60)", "decoding took more"),
  ],
)
def test_a_process_that_dies_or_hangs_costs_one_file(monkeypatch, decoder, clip, code, reason):
  with monkeypatch.context() as patched:
    starts(patched, code)
    decoder.seconds = 0.5 if "sleep" in code else 60.0
    with pytest.raises(UnreadableFile) as caught:
      decoder.read(clip, fps=8.0, max_frames=4)
  assert str(caught.value).startswith(reason)
  decoder.seconds = 60.0
  assert decoder.read(clip, fps=8.0, max_frames=4).shape == (4, 32, 48, 3)


def test_a_process_that_is_dead_before_it_is_asked_costs_one_file(monkeypatch, decoder, clip):
  def dead(memory):
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.read() == b""  # its end
    return process

  with monkeypatch.context() as patched:
    patched.setattr(isolated, "_start", dead)
    with pytest.raises(UnreadableFile, match=r"^the decoder died \(exit status 0\)$"):
      decoder.probe(clip)
  assert decoder.probe(clip).frames == 9


def test_a_machine_with_nothing_to_spare_is_asked_again(monkeypatch, decoder, clip):
  start, started = isolated._start, []

  def busy_at_first(memory):
    started.append(memory)
    if len(started) > 2:
      return start(memory)
    code = 'input(); print(\'{"unreadable": "[Errno 11] Resource temporarily unavailable"}\', flush=True)'
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

  monkeypatch.setattr(isolated, "_start", busy_at_first)
  assert decoder.read(clip, fps=8.0, max_frames=4).shape == (4, 32, 48, 3)
  assert len(started) == 3


def test_a_picture_that_needs_too_much_memory_is_refused(clip, tmp_path):
  Image.new("RGB", (8000, 4000), "red").save(tmp_path / "large.png")
  decoder = Decoder(memory=500 * 2**20)
  with pytest.raises(UnreadableFile, match="memory|died"):
    decoder.read(tmp_path / "large.png", fps=1.0, max_frames=1)
  assert decoder.read(clip, fps=8.0, max_frames=1).shape == (1, 32, 48, 3)
  decoder.close()


def frames_in_another_process(decoder: Decoder, path: pathlib.Path, found) -> None:
  found.put(decoder.read(path, fps=8.0, max_frames=9).shape)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_start_their_own(decoder, clip, method):
  decoder.probe(clip)
  context = multiprocessing.get_context(method)
  found = context.Queue()
  child = context.Process(target=frames_in_another_process, args=(decoder, clip, found))
  child.start()
  assert found.get(timeout=60) == (9, 32, 48, 3)
  child.join()
  assert decoder.probe(clip).frames == 9
  assert pickle.loads(pickle.dumps(decoder)).seconds == decoder.seconds


def test_a_process_is_replaced_after_many_files(monkeypatch, decoder, clip):
  monkeypatch.setattr(isolated, "FILES", 3)
  pids = []
  for _ in range(8):
    assert decoder.probe(clip).frames == 9
    pids.append(decoder._process.pid)
  assert [len(set(pids[k : k + 3])) for k in (0, 3, 6)] == [1, 1, 1] and len(set(pids)) == 3


def test_numbers_of_numpy_are_taken(decoder, clip):
  frames = decoder.read(clip, fps=np.float32(8), max_frames=np.int64(4), size=(np.int32(6), np.int64(7)))
  assert frames.shape == (4, 6, 7, 3)


def test_a_process_that_nobody_ends_ends_itself(clip):
  """The one that asked may die while a library loops."""
  code = (
    "import time; from sora_jax.video import io as video_io, isolated; isolated.GRACE = 0.0; "
    "video_io.probe = lambda path: time.sleep(600); isolated.main(2**33)"
  )
  request = json.dumps({"path": str(clip), "seconds": 0.3}).encode() + b"\n"
  done = subprocess.run([sys.executable, "-c", code], input=request, stdout=subprocess.PIPE, timeout=60)
  assert done.returncode == -signal.SIGALRM and not done.stdout


def test_it_ends_with_the_process_that_started_it(clip):
  code = (
    "import os, sys; from sora_jax.video.isolated import Decoder; d = Decoder(); d.probe(sys.argv[1]); "
    "print(d._process.pid, flush=True); os.kill(os.getpid(), 9)"
  )
  done = subprocess.run([sys.executable, "-c", code, str(clip)], stdout=subprocess.PIPE)
  assert done.returncode == -signal.SIGKILL
  deadline = time.monotonic() + 20
  while pathlib.Path(f"/proc/{int(done.stdout)}/status").exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not os.path.exists(f"/proc/{int(done.stdout)}/status")
