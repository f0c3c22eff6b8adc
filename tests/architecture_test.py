"""The layout as a test: one-way imports, size budgets, a test for each file, banned calls, small configs.

Each check reads the sources without importing them (configs are loaded, to count their leaves) and yields one
line a violation: where it is, what is wrong, what to do. The second half breaks each rule in a tiny package
and sees that the check notices. A budget that the better design breaks is raised here, with the reason.
"""

import ast
import functools
import graphlib
import importlib.util
import inspect
import pathlib
import re
from collections.abc import Callable, Iterator

import ml_collections
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "sora_jax"

# A row may import the rows above it. Inside a row, only what SIDEWAYS lists.
LAYERS = (
  ("errors",),
  ("settings",),
  ("runtime", "clips"),
  ("sharding", "patches", "packing"),
  ("checkpoints",),
  ("models", "diffusion", "worlds", "video"),
  ("data",),
  ("train", "inference", "curation"),
  ("evaluation", "plan", "report", "scaling"),
  ("jobs",),
  ("studio",),
  ("cli",),
)
# Pages show what evaluation found.
SIDEWAYS = {"report": {"evaluation"}}
RANKS = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}

FILE_LINES = 400
FUNCTION_LINES = 60
LONG_FUNCTIONS = {"train/loop.py": 120}  # the loop is read from top to bottom, as a recipe
PARAMETERS = 8
# Every setting of a run is in one file: data, ranks and the memory of a step took it past 60; weight decay, uniform
# noise levels and the autoencoder's own dtype and remat to 75.
# The loss on held-out clips has three: how often, of which, of how many; sweeps have three: one order of the data and
# one set of latents for all runs, and the width that rates are tuned at.
CONFIG_LEAVES = 92
# A config is loaded by its path and may build on another: pathlib and runpy reach that file from anywhere.
CONFIG_IMPORTS = {"ml_collections", "configs", "pathlib", "runpy"}

BANNED_NAMES = {
  "nnx.jit": "use jax.jit on a pure function of (params, batch)",
  "nnx.scan": "use jax.lax.scan over stacked layers",
  "nnx.Optimizer": "use optax with the parameters as a plain dict",
  "nn.with_logical": "name the axes with sharding.constrain",
  "pickle": "files are untrusted: use Orbax, JSON or ArrayRecord",
  "torch": "the package needs JAX only: convert outside it",
  "os.system": "use subprocess.run with a list",
}
BANNED_CALLS = {"eval": "parse the text instead", "exec": "write the code out"}
BANNED_FLAGS = {"shell": "pass the command as a list", "allow_pickle": "store plain arrays"}
# Where JAX has no public name for what is needed; each import says so.
PRIVATE = {"runtime/cluster.py", "runtime/hosts.py"}
# What one host reads is a matter of numbers (its share of a batch): a job asks the other hosts, before or after.
COLLECTIVE = tuple(f"{PACKAGE}.runtime.{name}" for name in ("hosts", "run", "stopping"))
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b")
MESH_AXES = {"fsdp", "tensor", "ring", "ulysses"}

Check = Callable[[pathlib.Path], Iterator[str]]


# Reading sources.


@functools.cache
def parse(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding="utf-8"), str(path))


def sources(root: pathlib.Path) -> list[pathlib.Path]:
  return sorted((root / PACKAGE).rglob("*.py"))


def inside(path: pathlib.Path, root: pathlib.Path) -> str:
  return path.relative_to(root / PACKAGE).as_posix()


