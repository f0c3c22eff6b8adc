"""A workdir is claimed by one config, here or in a bucket, and never as a local folder by a bucket's name."""

import json

import pytest
from etils import epath

from sora_jax.jobs.workdir import ConfigMismatch, claim, code, open_workdir
from sora_jax.settings import leaves
from tests.runtime.storage_test import bucket  # noqa: F401  a fixture


@pytest.fixture(params=["a folder", "a bucket"])
def workdir(request, tmp_path, monkeypatch, bucket) -> epath.Path:  # noqa: F811
  monkeypatch.chdir(tmp_path)
  return epath.Path("gs://b/runs/w" if request.param == "a bucket" else tmp_path / "w")


class TestClaim:
  def test_the_resolved_config_is_written_and_the_same_may_come_again(self, tiny_config, workdir):
    claim(workdir, tiny_config)
    written = (workdir / "config.json").read_text()
    assert json.loads(written)["model"]["width"] == tiny_config.model.width
    claim(workdir, tiny_config)
    assert (workdir / "config.json").read_text() == written

  @pytest.mark.parametrize(
    ("key", "value"), [("model.width", 48), ("seed", 1), ("data.source", "worlds:uniform"), ("train.init", "elsewhere")]
  )
  def test_another_run_s_config_is_refused_with_the_key_and_both_values(self, tiny_config, workdir, key, value):
    """F09: of two runs in one folder."""
    claim(workdir, tiny_config)
    written = (workdir / "config.json").read_text()
    old = leaves(json.loads(tiny_config.to_json()))[key]
    tiny_config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigMismatch) as caught:
      claim(workdir, tiny_config)
    for part in (key, repr(old), repr(value), str(workdir)):
      assert part in str(caught.value)
    assert (workdir / "config.json").read_text() == written

  @pytest.mark.parametrize(
    ("key", "value"), [("train.keep", 9), ("train.log_every", 1), ("sample.guidance", 1.5), ("mesh.data", -1)]
  )
  def test_what_may_change_may_change(self, tiny_config, workdir, key, value):
    claim(workdir, tiny_config)
    tiny_config.update_from_flattened_dict({key: value})
    claim(workdir, tiny_config)
    assert leaves(json.loads((workdir / "config.json").read_text()))[key] == value

  def test_a_config_that_is_no_json_is_named(self, tiny_config, workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text("{")
    with pytest.raises(ConfigMismatch, match="config.json"):
      claim(workdir, tiny_config)


def test_a_bucket_s_name_makes_no_folder_here(tiny_config, tmp_path, monkeypatch, bucket):  # noqa: F811
  monkeypatch.chdir(tmp_path)
  open_workdir(epath.Path("gs://b/runs/w"), tiny_config, "fingerprint")
  assert list(bucket.objects) == ["b/runs/w/config.json"] and not list(tmp_path.iterdir())


def test_the_code_is_told_by_versions_and_sources():
  found = code()
  assert set(found) == {"sora_jax", "jax", "sources"} and len(found["sources"]) == 64
  assert found == code()
