"""What environments tell of the other processes: those that launchers make, and those that mean nothing."""

import runpy
import sys

import pytest

from sora_jax.runtime import cluster
from sora_jax.runtime.cluster import HostsError, Place, place

WHOLE = {"JAX_COORDINATOR_ADDRESS": "node1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "node[1-2]",
  "SLURM_NTASKS": "16",
  "SLURM_PROCID": "5",
  "SLURM_LOCALID": "5",
}
FIRST = {"JAX_COORDINATOR_ADDRESS": "xl-workers-0-0.xl:8482"}
GKE = {**FIRST, "TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "2", "TPU_SKIP_MDS_QUERY": "true"}


@pytest.fixture(autouse=True)
def asked(monkeypatch) -> list:
  """What JAX is asked; it finds the second of two processes."""
  found = []
  monkeypatch.setattr(cluster, "ask_jax", lambda *given: found.append(given) or Place("first:1", 2, 1))
  return found


def test_who_starts_the_processes_says_it(asked):
  assert place(WHOLE) == place(SLURM | WHOLE) == Place("node1:1234", 4, 3, None)
  assert place(WHOLE | {"JAX_LOCAL_DEVICE_IDS": "2,3"}).devices == [2, 3]
  assert not asked


@pytest.mark.parametrize(
  ("env", "given"),
  [
    (SLURM, (None, None)),
    (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1,2,3"}, (None, [0, 1, 2, 3])),
    (GKE, (FIRST["JAX_COORDINATOR_ADDRESS"], None)),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, (None, None)),
  ],
  ids=["slurm", "slurm, a task a node", "gke", "two slices of one host"],
)
def test_jax_finds_out_by_itself(env, given, asked):
  assert place(env) == Place("first:1", 2, 1)
  assert asked == [given]


def test_jax_reads_slurm(monkeypatch):
  monkeypatch.undo()
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  assert place(SLURM) == Place("node1:61447", 16, 5, [5])
  assert place(SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"}).devices == [0, 1]


@pytest.mark.parametrize(
  "env",
  [
    {},
    WHOLE | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    SLURM | {"SLURM_NTASKS": "1"},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"},  # a batch script, or a shell in an allocation
    GKE | {"TPU_WORKER_HOSTNAMES": "localhost"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
  ],
  ids=["nothing", "one of one", "one task", "no step", "a slice of one host", "a pod of a cluster"],
)
def test_alone(env, asked):
  assert place(env) is None and not asked


@pytest.mark.parametrize(
  ("env", "said"),
  [
    ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES=2, but no JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
    ({**FIRST, "JAX_PROCESS_ID": "0"}, "but no JAX_NUM_PROCESSES"),
    (FIRST, "but no JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
    (WHOLE | {"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4.*which this is, from 0"),
    (WHOLE | {"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES=four.*how many"),
    (WHOLE | {"JAX_COORDINATOR_ADDRESS": "node1"}, "JAX_COORDINATOR_ADDRESS=node1,.*HOST:PORT"),
    (WHOLE | {"JAX_COORDINATOR_ADDRESS": "node1:x"}, "JAX_COORDINATOR_ADDRESS=node1:x,.*HOST:PORT"),
    ({"JAX_LOCAL_DEVICE_IDS": "all"}, "JAX_LOCAL_DEVICE_IDS=all: needed are whole numbers"),
    (SLURM | {"SLURM_NTASKS": "many"}, "SLURM_NTASKS=many"),
  ],
)
def test_half_of_it_and_nonsense_are_errors_that_name_the_variables(env, said):
  with pytest.raises(HostsError, match=said):
    place(env)


@pytest.mark.parametrize(("chips", "platforms", "joins"), [(True, "", True), (False, "", False), (True, "cpu", False)])
def test_a_tpu_vm_with_chips_asks_its_metadata(monkeypatch, asked, chips, platforms, joins):
  monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name == "libtpu")
  env = {"JAX_PLATFORMS": platforms} if platforms else {}
  assert place(env if chips else env | {"TPU_SKIP_MDS_QUERY": "1"}) == (Place("first:1", 2, 1) if joins else None)
  assert len(asked) == joins


def test_a_tpu_vm_of_its_own_is_alone(monkeypatch):
  monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name == "libtpu")
  monkeypatch.setattr(cluster, "ask_jax", lambda *given: Place("here:1", 1, 0))
  assert place({}) is None


def test_the_launcher_for_gke_says_what_is_understood(monkeypatch, asked):
  """Its variables, with those that GKE adds on every host."""
  root = cluster.__file__.rpartition("/sora_jax/")[0]
  monkeypatch.syspath_prepend(f"{root}/launch")
  gke = runpy.run_path(f"{root}/launch/gke.py")
  del sys.modules["common"]
  words = ["--name=xl", "--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--image=i:1"]
  found = {}
  monkeypatch.setitem(gke["program"].__globals__, "run", lambda args: found.update(gke["container"](args)) or 0)
  gke["program"](["run", *words, "--config=c.py", "--workdir=gs://b/r"])
  env = {each["name"]: each["value"] for each in found["env"]}
  assert place(env | {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "0"}) == Place("first:1", 2, 1)
  assert asked == [("xl-workers-0-0.xl:8482", None)]
