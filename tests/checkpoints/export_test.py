"""Exported weights: read back by the format's own rules, and by its library where that is installed."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.checkpoints import checkpoint, export
from sora_jax.checkpoints.checkpoint import CheckpointError
from sora_jax.train.state import TrainState

META = {"config": {"seed": 0}, "config_hash": "c0ffee", "task": "dit", "sora_jax": "1.2.3"}
TYPES = {name: np.dtype(kind) if kind != "bfloat16" else jnp.bfloat16.dtype for kind, name in export.TYPES.items()}


def make_state(step: int) -> TrainState:
  draw = lambda seed, *shape: np.random.default_rng([step, seed]).normal(size=shape)
  params = {
    "blocks": {"qkv": {"kernel": jnp.asarray(draw(0, 2, 3, 5), jnp.float32)}, "bias": jnp.float32(step)},
    "encoder": {0: {"table": jnp.asarray(draw(1, 7), jnp.bfloat16)}},
    "counts": jnp.arange(3, dtype=jnp.int32) + step,
  }
  ema = jax.tree.map(lambda x: (x * 2).astype(x.dtype), params)
  return TrainState(params, {"mu": params}, ema, jnp.int32(step), jax.random.key_data(jax.random.key(0)))


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> pathlib.Path:
  """Steps 3 and 5; read only."""
  folder = tmp_path_factory.mktemp("run")
  with checkpoint.manager(folder) as steps:
    for step in (3, 5):
      assert checkpoint.save(steps, make_state(step), {}, META)
  return folder


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The tensors and the metadata, by the rules of the format: every byte belongs to one tensor."""
  content = path.read_bytes()
  length = int.from_bytes(content[:8], "little")
  assert length % 8 == 0
  header = json.loads(content[8 : 8 + length])
  values, about = content[8 + length :], header.pop("__metadata__")
  spans = sorted(entry["data_offsets"] for entry in header.values())
  assert [0, *(end for _, end in spans)] == [*(start for start, _ in spans), len(values)]
  tensors = {}
  for name, entry in header.items():
    start, end = entry["data_offsets"]
    tensors[name] = np.frombuffer(values[start:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
  return tensors, about


def assert_same(found: dict[str, np.ndarray], tree: dict) -> None:
  wanted = {path.replace("/", "."): np.asarray(leaf) for path, leaf in checkpoint.flat(tree).items()}
  assert found.keys() == wanted.keys()
  for name, array in wanted.items():
    assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    assert found[name].tobytes() == array.tobytes()


def test_the_newest_average_unless_told_otherwise(kept, tmp_path):
  found = export.export(kept, tmp_path / "a" / "x.safetensors")
  tensors, about = read(tmp_path / "a" / "x.safetensors")
  assert_same(tensors, make_state(5).ema)
  assert "blocks.qkv.kernel" in tensors and "encoder.0.table" in tensors
  assert about == {"format": "pt", "config_hash": "c0ffee", "step": "5", "item": "ema", "sora_jax": "1.2.3"}
  size = (tmp_path / "a" / "x.safetensors").stat().st_size
  assert found == {"out": str(tmp_path / "a" / "x.safetensors"), "step": 5, "item": "ema", "tensors": 4, "bytes": size}
  export.export(kept, tmp_path / "y.safetensors", step=3, item="params")
  tensors, about = read(tmp_path / "y.safetensors")
  assert_same(tensors, make_state(3).params)
  assert (about["step"], about["item"]) == ("3", "params")


def test_the_library_of_the_format_reads_it(kept, tmp_path):
  library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
  export.export(kept, tmp_path / "x.safetensors")
  assert_same(library.load_file(tmp_path / "x.safetensors"), make_state(5).ema)
  with pytest.importorskip("safetensors").safe_open(tmp_path / "x.safetensors", "np") as file:
    assert file.metadata()["config_hash"] == "c0ffee"


def test_the_same_step_makes_the_same_bytes(kept, tmp_path):
  export.export(kept, tmp_path / "x")
  export.export(kept, tmp_path / "y")
  assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_file_that_could_not_be_finished_is_not_left(kept, tmp_path, monkeypatch):
  out = tmp_path / "x.safetensors"
  export.export(kept, out, step=3)
  before = out.read_bytes()

  def full(file, head, tensors):
    file.write(head)
    raise OSError("No space left on device")

  monkeypatch.setattr(export, "_write", full)
  with pytest.raises(OSError, match="No space left"):
    export.export(kept, out)
  assert out.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_type_that_the_format_lacks_is_named():
  with pytest.raises(ValueError, match="^a.b is of type complex64, which safetensors files can't hold$"):
    export.header({"a.b": np.zeros(2, np.complex64)}, {})


def test_damage_is_not_exported(kept, tmp_path, capfd):
  own = pathlib.Path(shutil.copytree(kept, tmp_path / "run"))
  [path] = (own / "checkpoints" / "5" / "ema" / "d").iterdir()
  path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(CheckpointError, match=f"step 5 is damaged: 5/ema/d/{path.name}"):
    export.export(own, tmp_path / "x", step=5)
  assert not (tmp_path / "x").exists()
  assert export.export(own, tmp_path / "x")["step"] == 3
  assert f"5/ema/d/{path.name} is not what was written" in capfd.readouterr().err
