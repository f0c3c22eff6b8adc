"""What the launchers share: checked values, quoted command lines, the training command, and when to run it again.

The standard library only: a launcher runs on a laptop or a login node that has no JAX. No command goes through a
shell: each is a list of words, and a line for a remote shell is made by shlex.join and nothing else.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = ROOT / "build" / "launch"  # scripts, manifests and archives that launchers write
REQUEUE = 75  # EX_TEMPFAIL: `sora train` was preempted, has saved, and asks to be run again
NO_ANSWER = 124  # as timeout(1) has it
LONGEST_PAUSE = 600.0  # seconds

KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# Characters that some program takes for the end of a line, and those that UTF-8 can't encode.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class LaunchError(Exception):
  """One line for the terminal, and the exit status."""

  def __init__(self, message: str, status: int = 1):
    super().__init__(message)
    self.status = status


# The command line.


class Parser(argparse.ArgumentParser):
  """Errors are one line, and a flag is never guessed from its beginning."""

  def __init__(self, **kwargs):
    super().__init__(allow_abbrev=False, **kwargs)

  def error(self, message: str) -> NoReturn:
    raise LaunchError(f"{message} (--help lists the flags)", 2)


def checked(pattern: str, what: str) -> Callable[[str], str]:
  """An argparse type: text that the whole of the pattern matches."""

  def check(text: str) -> str:
    if not re.fullmatch(pattern, text, re.ASCII):
      raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return text

  return check


NAME = checked(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "a name: at most 40 of a-z, 0-9 and -, beginning with a letter")


def plain(text: str) -> str:
  """Any text of one line: it is quoted wherever it goes."""
  if not text or CONTROL.search(text):
    raise argparse.ArgumentTypeError(f"{text!r} is empty or has control characters")
  return text


def count(text: str) -> int:
  if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
  return int(text)


def positive(text: str) -> int:
  if not count(text):
    raise argparse.ArgumentTypeError("0 is too few")
  return int(text)


def seconds(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value < float("inf"):
    raise argparse.ArgumentTypeError(f"{text!r} is not a time, 0 or more")
  return value


def _assignment(name: re.Pattern[str], what: str) -> Callable[[str], str]:
  def check(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals or not name.fullmatch(key) or CONTROL.search(value):
      raise argparse.ArgumentTypeError(f"{text!r} is not {what}, on one line")
    return text

  return check


setting = _assignment(KEY, "KEY=VALUE with a config's key, say train.steps=100")
variable = _assignment(VARIABLE, "NAME=VALUE of an environment variable")


def add_training(parser: argparse.ArgumentParser) -> None:
  """The flags that say what to train, the same in every launcher."""
  parser.add_argument("--config", required=True, type=plain, help="as in `sora train`, say configs/dit.py:variant=S")
  parser.add_argument("--workdir", required=True, type=plain, help="the folder of the run")
  parser.add_argument("--set", action="append", default=[], type=setting, metavar="KEY=VALUE", help="a config value")
  parser.add_argument("--env", action="append", default=[], type=variable, metavar="NAME=VALUE", help="for training")
  add_dry_run(parser)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--dry_run", action="store_true", help="print what would be run, and run nothing")


def add_restarts(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--max_restarts", type=count, default=3, help=f"after exit codes other than 0 and {REQUEUE}")
  parser.add_argument("--pause", type=seconds, default=10.0, help="seconds before the first of these; then it doubles")


def split_rest(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """The words before and after the first `--`."""
  words = list(argv)
  at = words.index("--") if "--" in words else len(words)
  return words[:at], words[at + 1 :]


def main(program: Callable[[list[str]], int]) -> NoReturn:
  """Runs a launcher: a LaunchError is one line on stderr and its status."""
  try:
    status = program(sys.argv[1:])
  except LaunchError as error:
    print(f"{pathlib.Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    status = error.status
  except KeyboardInterrupt:
    status = 130
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` had enough
    status = 1
  sys.exit(status)


# Words and lines.


def sora_path() -> str:
  """`sora` of the environment that runs the launcher, else the one on PATH."""
  beside = pathlib.Path(sys.executable).parent / "sora"
  return str(beside) if beside.exists() else "sora"


def training(args: argparse.Namespace, sora: str, env: Iterable[str] = ()) -> list[str]:
  """The words of `sora train`. Values follow a `=`, so none of them can be taken for a flag."""
  variables = [*env, *args.env]
  if variables and "=" in sora:
    raise LaunchError(f"{sora}: env(1) would read this path as a variable: use one without =", 2)
  words = [sora, "train", f"--config={args.config}", f"--workdir={args.workdir}"]
  words += [f"--config.{each}" for each in args.set] + ["--json"]
  return ["env", *variables, *words] if variables else words


def show(commands: Iterable[Sequence[str]]) -> None:
  """Prints commands, one a line, for a shell."""
  for words in commands:
    print(shlex.join(words))


def say(message: str) -> None:
  print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}", file=sys.stderr, flush=True)


# Processes.


class Result(NamedTuple):
  code: int
  out: str
  err: str

  @property
  def reason(self) -> str:
    """The line that says what went wrong: the last one marked as an error, else the last one."""
    lines = (self.err.strip() or self.out.strip()).splitlines()
    marked = [line for line in lines if line.lower().startswith("error")]
    return (marked or lines)[-1].strip() if lines else f"exit status {self.code}"


def capture(words: Sequence[str], limit: float) -> Result:
  """Runs a command to its end; after `limit` seconds it and all that it started are ended."""
  pipe = subprocess.PIPE
  try:
    child = subprocess.Popen(
      words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
    )
  except OSError as error:
    raise not_started(words, error) from None
  with child:
    try:
      out, err = child.communicate(timeout=limit)
    except BaseException as error:
      _end_group(child.pid)
      if not isinstance(error, subprocess.TimeoutExpired):
        raise
      return Result(NO_ANSWER, "", f"no answer within {limit:g} s")
  return Result(child.returncode, out, err)


def call(words: Sequence[str]) -> int:
  """Runs a command in the foreground, with this terminal."""
  try:
    return shell_status(subprocess.call(words))
  except OSError as error:
    raise not_started(words, error) from None


def started(words: Sequence[str]) -> subprocess.Popen:
  """A command in a process group of its own, so that Ctrl-C on the terminal reaches it once, through this launcher."""
  try:
    return subprocess.Popen(words, start_new_session=True)
  except OSError as error:
    raise not_started(words, error) from None


def heard(signals: Iterable[int]) -> list[int]:
  """Those that are not ignored, as nohup has one."""
  return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


def not_started(words: Sequence[str], error: OSError) -> LaunchError:
  return LaunchError(f"{words[0]} can't be run ({error.strerror}): install it, or put it on PATH", 127)


def shell_status(code: int) -> int:
  """A child's return code as a shell would give it."""
  return code if code >= 0 else 128 - code


