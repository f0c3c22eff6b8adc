"""The demo's page in a real browser: opened from disk, it logs no error, and every picture decodes."""

import base64
import re
import shutil
import subprocess

import numpy as np
import pytest

from sora_jax.clips import Clip
from sora_jax.report.demo_page import ExamRow, Section, Shown, write_page
from sora_jax.worlds import world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
  "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
  "--disable-component-update --disable-sync --enable-logging=stderr"
).split()
# Runs in a copy of the page: what the reader's page may not do is allowed there. All of it while the page loads: the
# browser prints the page soon afterwards, whatever still waits. A picture that stops short leaves its last pixel clear.
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images], root = document.documentElement;
  const decodes = image => {
    const canvas = document.createElement("canvas"), brush = canvas.getContext("2d");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    if (!canvas.width) return false;
    brush.drawImage(image, 0, 0);
    return brush.getImageData(canvas.width - 1, canvas.height - 1, 1, 1).data[3] === 255;
  };
  const decoded = images.filter(decodes).length;
  root.dataset.probe = `${decoded} of ${images.length}, ${root.scrollWidth - root.clientWidth} too wide`;
});
</script>"""

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install it to run this test"),
]


def write_example(path) -> int:
  """A page with every part; returns how many pictures it holds."""
  simulator, rng = world.get_world("shapes"), np.random.default_rng(0)
  shown = []
  for frames, height, width in ((17, 32, 32), (17, 24, 40), (9, 40, 24), (1, 32, 32)):
    state = simulator.sample(rng)
    frames_THWC = simulator.render(state, height, width, frames, 8.0)
    prompt = simulator.caption(state, "long", still=frames == 1)
    marks = simulator.examine(frames_THWC, 8.0, state)
    start_HWC = frames_THWC[0] if frames == 9 else None
    shown.append(Shown(prompt, Clip(frames_THWC, 8.0, prompt, "a"), marks, start_HWC))
  write_page(
    path,
    title="Demo",
    lead="A page.",
    sections=[
      Section("Clips", "Some clips.", [*shown, Shown("x" * 300 + "<script>throw 1</script>", shown[0].clip, {})])
    ],
    exam=[ExamRow("direction", (0.9, 0.8, 0.95), 1.0, 0.97, 0.25)],
    curves={"Transformer": [{"step": k, "loss": 1 / k} for k in range(1, 31)], "Autoencoder": []},
    numbers=[("Tokens a second", "31,204", "")],
    facts=[("Config", "y" * 200)],
    commands=["sora demo --out out/demo " + "z" * 200],
  )
  return 6


def browse(page, profile, width: int) -> subprocess.CompletedProcess:
  command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", f"--window-size={width},900"]
  command += ["--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
  return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console(result: subprocess.CompletedProcess) -> list[str]:
  return [line for line in result.stderr.splitlines() if ":CONSOLE" in line]


def test_the_page_opens_from_disk_without_a_complaint(tmp_path):
  page = tmp_path / "page" / "index.html"
  write_example(page)
  result = browse(page, tmp_path / "profile", 1280)
  assert not console(result)
  assert "<h1>Demo</h1>" in result.stdout and "<script" not in result.stdout


def probed(text: str, page, width: int) -> list[str]:
  """What the probe says in a copy of the page that lets it run."""
  text, policies = re.subn(r"<meta http-equiv=[^\n]*\n", "", text)
  assert policies == 1
  page.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
  result = browse(page, page.parent / "profile", width)
  assert not console(result)
  return re.findall(r'data-probe="([^"]*)"', result.stdout)


@pytest.mark.parametrize("width", [1280, 500])
def test_every_picture_decodes_and_nothing_is_wider_than_the_window(tmp_path, width):
  page = tmp_path / "index.html"
  count = write_example(page)
  assert probed(page.read_text(encoding="utf-8"), page, width) == [f"{count} of {count}, 0 too wide"]


@pytest.mark.parametrize("share", [0, 0.05, 0.5])
def test_a_picture_that_is_cut_short_does_not_count(tmp_path, share):
  """Without this the test before could not fail."""
  page = tmp_path / "index.html"
  count = write_example(page)
  text = page.read_text(encoding="utf-8")
  still = re.findall(r' src="[^"]*base64,([^"]*)"', text)[3]
  data = base64.b64decode(still)
  cut = base64.b64encode(data[: int(share * len(data))]).decode()
  assert probed(text.replace(still, cut), page, 1280) == [f"{count - 1} of {count}, 0 too wide"]


def test_the_policy_stops_scripts_and_says_so(tmp_path):
  """Without this the first test could not fail: the console is read, and the policy is in force."""
  page = tmp_path / "index.html"
  write_example(page)
  text = page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>")
  page.write_text(text, encoding="utf-8")
  result = browse(page, tmp_path / "profile", 1280)
  assert any("Content Security Policy" in line for line in console(result))
  assert "data-probe" not in result.stdout.split("<script>")[0]
