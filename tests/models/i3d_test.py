"""I3D: what it refuses, and parity with the same network in PyTorch, where that is installed."""

import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.models import i3d

CHANNELS = {  # of the paper's figure 3: 1x1; 1x1, 3x3; 1x1, 3x3; 1x1 after the pool
  "3b": (192, 64, 96, 128, 16, 32, 32), "3c": (256, 128, 128, 192, 32, 96, 64),
  "4b": (480, 192, 96, 208, 16, 48, 64), "4c": (512, 160, 112, 224, 24, 64, 64),
  "4d": (512, 128, 128, 256, 24, 64, 64), "4e": (512, 112, 144, 288, 32, 64, 64),
  "4f": (528, 256, 160, 320, 32, 128, 128), "5b": (832, 256, 160, 320, 32, 128, 128),
  "5c": (832, 384, 192, 384, 48, 128, 128),
}  # fmt: skip


def weights(classes=10) -> dict[str, np.ndarray]:
  """Random ones; kernels keep the variance, statistics of the norms are not trivial."""
  rng, found = np.random.default_rng(0), {}

  def unit(name, inputs, outputs, side):
    fan = inputs * side**3
    found[f"{name}.conv3d.weight"] = rng.normal(0, (2 / fan) ** 0.5, (outputs, inputs, side, side, side))
    for part, low, high in (("weight", 0.8, 1.2), ("bias", -0.1, 0.1), ("running_mean", -0.1, 0.1)):
      found[f"{name}.bn.{part}"] = rng.uniform(low, high, outputs)
    found[f"{name}.bn.running_var"] = rng.uniform(0.8, 1.2, outputs)

  unit("Conv3d_1a_7x7", 3, 64, 7)
  unit("Conv3d_2b_1x1", 64, 64, 1)
  unit("Conv3d_2c_3x3", 64, 192, 3)
  for block, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in CHANNELS.items():
    branches = [("b0", inputs, b0, 1), ("b1a", inputs, b1a, 1), ("b1b", b1a, b1b, 3), ("b2a", inputs, b2a, 1)]
    for branch, *shape in [*branches, ("b2b", b2a, b2b, 3), ("b3b", inputs, b3b, 1)]:
      unit(f"Mixed_{block}.{branch}", *shape)
  found["logits.conv3d.weight"] = rng.normal(0, 0.03, (classes, 1024, 1, 1, 1))
  found["logits.conv3d.bias"] = rng.normal(0, 0.1, classes)
  return {name: array.astype(np.float32) for name, array in found.items()}


def test_weights_that_lack_something_are_refused():
  whole = weights()
  i3d.check(whole)
  del whole["Mixed_4d.b2a.bn.running_var"]
  with pytest.raises(InputError, match="Mixed_4d.b2a.bn.running_var and 0 other tensors are missing"):
    i3d.check(whole)
  flow = weights()
  flow["Conv3d_1a_7x7.conv3d.weight"] = flow["Conv3d_1a_7x7.conv3d.weight"][:, :2]
  with pytest.raises(InputError, match="has shape"):
    i3d.check(flow)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 224, 224), (11, 230, 250)])
def test_logits_are_those_of_pytorch(shape):
  torch = pytest.importorskip("torch")
  known = weights()
  clips = np.random.default_rng(1).uniform(-1, 1, (1, *shape, 3)).astype(np.float32)
  with torch.no_grad():
    wanted = reference(torch, {name: torch.tensor(array) for name, array in known.items()}, torch.tensor(clips))
  found = i3d.logits(known, clips)
  assert found.shape == (1, 10)
  np.testing.assert_allclose(found, wanted.numpy(), atol=2e-3 * np.abs(wanted.numpy()).max())


def reference(torch, known, x_BTHWC):
  """The network again, in PyTorch, with the paddings of TensorFlow written out."""
  F = torch.nn.functional

  def padded(x, window, strides, value):
    sides = []
    for size, k, s in zip(x.shape[2:], window, strides, strict=True):
      total = max((-(-size // s) - 1) * s + k - size, 0)
      sides = [total // 2, total - total // 2, *sides]
    return F.pad(x, sides, value=value)

  def unit(name, x, stride=1):
    kernel = known[f"{name}.conv3d.weight"]
    x = F.conv3d(padded(x, kernel.shape[2:], (stride,) * 3, 0.0), kernel, stride=stride)
    norm = [known[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *norm, eps=1e-3))

  def pool(x, window, strides):
    return F.max_pool3d(padded(x, window, strides, 0.0), window, strides)

  def mixed(block, x):
    name = f"Mixed_{block}"
    last = unit(f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1)))
    chains = [unit(f"{name}.{b}b", unit(f"{name}.{b}a", x)) for b in ("b1", "b2")]
    return torch.cat([unit(f"{name}.b0", x), *chains, last], 1)

  x = unit("Conv3d_1a_7x7", x_BTHWC.permute(0, 4, 1, 2, 3), 2)
  x = unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", pool(x, (1, 3, 3), (1, 2, 2))))
  x = pool(x, (1, 3, 3), (1, 2, 2))
  for block in CHANNELS:
    if block == "4b":
      x = pool(x, (3, 3, 3), (2, 2, 2))
    if block == "5b":
      x = pool(x, (2, 2, 2), (2, 2, 2))
    x = mixed(block, x)
  x = F.avg_pool3d(x, (2, 7, 7), 1)
  return F.conv3d(x, known["logits.conv3d.weight"], known["logits.conv3d.bias"]).mean((2, 3, 4))