def _end_group(group: int) -> None:
  try:
    os.killpg(group, signal.SIGKILL)
  except ProcessLookupError:
    pass


@dataclasses.dataclass
class Restarts:
  """When to run a command again that ended with a status other than 0."""

  most: int
  pause: float  # seconds
  failures: int = 0

  def after(self, code: int) -> float:
    """Seconds to wait before the next start.

    Raises:
      LaunchError: it failed too often.
    """
    if code == REQUEUE:
      return 0.0
    if code in (126, 127):
      raise LaunchError("training could not be started (the lines above say why)", code)
    self.failures += 1
    if self.failures > self.most:
      raise LaunchError(f"training ended with exit status {code}: given up after {self.most} restarts", code)
    return min(self.pause * 2 ** (self.failures - 1), LONGEST_PAUSE)


class Supervisor:
  """Runs a command again until it succeeds, fails too often, or a signal asks it to stop. Signals are passed on to it.

  `received` is the first signal that came, or None. Without `restarts` it is run once.
  """

  def __init__(
    self,
    words: Sequence[str],
    restarts: Restarts | None = None,
    signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
  ):
    self.words, self.restarts, self.signals = list(words), restarts, signals
    self.received: int | None = None
    self._pending: list[int] = []

  def pass_on(self, child: subprocess.Popen, number: int) -> None:
    child.send_signal(number)

  def ask_again(self, code: int) -> float | None:
    """Seconds until the next start, or None for no other."""
    return None if code == 0 or self.received or not self.restarts else self.restarts.after(code)

  def run(self) -> int:
    before = {number: signal.signal(number, self._note) for number in heard(self.signals)}
    try:
      while True:
        code = self._once()
        pause = self.ask_again(code)
        if pause is None:
          return code
        say(f"training ended with exit status {code}: starting it again" + (f" in {pause:g} s" if pause else ""))
        if not self._rest(pause):
          self.ask_again(code)
          return code
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _note(self, number: int, _: object) -> None:
    # The handler only records the signal: it may run in the middle of any statement.
    self.received = self.received or number
    self._pending.append(number)

  def _once(self) -> int:
    child = started(self.words)
    while child.poll() is None:
      while self._pending:
        self.pass_on(child, self._pending.pop(0))
      time.sleep(0.05)
    return shell_status(child.returncode)

  def _rest(self, pause: float) -> bool:
    """Sleeps; False if a signal came meanwhile."""
    end = time.monotonic() + pause
    while self.received is None and time.monotonic() < end:
      time.sleep(min(0.2, max(0.0, end - time.monotonic())))
    return self.received is None
