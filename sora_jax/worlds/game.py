"""A small digital world of blocks, seen from the side: a player walks, digs, tunnels or builds by the world's rules.

The land is a grid of cells, eight of them along the frame's short side, of which a frame shows the middle. Time goes in
ticks. In each the player does one thing: a step to the side (up or down one block where the land does), taking a block
that touches it, laying one in front of it, or falling one cell where nothing is beneath it. `lawful` says of two looks
at the land, whatever made them, whether the rules lead from one to the other.

Shape letters: T frames, K ticks, H height, W width, R rows and C columns of cells.
"""

import dataclasses
import functools

import numpy as np

from sora_jax.worlds import hues, scene

SIDE, VISIBLE = 24, 8  # cells of the land's side, and along the frame's short side
TICK = 0.25  # seconds
SURFACE = 13  # row of the top block of level land
LEFT, RIGHT = 9, 14  # columns between which players stay: within every frame, with a cell to spare
AIR, GRASS, DIRT, STONE, BRICK = range(5)
PLAYERS = {"Ada": (0.9, -0.8, 0.9), "Bo": (0.9, 0.9, -0.8), "Cy": (-0.9, -0.9, -0.9)}
TERRAINS = ("flat", "hill", "pit", "stairs")
POLICIES = ("walks", "digs", "tunnels", "builds")
DIRECTIONS = {"left": -1, "right": 1}
HELD_OUT = (("Ada", "builds"), ("Bo", "digs"), ("Cy", "tunnels"))

_KINDS = ((0.3, 0.6, 0.95), (-0.5, 0.5, -0.6), (0.05, -0.4, -0.75), (-0.2, -0.2, -0.2), (0.75, -0.15, -0.55))
_COLOURS = np.array([*_KINDS, *PLAYERS.values()], np.float32)  # a player's kind is BRICK + 1 + its number
_FAR = 0.75  # distance of a cell's colour from every kind beyond which it is none
_DEEPEST, _HIGHEST = 3, 2  # blocks that are dug and bricks that are laid at most: all stays within every frame
_STANDARD = (48, 48, 33, 8.0)  # the clip by which a state is described


@dataclasses.dataclass(frozen=True)
class GameState:
  """A player in its land.

  Attributes:
    player, policy, terrain, direction: names of the tables above.
    column: where the player begins.
  """

  player: str
  policy: str
  terrain: str
  direction: str
  column: int


@dataclasses.dataclass(frozen=True)
class Look:
  """What is read from a clip.

  Attributes:
    times_T: seconds of the frames.
    kinds_TRC: what is in each cell that the frame shows whole, -1 where it is like nothing; rows and columns of the
      land beyond are left out.
    top, left: row and column of the land of the first one.
  """

  times_T: np.ndarray
  kinds_TRC: np.ndarray
  top: int
  left: int


def land(terrain: str) -> np.ndarray:
  """The cells of a terrain before anything is changed, (SIDE, SIDE) of kinds."""
  rise = np.zeros(SIDE, int)
  middle = SIDE // 2
  if terrain == "hill":
    rise[middle - 1 : middle + 1] = 1
  elif terrain == "pit":
    rise[middle - 1 : middle + 1] = -1
  elif terrain == "stairs":
    rise[middle - 1 : middle + 1], rise[middle + 1 :] = 1, 2
  tops = SURFACE - rise
  depth_RC = np.arange(SIDE)[:, None] - tops
  return np.select([depth_RC < 0, depth_RC == 0, depth_RC < 3], [AIR, GRASS, DIRT], STONE)


@functools.lru_cache(maxsize=256)
def history(state: GameState, ticks: int) -> tuple[np.ndarray, np.ndarray]:
  """The land (K, R, C) and the player's (row, column) (K, 2) at ticks 0 to `ticks`; the player is no kind in it."""
  cells = land(state.terrain)
  row = int((cells[:, state.column] != AIR).argmax()) - 1
  player = _Player(cells, row, state.column, DIRECTIONS[state.direction])
  grids, places = [cells.copy()], [(player.row, player.column)]
  for _ in range(ticks):
    player.act(state.policy)
    grids.append(player.cells.copy())
    places.append((player.row, player.column))
  return np.stack(grids), np.array(places)


