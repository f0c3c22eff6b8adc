"""The diffusion transformer, and before it its autoencoder: every setting of a run, with its unit.

  sora train --config configs/dit.py:variant=S --config.data.source=DIR --workdir W      one GPU, own clips
  sora train --config configs/dit.py:variant=XL --workdir gs://BUCKET/RUN                a pod
  sora train --config configs/dit.py:variant=S,runlocal=1 --workdir W                   a laptop, to see it run

Widths and depths are those of DiT-S to DiT-XL with patch 2 (Peebles & Xie 2023, table 1); 8B is a pod size of our own.
`configs/demo.py` and `configs/autoencoder.py` change some of these values; no setting exists anywhere else.
"""

import ml_collections
from ml_collections import config_dict

# variant: width, depth, heads
VARIANTS = {
  "S": (384, 12, 6),
  "B": (768, 12, 12),
  "L": (1024, 24, 16),
  "XL": (1152, 28, 16),
  "8B": (4096, 32, 32),
}


def parse_arg(arg: str) -> dict[str, str]:
  """ "variant=S,runlocal=1" -> a dict; an unknown key or variant is an error that names the known ones."""
  given = dict(part.partition("=")[::2] for part in arg.split(",") if part)
  unknown = set(given) - {"variant", "runlocal"}
  if unknown:
    raise ValueError(f"config argument {sorted(unknown)[0]!r} is unknown: it is variant=... or runlocal=1")
  if given.get("variant", "S") not in VARIANTS:
    raise ValueError(f"variant {given['variant']!r} is unknown: it is one of {', '.join(VARIANTS)}")
  return given


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = parse_arg(arg)
  config = ml_collections.ConfigDict()
  config.task = "dit"  # what `sora train` trains: "dit" (and its autoencoder if it has none) or "autoencoder"
  config.seed = 0

  config.data = data = ml_collections.ConfigDict()
  # worlds:NAME, tfds:NAME@SPLIT, or a folder (local or gs://) with captions or records; several with commas between
  data.source = "worlds:shapes"
  data.weights = ()  # each source's share of the tokens; none: every clip once in an epoch
  data.clips = 6144  # of a world
  data.seed = config_dict.placeholder(int)  # of a world's clips and of the order of all; unset: seed
  # a workdir that `sora precompute` has made: its autoencoder, tokenizer and latents are read and not made again
  data.prepared = config_dict.placeholder(str)
  # of a world, WIDTHxHEIGHT pixels; or a range, "64..256x64..256": sizes of evenly spread areas and aspect ratios
  data.sizes = ("256x256", "320x192", "192x320")
  # of a world, in frames; or a range, "5..33": the durations in it that fill latent frames; entries have equal shares
  data.frames = (1, 17, 33)
  data.rates = ()  # of a world, frames per second; or a range, "5..20", from which each clip draws; none: data.fps
  data.fps = 8.0  # frames per second at which clips are sampled; 0 keeps a file's own rate
  data.max_frames = 33  # longer files are cut
  data.max_tokens = 0  # budget of a clip; larger files are shrunk with their aspect ratio kept; 0 = native size
  # "native"; to compare with that, "square" (clips lose what is beyond their middle square) or "buckets" (they are
  # resized and cut to the nearest of a table of sizes and durations)
  data.framing = "native"
  data.max_bad = 0.25  # share of a folder's lines that may be unusable; a run that lacks more stops
  data.token_drop = 0.0  # share of a clip's tokens that a step leaves out, drawn anew in each epoch
  data.loops = 0.0  # share of the videos that are shown besides there and back, as loops
  # clips for the loss of train.eval_every: a source that training does not see, or new states of a world; unset: states
  # of its worlds' held-out combinations
  data.held_out = config_dict.placeholder(str)
  data.held_out_clips = 64
  data.on_mismatch = "error"  # a run taken up with other data stops; "restart" or "remap" goes on with them
  data.workers = 0  # processes that decode and pack; 0: a thread of this one
  data.long_captions = 0.5  # share of clips that train with their long caption

  config.autoencoder = autoencoder = ml_collections.ConfigDict()
  # workdir of a trained one, or of a transformer that has one, or pretrained:NAME; unset: train it first
  autoencoder.checkpoint = config_dict.placeholder(str)
  autoencoder.channels = 16  # values of a latent position
  # (shrink of time, rows, columns), width, depth of each level; 4x8x8 in all
  autoencoder.stages = (((1, 2, 2), 96, 2), ((2, 2, 2), 192, 3), ((2, 2, 2), 384, 4))
  autoencoder.crop = (17, 128, 128)  # frames, rows and columns that it trains on
  autoencoder.batch = 16  # crops a step
  autoencoder.steps = 100_000
  autoencoder.learning_rate = 5e-3
  autoencoder.kl_weight = 1e-6
  autoencoder.motion_weight = 1.0  # of the error of what changes from frame to frame, beside that of the frames
  autoencoder.dtype = "bfloat16"  # of its blocks; what is encoded and decoded later is computed in it too
  autoencoder.remat = "full"  # what its backward pass computes again: "none" or "full"

  config.model = model = ml_collections.ConfigDict()
  model.width, model.depth, model.heads = VARIANTS[given.get("variant", "S")]
  # rates are those tuned at this width, and change with the model's (muP); unset: they are this model's own
  model.base_width = config_dict.placeholder(int)
  model.patch = (1, 2, 2)  # latents of a token along time, rows, columns
  model.text_width = 384
  model.text_depth = 4
  model.text_heads = 6
  model.vocabulary = 8192  # most pieces of the tokenizer
  model.seconds = (0.5, 240.0)  # shortest and longest rotary wavelength along time
  model.pixels = (32.0, 8192.0)  # and along rows and columns
  model.dtype = "bfloat16"
  # what the backward pass computes again: "none", "full", "attention" (all but attention), "offload" (the same, and
  # what attention gave is kept in the host's memory)
  model.remat = "full"
  model.attention = "auto"  # what computes attention: the fastest there is for these devices, or one by name

  config.diffusion = diffusion = ml_collections.ConfigDict()
  # "x" (clean patches), "filtered" (clean patches, joined with the noisy ones by how much noise these have) or "v"; the
  # loss is on velocity
  diffusion.prediction = "x"
  diffusion.weighting = "clip"  # mean over clips of each clip's mean, or "token"
  diffusion.time_logit = (0.8, 0.8)  # mean and std of the logit of the noise level (0 clean, 1 noise)
  diffusion.uniform_share = 0.1  # share of clips whose noise level is uniform: sampling visits the ends too
  diffusion.base_tokens = 1024  # clips with more tokens get more noise
  diffusion.caption_drop = 0.1  # share of clips
  diffusion.condition_share = 0.2  # share of videos that train with conditions, some of their own frames
  # how these are shared out: the first frame, first frames, last frames, both ends, frames from anywhere
  diffusion.condition_kinds = (0.35, 0.2, 0.15, 0.15, 0.15)
  diffusion.condition_noise = (0.5, 0.3)  # share of conditions given with noise, and the highest level of it

  config.train = train = ml_collections.ConfigDict()
  train.init = config_dict.placeholder(str)  # workdir of another run, from whose averaged weights this one starts
  train.steps = 400_000
  train.rows = 32  # rows a step, over all devices
  train.ranks = 8  # data-parallel ranks that get equal work in a step; any number that divides it does too
  train.accumulation = 1  # micro-batches that a step's rows are split into, where all at once need too much memory
  train.row_tokens = 8192
  train.row_text = 1024  # caption tokens a row
  train.row_segments = 32  # most clips a row
  train.learning_rate = 2e-3  # Muon, block matrices
  train.adam_learning_rate = 3e-4  # AdamW, everything else
  train.warmup = 1000  # steps
  train.decay_share = 0.2  # last share of the steps, in which the rates fall to zero
  train.clip_norm = 1.0
  train.weight_decay = 0.1  # times the rate: the share of each matrix that a step takes off (Liu et al. 2025)
  train.ema_decay = 0.9999
  train.checkpoint_every = 1000  # steps
  train.keep = 3  # newest checkpoints
  train.keep_every = 0  # and, for good, one every so many steps; 0 = none
  train.log_every = 50
  train.eval_every = 0  # the loss on held-out clips; 0 = never
  train.preview_every = 5000  # samples drawn into the log; 0 = never
  train.max_minutes = 0.0  # then it saves and ends with exit status 75, "run me again"; 0 = no limit

  config.sample = sample = ml_collections.ConfigDict()
  sample.steps = 50
  sample.method = "euler"  # or "heun"
  sample.guidance = 4.0
  sample.condition_guidance = 2.0  # of clips that are given frames
  sample.interval = (0.1, 0.95)  # noise levels at which guidance acts
  sample.first_frame = False  # make a clip's first frame as an image, then animate it
  sample.history_level = 0.1  # noise level at which a window of a long clip is given the frames made before it
  # most pixels, over all frames, that the autoencoder codes at once, here and before training: 33 frames of 256x256. A
  # longer clip goes in pieces, a larger frame in tiles; on a CPU each million takes about 2 GiB
  sample.tile_pixels = 33 * 256 * 256

  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.data, mesh.fsdp, mesh.context, mesh.tensor = 1, -1, 1, 1  # devices along each axis; -1 = the rest
  mesh.ulysses = 1  # of the context's devices, how many exchange heads for tokens; the rest pass keys round a ring

  if given.get("runlocal"):
    shrink_to_laptop(config)
  return config


def shrink_to_laptop(config: ml_collections.ConfigDict) -> None:
  """The same program at a size that runs anywhere."""
  config.data.update(clips=64, sizes=("32x32", "40x24"), frames=(1, 5), max_frames=5, max_tokens=64)
  config.autoencoder.update(channels=8, stages=(((2, 4, 4), 32, 2),), crop=(5, 24, 24), batch=8, steps=20)
  config.autoencoder.update(dtype="float32", remat="none")
  config.model.update(width=64, depth=2, heads=2, text_width=32, text_depth=1, text_heads=1, vocabulary=512)
  config.model.update(pixels=(16.0, 1024.0), dtype="float32", remat="none")
  config.diffusion.base_tokens = 64
  config.train.update(steps=20, rows=4, ranks=1, row_tokens=128, row_text=256, row_segments=8, warmup=5)
  config.train.update(checkpoint_every=10, log_every=5, preview_every=0)
  config.sample.steps = 5
