"""Runs of several hosts: they train what one trains, and when one of them dies, sleeps, is late or differs, all end and
say which and where."""

import json
import pathlib
import re
import signal
import time

import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint, manifest
from sora_jax.data.latents import LatentStore
from sora_jax.jobs.train import train
from sora_jax.train.metrics import read_metrics
from tests import several
from tests.faults.commands import Runs, logged, summary, wait_for

LIMIT = 20  # seconds that a host may be late: a busy machine is not


def losses(workdir: pathlib.Path) -> list[list[float]]:
  """[step, loss] of all lines of both models."""
  paths = [workdir / "autoencoder" / "logs" / "metrics.jsonl", workdir / "logs" / "metrics.jsonl"]
  lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
  return [[line["step"], line["loss"]] for line in lines]


def assert_same_run(found: pathlib.Path, wanted: pathlib.Path) -> None:
  np.testing.assert_allclose(losses(found), losses(wanted), rtol=1e-5)
  for name in ("tokenizer.model", "config.json", "latents/quarantine.jsonl"):
    assert (found / name).read_bytes() == (wanted / name).read_bytes()
  stores = [LatentStore(each / "latents") for each in (found, wanted)]
  assert stores[0].fingerprint == stores[1].fingerprint
  for number in range(len(stores[1])):
    np.testing.assert_allclose(stores[0][number].latent_thwC, stores[1][number].latent_thwC, atol=1e-4)
  positions = [checkpoint.digest(each)["data"] for each in (found, wanted)]
  assert positions[0] == positions[1]


@pytest.mark.slow
def test_two_hosts_train_an_autoencoder_as_one_does(tiny_config, tmp_path):
  tiny_config.task = "autoencoder"
  tiny_config.train.update(steps=3, checkpoint_every=2, log_every=1)
  tiny_config.autoencoder.update(stages=(((2, 4, 4), 4, 1),), crop=(3, 8, 8), batch=2)
  runs = Runs(tmp_path, tiny_config.to_dict())
  first, second = map(summary, runs.ended(*[runs.words("two")] * 2, JAX_DISABLE_MOST_OPTIMIZATIONS="1"))
  one = train(tiny_config, tmp_path / "one")
  for name in ("step", "steps_run", "loss", "useful_tokens"):
    assert first[name] == second[name] == pytest.approx(getattr(one, name), rel=1e-5)
  assert [line["step"] for line in read_metrics(tmp_path / "two" / "logs")] == [1, 2, 3]
  assert checkpoint.digest(tmp_path / "two")["data"] == checkpoint.digest(tmp_path / "one")["data"]
  assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_hosts_train_what_one_trains_and_share_the_encoding(runs, count):
  small = "from sora_jax.checkpoints import manifest; from sora_jax.jobs import precompute; "
  small += "precompute.UNIT_BYTES = 23040; whole = manifest.entries; "
  small += "manifest.entries = lambda *given: (found := whole(*given), print('hashed', *found, file=sys.stderr))[0]"
  found = runs.finished(count, "several", small)
  for name in ("step", "steps_run", "loss", "useful_tokens", "resumed_from"):
    assert len({summary(each)[name] for each in found}) == 1
  shares = [int(re.findall(r"encode: 100%.*?(\d+)/\d+ ", each.err)[-1]) for each in found]
  units = len(set(LatentStore(runs.folder / "several" / "latents").unit_N.tolist()))
  assert units >= 8 and sum(shares) == units and max(shares) - min(shares) <= 1
  assert manifest.verify(runs.folder / "several")["unchecked"] == []
  assert manifest.verify(runs.folder / "several")["faults"] == []
  saved = json.loads((runs.folder / "several" / "checkpoints" / "6.manifest.json").read_text())
  hashed = [re.findall(r"^hashed (.*)", each.err, re.MULTILINE)[-1].split() for each in found]
  assert sorted(sum(hashed, [])) == sorted(saved["files"]) and {len(each) for each in hashed} <= {
    len(saved["files"]) // count,
    len(saved["files"]) // count + 1,
  }
  runs.finished(1, "one", small)
  assert_same_run(runs.folder / "several", runs.folder / "one")


@pytest.mark.slow
def test_hosts_that_hold_the_same_rows_read_the_same_rows(runs):
  """A mesh whose rows are shared by the devices of two hosts."""
  shared = {"mesh.fsdp": 1, "mesh.context": 2}
  found = runs.ended(*[runs.words("two", **shared)] * 2)
  assert [each.code for each in found] == [0, 0], "\n".join(each.err for each in found)
  runs.finished(1, "one")
  np.testing.assert_allclose(losses(runs.folder / "two"), losses(runs.folder / "one"), rtol=1e-5)


