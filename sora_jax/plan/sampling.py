"""What `sora plan --sample` answers: how long does one clip take to sample, and in how much memory.

A clip longer than training's is made window by window; the largest one is what is examined.
"""

import re
from typing import Any

from sora_jax import settings
from sora_jax.errors import InputError
from sora_jax.inference import prompting
from sora_jax.inference.generator import MAX_FRAMES, MAX_SIDE, Sampling
from sora_jax.models.autoencoder import grid as grid_of
from sora_jax.plan import chips, compile
from sora_jax.plan.plan import FULL, GIB, figures, seconds_of

COLOURS = 3 * 4  # bytes of a pixel, float32
MOST_TOKENS = 2**31 - 128  # of a row, whose places are counted in int32


def plan(config: Any, clip: str, topology: str | None) -> dict[str, Any]:
  """The answer, ready to be printed.

  Args:
    clip: WIDTHxHEIGHTxFRAMES.
    topology: as in `plan.plan`.

  Raises:
    InputError: the clip is none, or has too many tokens; the topology is unknown; the config can't be.
    CompileError: a call does not compile for a reason other than memory.
  """
  settings.check(config)
  if config.task != "dit":
    raise InputError(f"config.task is {config.task!r}: clips are sampled from a transformer, 'dit'")
  frames, height, width = shape = parse_clip(clip)
  where = chips.parse(topology) if topology else None
  windows = prompting.windows(config.data, grid_of(config), frames)
  shape = max(windows), height, width
  if (tokens := grid_of(config).tokens(*shape)) > MOST_TOKENS:
    raise InputError(
      f"clip {clip} has {tokens} tokens, and a row at most {MOST_TOKENS}: plan a smaller one, or another model.patch"
    )
  sampling = Sampling.of(config)
  found = compile.examine_sampling(config, shape, where)
  chip = where.chip if where else chips.chip_of(found["kind"])
  passes, decode = [_pass(each, found, chip) for each in found["passes"]], _decode(found["decode"], chip)
  last = found["passes"][-1]
  # First frames are made for the first window alone; all take as long as the largest one.
  times = [1 if each is not passes[-1] else len(windows) for each in passes]
  network = [_times(count, each["seconds"]) for count, each in zip(times, passes, strict=True)]
  decoded = _times(len(windows), decode["seconds"])
  seconds = {"network": _sum(network), "decode": _sum([decoded]), "total": _sum([*network, decoded])}
  peaks = [each["peak_hbm_gib"] for each in (*passes, decode)]
  answer = {
    "clip": f"{width}x{height}x{frames}",
    "params": found["params"],
    "chips": found["devices"],
    "windows": len(windows),
    "window_frames": max(windows),
    "latents": list(grid_of(config).latent_shape(*shape)),
    "tokens": last["tokens"],
    "row_tokens": last["row_tokens"],
    "clips_at_once": last["rows"] * max(last["row_tokens"] // last["tokens"], 1),
    "sampling": f"{sampling.steps} steps of {sampling.method}, guidance {sampling.guidance:g}",
    "network_calls": sum(count * each["network_calls"] for count, each in zip(times, passes, strict=True)),
    "passes": passes,
    "decode": decode,
    "clip_gib": figures(frames * height * width * COLOURS / GIB),
    "peak_hbm_gib": None if None in peaks else max(peaks),
    "hbm_gib": figures(chip.hbm_bytes / GIB) if chip else None,
    "fits": _fits(found, chip),
    "seconds": seconds,
    "topology": where.name if where else found["kind"],
  }
  if where and (what := compile.missing()):
    answer["missing"] = f"the compiled figures need libtpu: {what}"
  return answer


def parse_clip(text: str) -> tuple[int, int, int]:
  """ "1920x1080x97" -> (frames, height, width).

  Raises:
    InputError: not three whole numbers, or one that is too large to be sampled.
  """
  found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})x([0-9]{1,9})", text.strip().lower())
  width, height, frames = map(int, found.groups()) if found else (0, 0, 0)
  if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and 1 <= frames <= MAX_FRAMES):
    raise InputError(
      f"clip {text!r} is not WIDTHxHEIGHTxFRAMES, say 1920x1080x97 or 512x512x1, with sides from 1 to {MAX_SIDE} and "
      f"1 to {MAX_FRAMES} frames"
    )
  return frames, height, width