@dataclasses.dataclass
class _Player:
  """Where a player is in its land, which way it looks, and how many blocks it took or laid."""

  cells: np.ndarray
  row: int
  column: int
  way: int
  changed: int = 0

  def act(self, policy: str) -> None:
    """One tick."""
    if self._is(1, 0, AIR):
      self.row += 1
    elif policy == "digs" and self.changed < _DEEPEST:
      self._set(1, 0, AIR)
    elif policy == "tunnels" and self._inside() and not self._is(0, self.way, AIR):
      self._set(0, self.way, AIR)
    elif policy == "tunnels" and self.changed == 0 and self._inside() and self.row < SURFACE:
      self._set(1, 0, AIR)  # level land has nothing in the way: go down first
    elif policy == "builds" and self.changed < _HIGHEST and self._inside() and self._is(0, self.way, AIR):
      self._set(0, self.way, BRICK)
    elif policy == "digs":
      pass
    else:
      self._step()

  def _is(self, down: int, across: int, kind: int) -> bool:
    return bool(self.cells[self.row + down, self.column + across] == kind)

  def _set(self, down: int, across: int, kind: int) -> None:
    self.cells[self.row + down, self.column + across] = kind
    self.changed += 1

  def _inside(self) -> bool:
    return LEFT <= self.column + self.way <= RIGHT

  def _step(self) -> None:
    """A step to the side, up one block where one is in the way; a wall of two, or the end of its ways, turns it."""
    if not self._inside():
      self.way = -self.way
    elif self._is(0, self.way, AIR):
      self.column += self.way
    elif self._is(-1, self.way, AIR) and self._is(-1, 0, AIR):
      self.row, self.column = self.row - 1, self.column + self.way
    else:
      self.way = -self.way


def lawful(before_RC: np.ndarray, after_RC: np.ndarray, ticks: int) -> bool:
  """Whether the rules lead from one look to another in at most so many ticks; kinds as in `Look`.

  One player in both; it moved at most a cell a tick, into air, up only onto a block beside it, and fell where nothing
  was beneath it; blocks changed at most one a tick, within its reach, from block to air or from air to brick. Who
  stands still keeps the rules. Of more than one tick the numbers of cells alone are asked.
  """
  first, last = _places(before_RC), _places(after_RC)
  if len(first) != 1 or len(last) != 1 or before_RC[tuple(first[0])] != after_RC[tuple(last[0])]:
    return False
  (row, column), moved = first[0], last[0] - first[0]
  without = lambda kinds_RC: np.where(kinds_RC > BRICK, AIR, kinds_RC)
  was_RC, is_RC = without(before_RC), without(after_RC)
  changed = np.argwhere(was_RC != is_RC)
  taken = [was_RC[tuple(cell)] > AIR and is_RC[tuple(cell)] == AIR for cell in changed]
  laid = [was_RC[tuple(cell)] == AIR and is_RC[tuple(cell)] == BRICK for cell in changed]
  reached = [np.abs(cell - first[0]).max() <= ticks for cell in changed]
  if np.abs(moved).max() > ticks or len(changed) > ticks or not all(reached):
    return False
  if not all(up or down for up, down in zip(taken, laid, strict=True)):
    return False
  if ticks > 1:
    return True
  if was_RC[tuple(last[0])] != AIR or (len(changed) and moved.any()):
    return False
  falls = row + 1 < len(was_RC) and was_RC[row + 1, column] == AIR
  if falls or moved[0] > 0:
    return bool(falls and (moved == (1, 0)).all())
  return bool(moved[0] == 0 or (moved[1] != 0 and was_RC[row, column + moved[1]] != AIR))  # up onto a block alone