@pytest.mark.slow
def test_hosts_are_killed_and_others_go_on_where_they_left(runs):
  """F16: the supervisor's part is to start them again; here with another number."""
  long = {"train.steps": 60, "train.checkpoint_every": 5, "train.log_every": 1}
  with runs.started(*[runs.words(**long)] * 2, SORA_HOST_SECONDS=str(LIMIT)) as processes:
    saved = runs.folder / "w" / "checkpoints" / "10"
    wait_for(lambda: saved.is_dir() and logged(runs.folder / "w") >= 12, processes)
    processes[1].kill()
    found = several.ended(processes, runs.folder, 60)
  assert [each.code for each in found] == [1, -signal.SIGKILL]
  said = [line for line in found[0].err.splitlines() if line.startswith("sora: ")]
  assert re.match(rf"sora: host 1 \(.*\): nothing heard for {LIMIT} s, last in transformer: \w+ \d+", said[0])
  with checkpoint.reader(runs.folder / "w") as steps:
    newest = max(steps.all_steps())
  assert newest >= 10
  found = runs.ended(*[runs.words(**long)] * 4)
  assert [summary(each)["resumed_from"] for each in found] == [newest] * 4
  found = runs.ended(runs.words("one", **long))
  assert [each.code for each in found] == [0]
  np.testing.assert_allclose(losses(runs.folder / "w"), losses(runs.folder / "one"), rtol=1e-4)


@pytest.mark.slow
def test_the_first_host_is_killed_and_jax_ends_the_others(runs):
  """F16: the others lose the distributed runtime, which is part of the first."""
  long = {"train.steps": 4000, "train.checkpoint_every": 5, "train.log_every": 1}
  with runs.started(*[runs.words(**long)] * 2) as processes:
    wait_for(lambda: logged(runs.folder / "w") >= 5, processes)
    processes[0].kill()
    found = several.ended(processes, runs.folder, 60)
  assert [each.code for each in found] == [-signal.SIGKILL, -signal.SIGABRT]
  assert "distributed service" in found[1].err


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_host_that_sleeps_for_ever_in_a_step_ends_all_and_is_named(runs, who):
  """F14."""
  fault = "sleep_in('sora_jax.data.stream', 'Stream.__next__', turn=6 + 9)"  # six steps are the autoencoder's
  command = runs.words(fault=fault, **{"train.steps": 4000, "train.log_every": 1})
  with runs.started(command, command, HOST=str(who), SORA_HOST_SECONDS=str(LIMIT)) as processes:
    wait_for(lambda: logged(runs.folder / "w") >= 7, processes)
    began = time.monotonic()
    found = several.ended(processes, runs.folder, 60 + LIMIT)
  assert [each.code for each in found] == [1, 1] and time.monotonic() - began < 20 + LIMIT
  for each in found:
    assert re.search(
      rf"^sora: host {who} \(.*\) in transformer: data 9 for \d+ s: no progress$", each.err, re.MULTILINE
    )


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_host_that_is_stopped_ends_all_and_is_named(runs, who):
  """F14, by SIGSTOP: no thread of it runs, and no connection breaks."""
  command = runs.words(**{"train.steps": 4000, "train.log_every": 1})
  with runs.started(command, command, SORA_HOST_SECONDS=str(LIMIT)) as processes:
    wait_for(lambda: logged(runs.folder / "w") >= 5, processes)
    processes[who].send_signal(signal.SIGSTOP)
    processes[1 - who].wait(60)
    processes[who].kill()
    found = several.ended(processes, runs.folder, 10)[1 - who]
  assert found.code == 1
  said = rf"^sora: host {who} \(.*\): nothing heard for {LIMIT} s, (last|when this one was) in transformer: \w+ \d+$"
  assert re.search(said, found.err, re.MULTILINE), found.err


@pytest.mark.slow
@pytest.mark.parametrize(
  ("place", "phase"),
  [
    ("'sora_jax.data.sources', 'open_source'", "(comparing config, data and code|opening the data)"),
    ("'sora_jax.checkpoints.manager', 'CheckpointManager.latest_step', turn=2", "finding the step to resume from"),
  ],
  ids=["data", "restore"],
)
def test_a_host_that_is_late_is_named_with_the_phase(runs, place, phase):
  """F15. Data has a day, which is shorter here."""
  fault = f"from sora_jax.runtime import hosts; hosts.LONG = {LIMIT}; "
  fault += f"os.environ['JAX_PROCESS_ID'] == '1' and sleep_in({place})"
  command = runs.words(fault=fault)
  found = runs.ended(command, command, SORA_HOST_SECONDS=str(LIMIT))
  assert [each.code for each in found] == [1, 1]
  for each in found:
    assert re.search(rf"^sora: .*host 1 \(.*{phase}", each.err, re.MULTILINE), each.err


