"""What runs on one host of a pod: install the code, start training so that it outlives the connection, report, stop.

    python3 launch/worker.py install EXTRAS | start -- WORDS | status | stop

Uploaded and called by tpu_pod.py. It runs by whatever Python the image has (3.8 or newer) before anything is
installed, so it imports the standard library only. Whether training runs is told by a file lock that its processes
hold: after a restart of the machine, a process number on disk may belong to another process. Each command but
`install` ends with one line of JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUN = ROOT / "build" / "run"
MARK = "sora_worker"  # the first key of the line of JSON: other lines come from the connection
GRACE = float(os.environ.get("SORA_STOP_SECONDS", "120"))  # between TERM and KILL
LOST = 137  # no exit status was left: the machine, or the kernel for lack of memory, ended it
TAIL = 20  # lines
LETTERS = 2000  # of the tail: a report that fits in one write is not torn by those of other workers
SUITABLE = "import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))"


def install(extras: str) -> int:
  os.chdir(ROOT)
  pinned = ["-c", "constraints.txt", "-e", f".[{extras}]"]
  python = next((name for name in ("python3.13", "python3.12", "python3.11") if suits(name)), None)
  if python:
    if not pathlib.Path(".venv/bin/python").exists():
      subprocess.run([python, "-m", "venv", ".venv"], check=True)
    pip = [".venv/bin/python", "-m", "pip", "--disable-pip-version-check"]
  else:
    # Images have an older Python, or one without venv; uv brings its own and needs no root.
    allowed = dict(os.environ, PIP_BREAK_SYSTEM_PACKAGES="1")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--user", "uv"], check=True, env=allowed)
    if not pathlib.Path(".venv/bin/python").exists():
      subprocess.run([sys.executable, "-m", "uv", "venv", "--quiet", "--python=3.12", ".venv"], check=True)
    os.environ["VIRTUAL_ENV"] = str(ROOT / ".venv")
    pip = [sys.executable, "-m", "uv", "pip"]
  subprocess.run([*pip, "install", "--quiet", *pinned], check=True)
  return 0


def suits(python: str) -> bool:
  return bool(shutil.which(python)) and not subprocess.run([python, "-c", SUITABLE], check=False).returncode


def locked() -> bool:
  """Whether a process of the last start is alive."""
  RUN.mkdir(parents=True, exist_ok=True)
  with open(RUN / "lock", "a") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look don't see each other
    except BlockingIOError:
      return True
  return False


def look() -> dict:
  """{"state": "none" | "running" | "ended", "code", "words", "tail"} and the host's name."""
  alive = locked()  # before the files are read: they are written while the lock is held
  try:
    words = json.loads((RUN / "run.json").read_text())["words"]
  except (OSError, ValueError):
    words = []
  code: int | None
  try:
    code = int((RUN / "code").read_text())
  except (OSError, ValueError):
    code = None if alive or not words else LOST
  state = "ended" if code is not None else "running" if alive else "none"
  return {MARK: socket.gethostname(), "state": state, "code": code, "words": words, "tail": tail()}


def tail() -> list[str]:
  try:
    with open(RUN / "log", "rb") as log:
      log.seek(max(0, os.path.getsize(RUN / "log") - 16384))
      text = log.read().decode("utf-8", "replace")[-LETTERS:]
  except OSError:
    return []
  return text.splitlines()[-TAIL:]


def start(words: list[str]) -> int:
  report = look()
  if report["state"] == "running":
    print(json.dumps(report))
    return 0 if report["words"] == words else 3
  end()  # what the last start may have left behind holds the TPU
  for name in ("code", "run.json"):
    if (RUN / name).exists():
      (RUN / name).unlink()
  with open(RUN / "log", "ab") as log:
    log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} start\n".encode())
    log.flush()
    holder = subprocess.Popen(
      [sys.executable, str(pathlib.Path(__file__).resolve()), "hold", "--", *words],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      start_new_session=True,
    )
  while holder.poll() is None and not (RUN / "run.json").exists():
    time.sleep(0.02)
  print(json.dumps(look()))
  return 0


def hold(words: list[str]) -> int:
  """Runs training, passes TERM on to it and leaves its exit status."""
  lock = take_lock()
  told: list[int] = []
  signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
  write("run.json", json.dumps({"words": words, "group": os.getpid()}))
  try:
    child = subprocess.Popen(words, cwd=ROOT, pass_fds=(lock,))
  except OSError as error:
    print(f"{words[0]}: {error.strerror}", file=sys.stderr)
    write("code", "127")
    return 127
  while child.poll() is None:
    if told:
      child.send_signal(told.pop())
    time.sleep(0.05)
  write("code", str(child.returncode if child.returncode >= 0 else 128 - child.returncode))
  return 0


def take_lock(patience: float = 5.0) -> int:
  lock = os.open(RUN / "lock", os.O_RDWR | os.O_CREAT, 0o644)
  limit = time.monotonic() + patience
  while True:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return lock
    except BlockingIOError:  # someone looks, for an instant; or another start was first
      if time.monotonic() > limit:
        raise
    time.sleep(0.01)


def write(name: str, text: str) -> None:
  part = RUN / f"{name}.part"
  part.write_text(text)
  part.replace(RUN / name)


def stop() -> int:
  by_itself = look()["state"] == "ended"
  end()
  print(json.dumps(dict(look(), by_itself=by_itself)))
  return 0


def end() -> None:
  """TERM, time to save, then KILL for all that is left."""
  if not locked():
    return
  group = json.loads((RUN / "run.json").read_text())["group"]
  if not (RUN / "code").exists():
    try:
      os.kill(group, signal.SIGTERM)
    except ProcessLookupError:  # the holder was killed, what it held lives on
      os.killpg(group, signal.SIGTERM)
  limit = time.monotonic() + GRACE
  while locked() and not (RUN / "code").exists() and time.monotonic() < limit:
    time.sleep(0.1)
  try:
    os.killpg(group, signal.SIGKILL)
  except ProcessLookupError:
    pass
  while locked() and time.monotonic() < limit + 30:
    time.sleep(0.02)


def main(argv: list[str]) -> int:
  if len(argv) == 2 and argv[0] == "install":
    return install(argv[1])
  if len(argv) > 2 and argv[0] in ("start", "hold") and argv[1] == "--":
    return {"start": start, "hold": hold}[argv[0]](argv[2:])
  if argv == ["status"]:
    print(json.dumps(look()))
    return 0
  if argv == ["stop"]:
    return stop()
  print(__doc__, file=sys.stderr)
  return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