def _places(kinds_RC: np.ndarray) -> np.ndarray:
  """(row, column) of every player, (N, 2)."""
  return np.argwhere(kinds_RC > BRICK)


class Game:
  """The world of blocks; see the module's docstring and `world.World`.

  Attributes of its exam: player: the player of that name, and no other, is seen. terrain: the land that the clip begins
  with. policy: blocks are taken and laid, and ways gone, as its policy does. lawful: share of transitions from tick to
  tick that keep the rules, between ticks through which nothing changes. place: the player is within a cell of where it
  should be, most of the time.
  """

  name = "game"
  version = 1
  attributes: tuple[str, ...] = ("player", "terrain", "policy", "lawful", "place")

  def sample(self, rng: np.random.Generator, held_out: bool = False) -> GameState:
    """A random state; held_out: of the pairs of player and policy that are held out, otherwise of the others."""
    pairs = [
      (player, policy) for player in PLAYERS for policy in POLICIES if ((player, policy) in HELD_OUT) == held_out
    ]
    player, policy = pairs[rng.integers(len(pairs))]
    direction = str(rng.choice(list(DIRECTIONS)))
    column = int(rng.integers(LEFT, LEFT + 2) if direction == "right" else rng.integers(RIGHT - 1, RIGHT + 1))
    return GameState(player, policy, str(rng.choice(TERRAINS)), direction, column)

  def render(self, state: GameState, height: int, width: int, frames: int, fps: float) -> np.ndarray:
    """Frames of the state, float32 (T, H, W, 3) in [-1, 1]; see `world.World`."""
    ticks_T = _ticks(scene.frame_times(frames, fps))
    grids_KRC, places_K2 = history(state, int(ticks_T[-1]))
    short = min(height, width)
    frames_THWC = np.empty((frames, height, width, 3), np.float32)
    last = -1
    for frame, tick in enumerate(ticks_T.tolist()):
      if tick != last:
        picture = _tiles(grids_KRC[tick], tuple(places_K2[tick]), state.player)
        drawn = _resampled(_resampled(picture, height, short).swapaxes(0, 1), width, short).swapaxes(0, 1)
      frames_THWC[frame], last = drawn, tick
    return frames_THWC

  def caption(self, state: GameState, style: str, still: bool = False) -> str:
    """The state in words; see `world.World`."""
    lands = {
      "flat": "flat green land",
      "hill": "green land with a hill",
      "pit": "green land with a pit",
      "stairs": "green land that rises like stairs",
    }
    where = "far left" if state.column <= (LEFT + RIGHT) // 2 else "far right"
    if still:
      short, long = (
        f"{state.player} in a world of blocks",
        f"{state.player} stands on the {where} of {lands[state.terrain]}",
      )
      return scene.in_style({"short": short, "long": long + "."}, style)
    does = {
      "walks": f"walks {state.direction}wards, over what is in the way and back",
      "digs": "digs three blocks down and stays there",
      "tunnels": f"tunnels {state.direction}wards through the ground",
      "builds": f"builds a stair of two bricks {state.direction}wards and walks on",
    }[state.policy]
    short = f"{state.player} {state.policy} in a world of blocks"
    return scene.in_style(
      {"short": short, "long": f"{state.player} begins on the {where} of {lands[state.terrain]} and {does}."}, style
    )

  def read(self, frames_THWC: np.ndarray, fps: float) -> Look:
    """What is in each cell; see `Look`. Values outside [-1, 1] are clipped."""
    frames, height, width = frames_THWC.shape[:3]
    frames_THWC = hues.clean(frames_THWC)
    short = min(height, width)
    rows, columns = _whole(height, short), _whole(width, short)
    mean_TRCX = _middles(_middles(frames_THWC, 1, rows, short), 2, columns, short)
    distance = np.linalg.norm(mean_TRCX[..., None, :] - _COLOURS, axis=-1)
    kinds_TRC = np.where(distance.min(axis=-1) < _FAR, distance.argmin(axis=-1), -1)
    return Look(scene.frame_times(frames, fps), kinds_TRC, rows.start, columns.start)

  def describe(self, state: GameState) -> Look:
    """What is read from the standard clip."""
    return self.read(self.render(state, *_STANDARD), _STANDARD[-1])

  def compare(self, reading: Look, state: GameState) -> dict[str, float]:
    """A mark from 0 to 1 for each attribute that applies; of an image, the player and the land alone."""
    kinds_TRC, ticks_T = reading.kinds_TRC, _ticks(reading.times_T)
    _, rows, columns = kinds_TRC.shape
    if min(rows, columns) == 0:
      return dict.fromkeys(("player", "terrain"), 0.0)
    window = (slice(reading.top, reading.top + rows), slice(reading.left, reading.left + columns))
    mine = BRICK + 1 + list(PLAYERS).index(state.player)
    right = {"player": float(((kinds_TRC == mine).sum((1, 2)) == 1).mean() > 0.8 and not _others(kinds_TRC, mine))}
    first_RC = np.where(kinds_TRC[0] > BRICK, AIR, kinds_TRC[0])
    likeness = {terrain: float((land(terrain)[window] == first_RC).mean()) for terrain in TERRAINS}
    best = max(likeness, key=likeness.__getitem__)
    right["terrain"] = float(best == state.terrain and likeness[best] > 0.85)
    picked = np.flatnonzero(np.append(np.diff(ticks_T), 1))  # the last frame of each tick
    if len(picked) > 1:
      looks, ticks = kinds_TRC[picked], ticks_T[picked]
      steady_T = _alike(kinds_TRC, looks[np.searchsorted(ticks, ticks_T)])
      steady_K = np.array([steady_T[ticks_T == tick].all() for tick in ticks])
      steps = zip(looks, looks[1:], np.diff(ticks).tolist(), strict=False)
      right["lawful"] = float(np.mean(steady_K[1:] & steady_K[:-1] & [lawful(*step) for step in steps]))
      grids_KRC, places_K2 = history(state, int(ticks[-1]))
      right["policy"] = float(_acts(looks, grids_KRC[ticks][(slice(None), *window)], places_K2[ticks]))
      off = [
        np.abs(_places(look) + (reading.top, reading.left) - place).max(initial=0)
        for look, place in zip(looks, places_K2[ticks], strict=True)
      ]
      seen = [len(_places(look)) == 1 for look in looks]
      right["place"] = float(np.mean(np.array(seen) & (np.array(off) <= 1)) >= 0.7)
    return {name: right[name] for name in self.attributes if name in right}

  def examine(self, frames_THWC: np.ndarray, fps: float, state: GameState) -> dict[str, float]:
    """Reads the clip and compares; see `compare`."""
    return self.compare(self.read(frames_THWC, fps), state)