@pytest.mark.slow
def test_a_host_may_be_long_at_opening_the_data(runs):
  """Longer than others wait for a host, and than devices may take to start."""
  fault = "from sora_jax.runtime import watchdog; watchdog.FIRST_TIME = 0.25; "
  fault += f"at('sora_jax.data.sources', 'open_source', 1, lambda: time.sleep({LIMIT + 5}))"
  commands = [runs.words(fault=fault), runs.words(fault=fault, **{"data.clips": 25})]
  for each in runs.ended(*commands, HOST="1", SORA_HOST_SECONDS=str(LIMIT)):
    assert re.search("^sora: .*config.data.clips is 24 on host 0 .*, 25 on host 1", each.err, re.MULTILINE), each.err


@pytest.mark.slow
class TestDifferences:
  """F17: nothing is trained, and every host says what differs."""

  def assert_refused(self, runs: Runs, commands: list[list[str]], *parts: str) -> None:
    for each in runs.ended(*commands, HOST="1"):
      assert each.code == 1
      said = [line for line in each.err.splitlines() if line.startswith("sora: ")]
      assert said and all(part in said[-1] for part in parts), each.err
    assert not list(runs.folder.glob("w*/autoencoder"))

  def test_of_the_config(self, runs):
    other = {"train.learning_rate": 0.5, "model.depth": 3}
    parts = ("config.train.learning_rate is ", "0.5 on host 1 (", "config.model.depth is 1 on host 0 (")
    self.assert_refused(runs, [runs.words(), runs.words(**other)], *parts)

  def test_of_the_code(self, runs):
    command = runs.words(fault="import sora_jax; sora_jax.__version__ = '0.0.1'")
    self.assert_refused(runs, [command, command], "sora_jax is ", '"0.0.1" on host 1 (')

  def test_of_the_data(self, runs):
    self.assert_refused(runs, [runs.words(), runs.words(**{"data.clips": 25})], "config.data.clips is 24 on host 0 (")

  def test_of_the_folder(self, runs):
    commands = [runs.words("w0"), runs.words("w1")]
    self.assert_refused(runs, commands, "host 1 (", "no sight of what host 0 (", "Hosts share one --workdir")

  def test_of_the_step_to_resume_from(self, runs):
    command = runs.words(
      fault="from sora_jax.checkpoints.manager import CheckpointManager; CheckpointManager.latest_step = lambda self: 3"
    )
    for each in runs.ended(command, command, HOST="1"):
      assert each.code == 1
      assert re.search(r"^sora: .*the newest step is null on host 0 \(.*\), 3 on host 1 \(", each.err, re.MULTILINE), (
        each.err
      )

  def test_of_four_hosts_in_several_things_at_once(self, runs):
    """Each host is of its own mind: of the config, of the code, of the clips."""
    old = runs.words(fault="import sora_jax; sora_jax.__version__ = '0.0.1'")
    commands = [runs.words(), runs.words(**{"model.width": 64}), old, runs.words(**{"data.clips": 25})]
    for each in runs.ended(*commands, HOST="2"):
      assert each.code == 1
      said = [line for line in each.err.splitlines() if line.startswith("sora: ")][-1]
      for part in ("config.data.clips is ", "config.model.width is ", "sora_jax is "):
        assert part in said, each.err
      assert re.search(r"config.model.width is 32 on hosts 0 \(.*\), 2 \(.*\), 3 \(.*\), 64 on host 1 \(", said)
      assert re.search(r'"0.0.1" on host 2 \(', said) and re.search(r"25 on host 3 \(", said)
    assert not list(runs.folder.glob("w*/autoencoder"))

  def test_of_four_hosts_in_the_step_to_resume_from(self, runs):
    command = runs.words(
      fault="from sora_jax.checkpoints.manager import CheckpointManager; CheckpointManager.latest_step = lambda self: 3"
    )
    for each in runs.ended(*[command] * 4, HOST="2"):
      assert each.code == 1
      said = r"^sora: .*the newest step is null on hosts 0 \(.*\), 1 \(.*\), 3 \(.*\), 3 on host 2 \("
      assert re.search(said, each.err, re.MULTILINE), each.err

  def test_from_the_run_in_the_workdir(self, runs):
    (runs.folder / "w").mkdir()
    written = {**json.loads(json.dumps(runs.whole)), "seed": 7}
    (runs.folder / "w" / "config.json").write_text(json.dumps(written))
    self.assert_refused(runs, [runs.words()] * 2, "holds a run with config.seed=7, not 0")
