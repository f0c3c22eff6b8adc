"""What tests of faults share."""

import pytest

from tests.faults.commands import Runs


@pytest.fixture
def runs(tmp_path, tiny_config) -> Runs:
  """The tiny config as commands, for up to four hosts."""
  tiny_config.train.update(rows=4, ranks=4)
  tiny_config.autoencoder.batch = 4
  return Runs(tmp_path, tiny_config.to_dict())