def _pass(each: dict[str, Any], found: dict[str, Any], chip: chips.Chip | None) -> dict[str, Any]:
  """What the network does for the clip, or for its first frame."""
  call = _call_seconds(each, found["devices"], chip)
  return {
    "tokens": each["tokens"],
    "row_tokens": each["row_tokens"],
    "rows": each["rows"],
    "network_calls": each["calls"],
    "guidance_calls": each["guided"],
    "call_flops": figures(each["flops"]["forward"]),
    "call_seconds": figures(call) if call else None,
    "seconds": figures(call * each["calls"]) if call else None,
    "peak_hbm_gib": _gib(each["compiled"]),
  }


def _call_seconds(each: dict[str, Any], devices: int, chip: chips.Chip | None) -> float | None:
  """Of one network call, by the roofline that times a train step: only its forward pass is there."""
  none = {"backward": 0.0, "recompute": 0.0, "optimizer": 0.0}
  one = {"devices": devices, "flops": none | each["flops"], "compiled": each["compiled"]}
  return seconds_of(one, chip).get("step")


def _decode(decode: dict[str, Any], chip: chips.Chip | None) -> dict[str, Any]:
  seconds = _decode_seconds(decode, chip)
  tile, clips = decode["tile"], decode["clips"]
  peak = _peak(decode)
  return {
    "tile": f"{tile[1]}x{tile[0]}",
    "tiles": decode["tiles"],
    "chunk_frames": decode["chunk_frames"],
    "chunks": decode["chunks"],
    "clips": clips,
    "flops": figures(decode["flops"]),
    "seconds": figures(seconds) if seconds else None,
    "state_gib": figures(decode["state_bytes"] / GIB),
    "peak_hbm_gib": figures(peak / GIB) if peak else None,
  }


def _decode_seconds(decode: dict[str, Any], chip: chips.Chip | None) -> float | None:
  """Of the whole clip: every tile of every chunk, or by formula where nothing was compiled."""
  first, later = decode["first"], decode["next"]
  if chip is None or not _compiles(first) or not _compiles(later):
    return None
  if first is None:
    return decode["flops"] / chip.flops
  rest = (decode["chunks"] - 1) * later["seconds"]["step"] if later else 0.0
  return decode["tiles"] * (first["seconds"]["step"] + rest)


def _peak(decode: dict[str, Any]) -> int | None:
  """Most memory of the device while it decodes: that of a call, and what the other tiles keep there."""
  peaks = [each["peak_bytes"] for each in (decode["first"], decode["next"]) if each]
  if not peaks:
    return None
  others = 0 if decode["state_on_host"] else decode["state_bytes"] * (decode["tiles"] - 1) // decode["tiles"]
  return max(peaks) + others


def _fits(found: dict[str, Any], chip: chips.Chip | None) -> bool | None:
  """Whether all calls fit the memory; None where they were not compiled, or nobody knows how much there is."""
  decode = found["decode"]
  compiled = [*(each["compiled"] for each in found["passes"]), decode["first"]]
  if None in compiled:
    return None
  if not all(map(_compiles, [*compiled, decode["next"]])):
    return False
  peaks = [*(each["compiled"]["peak_bytes"] for each in found["passes"]), _peak(decode) or 0]
  return max(peaks) <= FULL * chip.hbm_bytes if chip else None


def _compiles(compiled: dict[str, Any] | None) -> bool:
  return compiled is None or compiled["compiles"]


def _gib(compiled: dict[str, Any] | None) -> float | None:
  return figures(compiled["peak_bytes"] / GIB) if compiled else None


def _times(count: int, seconds: float | None) -> float | None:
  return None if seconds is None else count * seconds


def _sum(seconds: list[float | None]) -> float | None:
  known = [each for each in seconds if each is not None]
  return figures(sum(known)) if len(known) == len(seconds) else None