def module_name(path: pathlib.Path, root: pathlib.Path) -> str:
  parts = path.relative_to(root).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str, str]]:
  """(line, module, name or "") of every import, lazy ones too; `package` resolves the relative ones."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      above = package[: len(package) - node.level + 1] if node.level else []
      module = ".".join(above + ([node.module] if node.module else []))
      yield from ((node.lineno, module, alias.name) for alias in node.names)


def edges(path: pathlib.Path, root: pathlib.Path) -> Iterator[tuple[int, str]]:
  """(line, module of ours) for what a file imports from the package."""
  package = list(path.relative_to(root).parent.parts)
  for line, module, name in imported(parse(path), package):
    if module.split(".")[0] == PACKAGE:
      below = root.joinpath(*module.split("."), name)
      is_module = name and (below.is_dir() or below.with_suffix(".py").is_file())
      yield line, f"{module}.{name}" if is_module else module


def unit_of(module: str) -> str:
  return (module.split(".") + [""])[1]


def dotted(node: ast.AST) -> str:
  """`a.b.c` of an attribute chain, "" of anything else."""
  if isinstance(node, ast.Name):
    return node.id
  if isinstance(node, ast.Attribute):
    base = dotted(node.value)
    return f"{base}.{node.attr}" if base else ""
  return ""


# The checks.


def layer_violations(root: pathlib.Path) -> Iterator[str]:
  for path in sources(root):
    unit = unit_of(module_name(path, root))
    if unit and unit not in RANKS:
      yield f"{path}:1: {unit} has no layer; add it to LAYERS in tests/architecture_test.py"
      continue
    for line, module in edges(path, root):
      other = unit_of(module)
      if other == unit or not other or other not in RANKS:
        continue
      if not unit:
        yield f"{path}:{line}: the package's root imports {module}; keep it free of imports"
      elif RANKS[other] > RANKS[unit]:
        yield f"{path}:{line}: {unit} imports {other}, a higher layer; pass it in, or move the line up"
      elif RANKS[other] == RANKS[unit] and other not in SIDEWAYS.get(unit, ()):
        yield f"{path}:{line}: {unit} imports {other}, its neighbour; move what they share to a lower layer"


def cycle_violations(root: pathlib.Path) -> Iterator[str]:
  paths = {module_name(path, root): path for path in sources(root)}
  graph = {name: {other for _, other in edges(path, root)} - {name} for name, path in paths.items()}
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    loop = error.args[1][::-1]
    path = paths[loop[0]]
    line = next(line for line, module in edges(path, root) if module == loop[1])
    yield f"{path}:{line}: import cycle {' -> '.join(loop)}; move what they share to a file below both"


def functions(tree: ast.AST, method: bool = False) -> Iterator[tuple[ast.FunctionDef, bool]]:
  """Every function with whether it is a method (nested ones too)."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      yield node, method
      yield from functions(node)
    else:
      yield from functions(node, isinstance(node, ast.ClassDef))


def parameter_count(node: ast.FunctionDef, method: bool) -> int:
  """Keyword-only parameters, *args and **kwargs count; self and cls do not."""
  given = node.args
  names = [arg.arg for arg in given.posonlyargs + given.args + given.kwonlyargs]
  names += [arg.arg for arg in (given.vararg, given.kwarg) if arg]
  return len(names) - (method and bool(names) and names[0] in ("self", "cls"))


def budget_violations(root: pathlib.Path) -> Iterator[str]:
  for path in sources(root):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > FILE_LINES:
      yield f"{path}:{lines}: {lines} lines, the budget is {FILE_LINES}; split it by subject"
    longest = LONG_FUNCTIONS.get(inside(path, root), FUNCTION_LINES)
    for node, method in functions(parse(path)):
      length, count = node.end_lineno - node.lineno + 1, parameter_count(node, method)
      if length > longest:
        yield f"{path}:{node.lineno}: {node.name} has {length} lines, the budget is {longest}; extract a step"
      if count > PARAMETERS:
        where = f"{path}:{node.lineno}: {node.name}"
        yield f"{where} takes {count} parameters, the budget is {PARAMETERS}; group them in a dataclass"


def defines(tree: ast.Module) -> bool:
  return any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for n in ast.walk(tree))


def mirror_violations(root: pathlib.Path) -> Iterator[str]:
  for path in sources(root):
    if not (path.parent / "__init__.py").is_file():
      yield f"{path}:1: its folder is not a package, so an install leaves it out; add an __init__.py there"
    if path.name == "__init__.py":
      if defines(parse(path)):
        yield f"{path}:1: an __init__.py holds code; move it to a named file, which has a test"
      continue
    test = root / "tests" / pathlib.Path(inside(path, root)).with_name(f"{path.stem}_test.py")
    if path.name == "__main__.py" or not parse(path).body:
      continue
    if not test.is_file():
      yield f"{path}:1: has no test file; add {test.relative_to(root).as_posix()}"
    elif not any(node.name.startswith("test") for node, _ in functions(parse(test))):
      yield f"{test}:1: holds no test; add one, or remove {inside(path, root)}"


def banned_name(name: str) -> str:
  return next((ban for ban in BANNED_NAMES if name == ban or name.startswith((f"{ban}.", f"{ban}_"))), "")


