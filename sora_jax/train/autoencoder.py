"""The autoencoder's task: L1 and KL on crops of clips; latent statistics at the end."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.clips import contact_sheet, to_uint8
from sora_jax.diffusion.noise import clip_keys
from sora_jax.models.abstract import abstract
from sora_jax.models.autoencoder import Autoencoder, AutoencoderConfig, linear_start, pad_clip
from sora_jax.sharding import constrain
from sora_jax.train.state import Metrics, Params

STATISTICS_BATCH = 32  # clips a pass when latent statistics are measured


class AutoencoderTask:
  """Batches are (frames (B, T, H, W, 3) float32, clip_index (B,) int32).

  A perceptual or adversarial term would be one more summand in `loss`.
  """

  def __init__(self, config: AutoencoderConfig, kl_weight: float, motion_weight: float, probe_BTHWC: np.ndarray):
    """`probe_BTHWC`: crops of the source: they give the linear start, the latent statistics and the preview."""
    self.kl_weight, self.motion_weight = kl_weight, motion_weight
    self.probe = np.asarray(pad_clip(probe_BTHWC, config.compression))
    self.start = linear_start(self.probe, config)
    self.make = lambda key: Autoencoder(config, nnx.Rngs(params=key))
    self.graph, _ = abstract(Autoencoder, config)
    whole = lambda x: constrain(x, *[None] * x.ndim)  # on every host
    self._mean = jax.jit(lambda params, frames: whole(self.model(params).posterior(frames)[0]))
    self._rebuild = jax.jit(lambda params, frames: whole(self._through(params, frames)))

  def model(self, params: Params) -> Autoencoder:
    return nnx.merge(self.graph, params)

  def init(self, key: jax.Array) -> Params:
    params = nnx.to_pure_dict(nnx.split(self.make(key))[1])
    linear_in, linear_out = self.start
    return {
      **params,
      "linear_in": {"kernel": jnp.asarray(linear_in)},
      "linear_out": {"kernel": jnp.asarray(linear_out)},
    }

  def loss(self, params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean |x_hat - x| + motion_weight * the same of changes from frame to frame + kl_weight * KL(posterior, normal).

    The KL is a mean over latent values (Kingma & Welling 2013, eq. 10).

    Frames of one latent frame share its errors, so without the second term motion goes in steps of latent frames.
    """
    frames, clip_index = batch
    frames = pad_clip(frames, self.model(params).config.compression)
    mean, log_variance, _ = self.model(params).posterior(frames)
    keys = clip_keys(key, clip_index, "posterior")
    noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(keys)
    rebuilt, _ = self.model(params).reconstruct(mean + jnp.exp(0.5 * log_variance) * noise)
    error = rebuilt - frames
    distance = jnp.mean(jnp.abs(error))
    divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)
    psnr = 10 * jnp.log10(4.0 / jnp.maximum(jnp.mean(jnp.square(error)), 1e-10))
    motion = jnp.abs(jnp.diff(error, axis=1)).mean() if error.shape[1] > 1 else jnp.float32(0)
    loss = distance + self.motion_weight * motion + self.kl_weight * divergence
    return loss, {"l1": distance, "motion": motion, "kl": divergence, "psnr_db": psnr}

  def weight(self, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.float32(batch[0].shape[0])

  def evaluate(self, params: Params) -> dict[str, float]:
    return {}

  def preview(self, params: Params) -> np.ndarray:
    """Probe clips, four frames each: the clip above, its reconstruction below."""
    frames = self.probe[:3]
    rebuilt = np.asarray(self._rebuild(params, frames))
    shown = np.linspace(0, frames.shape[1] - 1, 4).round().astype(int)
    pairs = [[clip[t] for clip in kind for t in shown] for kind in (to_uint8(frames), to_uint8(rebuilt))]
    return contact_sheet(pairs)

  def finish(self, params: Params) -> Params:
    """Fills in the latents' mean and standard deviation of each channel, over the probe."""
    parts = [
      np.asarray(self._mean(params, self.probe[i : i + STATISTICS_BATCH]))
      for i in range(0, len(self.probe), STATISTICS_BATCH)
    ]
    latents = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
    measured = {"latent_mean": latents.mean(0), "latent_std": np.maximum(latents.std(0), 1e-3)}
    return {
      **params,
      **{k: jax.device_put(v.astype(np.float32), params[k].sharding) for k, v in measured.items()},
    }

  def _through(self, params: Params, frames: jax.Array) -> jax.Array:
    """Frames, padded, encoded by the posterior's mean and decoded."""
    model = self.model(params)
    return model.decode(model.encode(pad_clip(frames, model.config.compression))[0])[0]