def _alike(some_TRC: np.ndarray, others_TRC: np.ndarray) -> np.ndarray:
  """Whether two looks have their players in the same cells, and nearly all of the land's, bool (T,)."""
  players = ((some_TRC > BRICK) == (others_TRC > BRICK)).all(axis=(1, 2))
  return players & ((some_TRC == others_TRC).mean(axis=(1, 2)) > 0.95)


def _others(kinds_TRC: np.ndarray, mine: int) -> bool:
  """Another player is seen in a fifth of the frames or more."""
  return bool((((kinds_TRC > BRICK) & (kinds_TRC != mine)).any(axis=(1, 2))).mean() > 0.2)


def _acts(looks_KRC: np.ndarray, truth_KRC: np.ndarray, places_K2: np.ndarray) -> bool:
  """Whether as many blocks were taken and laid, and as long a way gone, as by the policy, give or take half."""

  def deeds(kinds_KRC: np.ndarray) -> np.ndarray:
    solid = (kinds_KRC > AIR) & (kinds_KRC <= BRICK)
    return np.array([(solid[0] & ~solid[-1]).sum(), ((kinds_KRC[-1] == BRICK) & ~solid[0]).sum()])

  wanted_2, found_2 = deeds(truth_KRC), deeds(looks_KRC)
  columns = [_places(look)[0][1] for look in looks_KRC if len(_places(look)) == 1]
  wanted_way, found_way = np.ptp(places_K2[:, 1]), np.ptp(columns) if columns else 0
  near = lambda found, wanted: abs(found - wanted) <= 0.5 * wanted  # a single deed or step may not be missing
  return bool(near(found_2[0], wanted_2[0]) and near(found_2[1], wanted_2[1]) and near(found_way, wanted_way))


