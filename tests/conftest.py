"""What every test shares: JAX's settings, parsed flags and the folder of real clips."""

import fcntl
import hashlib
import os
import pathlib
import platform
import runpy
import signal

import pytest
from absl import flags

from sora_jax.runtime import preemption, process

# JAX reads these when it is first imported, which nothing above does; commands that tests start inherit them. A shape
# that only fits by silent broadcasting over ranks is an error here.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

ROOT = pathlib.Path(__file__).resolve().parents[1]


def compiled_folder() -> pathlib.Path:
  """Where tests keep compiled programs from run to run; another processor, which may lack instructions, has its own."""
  about = pathlib.Path("/proc/cpuinfo")
  lines = about.read_text().splitlines() if about.exists() else [platform.processor()]
  features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}) or lines
  return ROOT / ".pytest_cache" / f"xla-{hashlib.sha256(' '.join(features).encode()).hexdigest()[:16]}"


# Most of the time goes into compiling, and many tests compile the same small programs.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
process.keep_compiled(compiled_folder())
process.compile_sooner()
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # what is compiled runs a few times, and is small

# A shell ignores SIGINT for what it starts in the background, nohup SIGHUP, and programs that tests interrupt would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Grain's workers read absl flags, which outside `app.run` nobody has parsed.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def corpus() -> pathlib.Path:
  """Real video files: $SORA_CORPUS, or shared/corpus beside the checkout. Without them the test skips."""
  named = os.environ.get("SORA_CORPUS")
  folder = pathlib.Path(named) if named else ROOT.parent / "shared" / "corpus"
  if folder.is_dir():
    return folder
  if named:
    pytest.fail(f"SORA_CORPUS={named} is not a folder: correct it, or unset it to skip the tests on real clips")
  pytest.skip("no folder of real clips: set SORA_CORPUS to one to run this test")


def make_tiny_config():
  """configs/dit.py at the smallest size that still has images and videos of two sizes."""
  config = runpy.run_path(str(ROOT / "configs" / "dit.py"))["get_config"]("runlocal=1")
  config.data.update(clips=24, sizes=("16x16", "24x16"), frames=(1, 5), max_frames=5, max_tokens=24)
  config.autoencoder.update(channels=4, stages=(((2, 4, 4), 16, 1),), crop=(5, 16, 16), batch=4, steps=6)
  config.model.update(width=32, depth=1, heads=2, text_width=16, text_depth=1, text_heads=1)
  config.train.update(steps=6, rows=2, row_tokens=48, row_text=96, row_segments=4, warmup=2)
  config.train.update(checkpoint_every=3, log_every=2, keep=2)
  config.sample.steps = 3
  return config


@pytest.fixture
def tiny_config():
  """A config of its own for each test."""
  return make_tiny_config()


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> pathlib.Path:
  """The workdir of a tiny transformer, trained on the shapes world. A test that changes it copies it first."""
  from sora_jax.jobs.train import train

  base = tmp_path_factory.getbasetemp()
  shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base  # by all processes that run the tests
  workdir, done = shared / "trained", shared / "trained.done"
  with open(shared / "trained.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.exists():
      train(make_tiny_config(), workdir)
      done.touch()
  return workdir


@pytest.fixture(scope="session")
def generator(trained):
  """The generator of the `trained` workdir, compiled once for all tests."""
  from sora_jax.inference.generator import Generator

  return Generator.load(trained)


@pytest.fixture
def listening():
  """A Preemption that notes this process's signals until the test ends."""
  before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
  found = preemption.Preemption()
  found.listen()
  yield found
  for number, handler in before.items():
    signal.signal(number, handler)