def banned_nodes(path: pathlib.Path, root: pathlib.Path) -> Iterator[tuple[int, str, str]]:
  """(line, what, instead) of every banned construct."""
  tree = parse(path)
  for line, module, name in imported(tree, list(path.relative_to(root).parent.parts)):
    tail = f"{module.split('.')[-1]}.{name}"
    if ban := banned_name(module) or banned_name(tail):
      yield line, ban, BANNED_NAMES[ban]
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute):
      name = dotted(node).removeprefix("flax.")
      ban = next((b for b in BANNED_NAMES if "." in b and (name == b or name.startswith(f"{b}_"))), "")
      if ban:
        yield node.lineno, name, BANNED_NAMES[ban]
    elif isinstance(node, ast.Call):
      if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
        yield node.lineno, f"{node.func.id}()", BANNED_CALLS[node.func.id]
      for keyword in node.keywords:
        if keyword.arg in BANNED_FLAGS and getattr(keyword.value, "value", True) is not False:
          yield keyword.value.lineno, f"{keyword.arg}=", BANNED_FLAGS[keyword.arg]
    elif isinstance(node, ast.With | ast.AsyncWith):
      for item in node.items:
        if dotted(item.context_expr).split(".")[-1].lower().endswith("mesh"):
          yield node.lineno, f"with {dotted(item.context_expr)}:", "enter it by jax.set_mesh"


def banned_violations(root: pathlib.Path) -> Iterator[str]:
  for path in sources(root):
    for line, what, instead in banned_nodes(path, root):
      yield f"{path}:{line}: {what} is banned; {instead}"
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
      if found := UNFINISHED.search(text):
        yield f"{path}:{number}: {found[0]} left in the source; do it, or open an issue and remove the mark"


def mesh_axis_violations(root: pathlib.Path) -> Iterator[str]:
  for path in sources(root):
    if inside(path, root) == "sharding.py":
      continue
    for node in ast.walk(parse(path)):
      if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MESH_AXES:
        yield f'{path}:{node.lineno}: names the mesh axis "{node.value}"; only sharding.py may, ask it'


def platform_violations(root: pathlib.Path) -> Iterator[str]:
  for path in sources(root):
    if inside(path, root) == "sharding.py":
      continue
    for node in ast.walk(parse(path)):
      if isinstance(node, ast.Attribute) and node.attr == "default_backend":
        yield f"{path}:{node.lineno}: asks JAX for its backend; sharding.platform() knows what is compiled for"


def collective_violations(root: pathlib.Path) -> Iterator[str]:
  for path in sources(root):
    if unit_of(module_name(path, root)) == "data":
      for line, module, name in imported(parse(path), list(path.relative_to(root).parent.parts)):
        if found := {module, f"{module}.{name}"}.intersection(COLLECTIVE):
          yield f"{path}:{line}: data imports {min(found)}; let the job ask the other hosts"


def private_violations(root: pathlib.Path) -> Iterator[str]:
  for path in sources(root):
    if inside(path, root) not in PRIVATE:
      for line, module, name in imported(parse(path), list(path.relative_to(root).parent.parts)):
        if any(re.match("_[^_]", each) for each in [*module.split("."), name]):
          yield f"{path}:{line}: {module} {name} is private; use the library's public interface"


def leaves(config: ml_collections.ConfigDict) -> int:
  values = [value for _, value in config.items(preserve_field_references=True)]
  return sum(leaves(value) if isinstance(value, ml_collections.ConfigDict) else 1 for value in values)


def load_config(path: pathlib.Path) -> ml_collections.ConfigDict:
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  needed = [p for p in inspect.signature(module.get_config).parameters.values() if p.default is p.empty]
  return module.get_config(*[""] * len(needed))


def config_violations(root: pathlib.Path) -> Iterator[str]:
  for path in sorted((root / "configs").glob("*.py")):
    for line, module, _ in imported(parse(path), ["configs"]):
      if module.split(".")[0] not in CONFIG_IMPORTS:
        yield f"{path}:{line}: a config imports {module}; give plain values, the reader builds from them"
    if path.stem.startswith("_") or "get_config" not in {node.name for node, _ in functions(parse(path))}:
      continue
    if (count := leaves(load_config(path))) > CONFIG_LEAVES:
      yield f"{path}:1: {count} leaves, the budget is {CONFIG_LEAVES}; drop what is derived or never changes"


# The checks themselves: each must notice its violation, and nothing in a sound package.

