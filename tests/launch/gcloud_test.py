"""launch/gcloud.py: what gcloud and the workers answer, and answers that can't be trusted."""

import json

import common
import gcloud
import pytest
import worker
from gcloud import Pod, Seen

POD = Pod("p", "us-central2-b")
NODE = {"acceleratorType": "v4-8", "runtimeVersion": "r"}


def answer(monkeypatch, out: object, err: str = "", code: int = 0) -> Seen:
  text = out if isinstance(out, str) else json.dumps(out)
  monkeypatch.setattr(common, "capture", lambda words, limit: common.Result(code, text, err))
  return gcloud.see(POD)


def described(state: dict) -> dict:
  return {"state": state, "tpu": {"nodeSpec": [{"node": NODE}]}}


def test_the_state_and_kind_of_a_resource_are_read(monkeypatch):
  assert answer(monkeypatch, described({"state": "ACTIVE"})) == Seen("ACTIVE", "v4-8", "r")
  failed = {"state": "FAILED", "failedData": {"error": {"code": 8, "message": "no capacity"}}}
  assert answer(monkeypatch, described(failed)) == Seen("FAILED", "v4-8", "r", "no capacity")


def test_not_found_is_absent_and_any_other_failure_is_unknown(monkeypatch):
  assert answer(monkeypatch, "", "ERROR: (x) NOT_FOUND: Resource 'p' was not found.", 1) == Seen("ABSENT")
  seen = answer(monkeypatch, "", "ERROR: (x) You do not have an active account.\n", 1)
  assert seen == Seen("UNKNOWN", error="ERROR: (x) You do not have an active account.")


@pytest.mark.parametrize("out", ["", "{", "[]", "null", "{}", {"state": "ACTIVE"}, {"state": {"state": "ACTIVE"}}])
def test_an_answer_that_lacks_something_is_never_taken_for_a_state(monkeypatch, out):
  assert answer(monkeypatch, out).state == "UNKNOWN"


def report(host: str, **more) -> str:
  return json.dumps({worker.MARK: host, "state": "running", "code": None, "words": [], "tail": []} | more)


def test_reports_are_found_among_other_lines_and_sorted():
  out = "\n".join(["Using ssh batch size of 1.", report("t-w-1"), "SSH: key added", report("t-w-0"), ""])
  assert [each[worker.MARK] for each in gcloud.reports(common.Result(0, out, ""))] == ["t-w-0", "t-w-1"]


@pytest.mark.parametrize(
  "result",
  [
    common.Result(0, "", ""),
    common.Result(255, report("a"), "ssh: connection refused"),
    common.Result(0, report("a") + "\n" + report("b")[:30], ""),
    common.Result(0, report("a")[:20] + report("b") + report("a")[20:], ""),
    common.Result(0, report("a") + report("b"), ""),
  ],
  ids=["none", "one host failed", "cut", "torn", "two in a line"],
)
def test_where_a_report_is_missing_or_torn_there_is_no_answer(result):
  assert gcloud.reports(result) is None