def _ticks(times_T: np.ndarray) -> np.ndarray:
  """The tick that each frame shows."""
  return np.floor(times_T / TICK + 1e-6).astype(int)


def _edges(side: int, short: int) -> np.ndarray:
  """Where the land's cells begin and end along a side of the frame, in pixels, (SIDE + 1,)."""
  return side / 2 + (np.arange(SIDE + 1) - SIDE / 2) * short / VISIBLE


def _whole(side: int, short: int) -> slice:
  """The cells that a side shows whole."""
  edges = _edges(side, short)
  inside = np.flatnonzero((edges[:-1] >= -1e-6) & (edges[1:] <= side + 1e-6))
  return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


_TILE = 4  # sub-cells along a cell: what a block's texture is drawn in


def _resampled(picture: np.ndarray, side: int, short: int) -> np.ndarray:
  """The first axis, sub-cells of the land, as `side` pixels around its middle: each the mean of what it covers."""
  step = VISIBLE * _TILE / short  # sub-cells in a pixel
  edges = len(picture) / 2 + (np.arange(side + 1) - side / 2) * step
  beyond = max(0, int(np.ceil(-edges[0])))  # a frame of more than the whole land: its last cells go on
  picture = np.pad(picture, ((beyond, beyond + 1), (0, 0), (0, 0)), mode="edge")
  total = np.concatenate([np.zeros_like(picture[:1], np.float64), np.cumsum(picture, axis=0, dtype=np.float64)])
  whole = np.floor(edges + beyond).astype(int)
  part = (edges + beyond - whole)[:, None, None]
  return (np.diff(total[whole] + part * picture[whole], axis=0) / step).astype(np.float32)


def _middles(frames: np.ndarray, axis: int, cells: slice, short: int) -> np.ndarray:
  """Means over the pixels of the middle half of each of the cells along an axis."""
  edges = _edges(frames.shape[axis], short)
  quarter = (edges[1] - edges[0]) / 4
  means = []
  for low, high in zip(edges[:-1][cells] + quarter, edges[1:][cells] - quarter, strict=True):
    first = int(np.round(low))
    pixels = np.arange(first, max(int(np.round(high)), first + 1)).clip(0, frames.shape[axis] - 1)
    means.append(frames.take(pixels, axis=axis).mean(axis=axis))
  empty = np.zeros([0 if at == axis else size for at, size in enumerate(frames.shape)], np.float32)
  return np.stack(means, axis=axis) if means else empty


def _tiles(cells_RC: np.ndarray, place: tuple[int, int], player: str) -> np.ndarray:
  """The land's sub-cells in colours, float32 (SIDE * _TILE, SIDE * _TILE, 3).

  Grass has a bright edge above, stones and bricks a dark one below, and the player two eyes.
  """
  picture = np.repeat(np.repeat(_COLOURS[cells_RC], _TILE, axis=0), _TILE, axis=1)
  kinds = np.repeat(np.repeat(cells_RC, _TILE, axis=0), _TILE, axis=1)
  line = np.arange(SIDE * _TILE)[:, None] % _TILE
  picture[(kinds == GRASS) & (line == 0)] += 0.25
  picture[((kinds == STONE) | (kinds == BRICK)) & (line == _TILE - 1)] -= 0.2
  row, column = place[0] * _TILE, place[1] * _TILE
  picture[row : row + _TILE, column : column + _TILE] = PLAYERS[player]
  picture[row, [column, column + _TILE - 1]] = 1.0
  return picture