TEST = "def test_it(): ...\n"
SOUND = {
  "sora_jax/__init__.py": '__version__ = "0.0.0"\n',
  "sora_jax/clips.py": "def seconds(frames, fps):\n  return frames / fps\n",
  "sora_jax/sharding.py": 'AXES = ("data", "fsdp", "context", "tensor")\n',
  "sora_jax/worlds/__init__.py": "",
  "sora_jax/worlds/ball.py": "from sora_jax import clips\n\n\ndef render():\n  return clips.seconds(1, 2)\n",
  "sora_jax/data/__init__.py": "",
  "sora_jax/data/sources.py": "from sora_jax.worlds import ball\nfrom ..worlds.ball import render\n",
  "sora_jax/models/__init__.py": "",
  "sora_jax/train/__init__.py": "",
  "sora_jax/cli/__init__.py": "",
  "tests/clips_test.py": TEST,
  "tests/sharding_test.py": "class TestAxes:\n  def test_names(self): ...\n",
  "tests/worlds/ball_test.py": TEST,
  "tests/data/sources_test.py": TEST,
  "configs/dit.py": (
    "from ml_collections import config_dict as cd\n\n\ndef get_config(arg=''):\n"
    "  return cd.ConfigDict({'steps': cd.placeholder(int), 'train': {'rate': 1e-3}})\n"
  ),
}


def body(lines: int) -> str:
  return "def long():\n" + "  pass\n" * (lines - 1)


def config(count: int) -> str:
  fields = ", ".join(f"f{i}={i}" for i in range(count))
  return f"import ml_collections as m\n\n\ndef get_config():\n  return m.ConfigDict(dict(a=dict({fields})))\n"


# Exactly at every limit, and words that only look like a violation.
LIMITS = {
  "sora_jax/models/dit.py": '"""Never pickle, nnx.jit or eval( here."""\n\n' + body(60),
  "sora_jax/train/loop.py": "\n" * 280 + body(120),
  "sora_jax/clips.py": "class C:\n  def f(self, a, b, c, d, e, g, h, i): ...\n\n\nload(allow_pickle=False)\n",
  "sora_jax/packing/__init__.py": "",
  "sora_jax/packing/rows.py": "from sora_jax.clips import C\n\nmodel.eval()\n",
  "tests/models/dit_test.py": TEST,
  "tests/train/loop_test.py": TEST,
  "tests/packing/rows_test.py": TEST,
  "configs/_shared.py": config(99),
  "configs/dit.py": config(60),
}

