"""A kernel's pair of functions as one that can be differentiated, and what of it may be kept for the gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.models.attention.kernel import ATTENDED, Attended, Kernel, attend, kept

IDS = jnp.ones((1, 3), jnp.int32)


def doubling(query, key, value, query_segments, key_segments) -> Attended:
  return Attended(2.0 * query.astype(jnp.float32), jnp.zeros(query.shape[:3]))


def told_apart(query, key, value, query_segments, key_segments, attended, gradient):
  return gradient * 1.0, attended.out * 1.0, gradient * 3.0


KERNEL = Kernel(doubling, told_apart)


def test_values_are_forward_and_gradients_are_backward():
  x = jnp.arange(12.0).reshape(1, 1, 3, 4)
  out, pull = jax.vjp(lambda *qkv: attend(KERNEL, *qkv, IDS, IDS), x, x + 1, x + 2)
  np.testing.assert_array_equal(out, 2 * x)
  for found, wanted in zip(pull(5 * jnp.ones_like(x)), (5.0, 2 * x, 15.0), strict=True):
    np.testing.assert_array_equal(found, jnp.broadcast_to(wanted, x.shape))


def test_types_are_those_of_the_inputs():
  x = jnp.ones((1, 1, 3, 4), jnp.bfloat16)
  out, pull = jax.vjp(lambda *qkv: attend(KERNEL, *qkv, IDS, IDS), x, x, x)
  assert {leaf.dtype for leaf in (out, *pull(out))} == {jnp.dtype(jnp.bfloat16)}


def test_both_parts_have_the_name_by_which_they_are_kept():
  attended = Attended(jnp.ones((1, 1, 3, 4)), jnp.ones((1, 1, 3)))
  text = str(jax.make_jaxpr(lambda a: kept(a, jnp.bfloat16))(attended))
  assert text.count(f"name[name={ATTENDED}]") == 2
