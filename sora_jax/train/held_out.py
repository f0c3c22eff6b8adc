"""The loss on clips that training never sees, at fixed noise levels and with fixed noise.

Nothing is drawn anew, so two evaluations of one checkpoint give the same bits, and the losses of two runs on the same
clips differ by their weights alone.

Shape letters: B rows, L tokens, S segments, N noise levels, G groups of clips.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sora_jax import sharding
from sora_jax.diffusion import objective
from sora_jax.diffusion.denoiser import clean_from
from sora_jax.packing.batch import PackedBatch
from sora_jax.train.state import Params

LEVELS = tuple((number + 0.5) / 8 for number in range(8))
SEED = 0  # of the noise, whatever the run's


class HeldOut(NamedTuple):
  """What is evaluated.

  Attributes:
    batches: this host's rows of each batch; a segment of weight 0 counts for nothing.
    groups: names of groups of clips; a metric of its own for each.
    members_BSG: for each batch, which groups a segment is of, float32 0 or 1.
  """

  batches: Sequence[PackedBatch]
  groups: tuple[str, ...]
  members_BSG: Sequence[np.ndarray]


def evaluator(
  call: Callable[[Params, jax.Array, jax.Array, PackedBatch], jax.Array], prediction: str, held_out: HeldOut, mesh: Mesh
) -> Callable[[Params], dict[str, float]]:
  """What gives the losses of parameters.

  Args:
    call: the network: (params, x_t_BLC, t_BL, batch) -> its output (B, L, C), captions kept.
    prediction: what the output means, see `clean_from`.
    mesh: that the parameters lie on.

  Returns:
    params -> {"held_out": mean over clips and levels, "held_out_t0.06": at that level, ..., "held_out_GROUP": of one}.
  """

  def sums(
    params: Params, batch: PackedBatch, members_BSG: jax.Array, number: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    key, level = jax.random.fold_in(jax.random.key(SEED), number), jnp.array(LEVELS)[number]
    x_t, t_BL = objective.corrupt(batch, jnp.full(batch.weight_BS.shape, level), key)
    x_hat = clean_from(call(params, x_t, t_BL, batch), x_t, t_BL, prediction)
    weight_BS = objective.segment_weights(batch, "clip")
    errors_BS = objective.velocity_errors(x_hat, batch, t_BL)[0] * weight_BS
    every_BSG = jnp.concatenate([jnp.ones_like(members_BSG[..., :1]), members_BSG], -1)
    return jnp.einsum("bs,bsg->g", errors_BS, every_BSG), jnp.einsum("bs,bsg->g", weight_BS, every_BSG)

  run = jax.jit(sums, out_shardings=sharding.replicated(mesh))
  there = [sharding.to_devices(pair, mesh) for pair in zip(held_out.batches, held_out.members_BSG, strict=True)]
  numbers = [jax.device_put(np.int32(number), sharding.replicated(mesh)) for number in range(len(LEVELS))]

  def evaluate(params: Params) -> dict[str, float]:
    with jax.set_mesh(mesh):
      pairs = [[run(params, *each, number) for each in there] for number in numbers]
    totals_N2G = np.array([np.sum(jax.device_get(row), axis=0) for row in pairs], np.float64)
    mean_NG = totals_N2G[:, 0] / np.maximum(totals_N2G[:, 1], 1e-9)
    found = {"held_out": float(mean_NG[:, 0].mean())}
    found |= {f"held_out_t{level:.2f}": float(mean) for level, mean in zip(LEVELS, mean_NG[:, 0], strict=True)}
    means = zip(held_out.groups, mean_NG[:, 1:].mean(axis=0), totals_N2G[0, 1, 1:], strict=True)
    return found | {f"held_out_{group}": float(mean) for group, mean, count in means if count > 0}

  return evaluate