BROKEN: dict[Check, list[tuple[str, str, str]]] = {
  layer_violations: [
    ("sora_jax/clips.py", "import sora_jax.models\n", "clips.py:1: clips imports models, a higher"),
    (
      "sora_jax/clips.py",
      "def f():\n  from sora_jax import cli\n",
      "clips.py:2: clips imports cli, a higher",
    ),
    (
      "sora_jax/models/dit.py",
      "from ..data import sources\n",
      "dit.py:1: models imports data, a higher",
    ),
    ("sora_jax/worlds/w.py", "from sora_jax.data import x\n", "w.py:1: worlds imports data, a higher"),
    ("sora_jax/inference/generator.py", "from sora_jax import train\n", "inference imports train, its neighbour"),
    ("sora_jax/curation/build.py", "from .. import train\n", "curation imports train, its neighbour"),
    ("sora_jax/train/loop.py", "from sora_jax.inference import codec\n", "train imports inference, its neighbour"),
    ("sora_jax/plan/step.py", "from sora_jax.jobs import train\n", "plan imports jobs, a higher"),
    ("sora_jax/jobs/demo.py", "import sora_jax.cli\n", "demo.py:1: jobs imports cli, a higher"),
    ("sora_jax/utils.py", "", "utils.py:1: utils has no layer"),
    ("sora_jax/__init__.py", "from . import clips\n", "__init__.py:1: the package's root"),
  ],
  cycle_violations: [
    ("sora_jax/worlds/ball.py", "\nimport sora_jax.data.sources\n", "import cycle"),
    ("sora_jax/clips.py", "from . import sharding\nfrom .worlds import ball\n", "clips.py:2: import cycle"),
  ],
  budget_violations: [
    ("sora_jax/clips.py", "\n" * 401, "clips.py:401: 401 lines"),
    ("sora_jax/clips.py", body(61), "clips.py:1: long has 61 lines"),
    ("sora_jax/train/loop.py", body(121), "loop.py:1: long has 121 lines"),
    ("sora_jax/clips.py", "def f(a, b, c, d, *e, g, h, i, j): ...\n", "f takes 9 parameters"),
  ],
  mirror_violations: [
    ("sora_jax/models/dit.py", "x = 1\n", "add tests/models/dit_test.py"),
    ("tests/clips_test.py", "", "clips_test.py:1: holds no test"),
    ("sora_jax/data/__init__.py", "def f(): ...\n", "an __init__.py holds code"),
    ("sora_jax/diffusion/x.py", "", "its folder is not a package"),
  ],
  banned_violations: [
    ("sora_jax/clips.py", "with mesh:\n  pass\n", "clips.py:1: with mesh: is banned"),
    ("sora_jax/clips.py", "with self.mesh:\n  pass\n", "with self.mesh: is banned"),
    ("sora_jax/clips.py", "step = nnx.jit(f)\n", "nnx.jit is banned"),
    ("sora_jax/clips.py", "step = flax.nnx.Optimizer(f)\n", "nnx.Optimizer is banned"),
    ("sora_jax/clips.py", "from flax.nnx import scan\n", "nnx.scan is banned"),
    ("sora_jax/clips.py", "nn.with_logical_constraint(x)\n", "nn.with_logical_constraint is banned"),
    ("sora_jax/clips.py", "\nimport torch.nn\n", "clips.py:2: torch is banned"),
    ("sora_jax/clips.py", "from pickle import load\n", "pickle is banned"),
    ("sora_jax/clips.py", "x = eval(text)\n", "eval() is banned"),
    ("sora_jax/clips.py", "run(c, shell=True)\n", "shell= is banned"),
    ("sora_jax/clips.py", "np.load(f, allow_pickle=True)\n", "allow_pickle= is banned"),
    ("sora_jax/clips.py", "x = 1  # TO" + "DO later\n", "left in the source"),
  ],
  mesh_axis_violations: [
    ("sora_jax/clips.py", "\nx = P('fsdp')\n", 'clips.py:2: names the mesh axis "fsdp"'),
  ],
  platform_violations: [
    ("sora_jax/clips.py", "\nx = jax.default_backend()\n", "clips.py:2: asks JAX for its backend"),
  ],
  collective_violations: [
    (
      "sora_jax/data/sources.py",
      "from sora_jax.runtime import hosts\n",
      "sources.py:1: data imports sora_jax.runtime.hosts",
    ),
    (
      "sora_jax/data/sources.py",
      "\nfrom ..runtime.run import Run\n",
      "sources.py:2: data imports sora_jax.runtime.run",
    ),
  ],
  private_violations: [
    ("sora_jax/clips.py", "from jax._src import clusters\n", "clips.py:1: jax._src clusters is private"),
    (
      "sora_jax/clips.py",
      "\nimport orbax.checkpoint._src.path\n",
      "clips.py:2: orbax.checkpoint._src.path  is private",
    ),
  ],
  config_violations: [
    ("configs/dit.py", "import jax\n", "dit.py:1: a config imports jax"),
    ("configs/dit.py", "from sora_jax import clips\n", "a config imports sora_jax"),
    ("configs/dit.py", config(93), "dit.py:1: 93 leaves"),
  ],
}
CHECKS = tuple(BROKEN)
CASES = [pytest.param(check, *case, id=case[2]) for check, cases in BROKEN.items() for case in cases]


def make_package(root: pathlib.Path, changes: dict[str, str]) -> pathlib.Path:
  for name, text in (SOUND | changes).items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return root


@pytest.mark.parametrize(("check", "file", "text", "message"), CASES)
def test_a_violation_is_named(tmp_path: pathlib.Path, check: Check, file: str, text: str, message: str):
  found = list(check(make_package(tmp_path, {file: text})))
  assert any(message in line for line in found), found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("changes", [{}, LIMITS], ids=["small", "at_the_limits"])
def test_a_sound_package_passes(tmp_path: pathlib.Path, check: Check, changes: dict[str, str]):
  assert not list(check(make_package(tmp_path, changes)))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_keeps_the_rules(check: Check):
  assert sources(ROOT), "no sources found: the checks would pass on nothing"
  found = [line.replace(f"{ROOT}/", "") for line in check(ROOT)]
  assert not found, "\n" + "\n".join(found)
