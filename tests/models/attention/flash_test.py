"""Which blocks meet, whole blocks, and what the gradient starts from."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.attention.flash import gradient_rows, meeting, padded
from sora_jax.models.attention.kernel import NEVER, Attended
from tests.models.attention.blockwise_test import packed


def test_blocks_that_share_no_segment_are_left_out():
  rng = np.random.default_rng(3)
  segments = np.stack([packed(256, 16, rng), np.zeros(256, np.int32)])
  first, count = (np.asarray(x) for x in meeting((jnp.asarray(segments), 16), (jnp.asarray(segments), 32)))
  for row, block in np.ndindex(2, 16):
    own = set(segments[row, 16 * block : 16 * block + 16].tolist()) - {0}
    seen = [number for number in range(8) if own & set(segments[row, 32 * number : 32 * number + 32].tolist())]
    assert count[row, block] == len(seen)
    assert not seen or first[row, block] == seen[0]
  assert 0 < count[0].mean() < 4 and not count[1].any()


@pytest.mark.parametrize(("shape", "wanted"), [((2, 5), (2, 8)), ((2, 3, 8), (2, 3, 8)), ((2, 3, 9, 4), (2, 3, 12, 4))])
def test_tokens_are_padded_with_zeros_behind(shape, wanted):
  x = np.ones(shape, np.float32)
  (found,) = padded(4, jnp.asarray(x))
  assert found.shape == wanted and float(found.sum()) == x.size
  np.testing.assert_array_equal(found[tuple(slice(size) for size in shape)], x)


def test_a_query_that_saw_nothing_gets_weights_of_zero():
  attended = Attended(jnp.full((1, 1, 2, 3), 2.0, jnp.bfloat16), jnp.asarray([[[0.5, NEVER]]]))
  log_total, along = gradient_rows(attended, jnp.full((1, 1, 2, 3), 4.0, jnp.bfloat16))
  np.testing.assert_allclose(jnp.exp(3.0 - log_total), [[[np.exp(2.5), 0.0]]], rtol=1e-6)
  np.testing.assert_array_equal(along, [[[24.0, 24.0]]])
