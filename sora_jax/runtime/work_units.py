"""Long work cut into units, each of which leaves its result on disk: here, in several processes, or on Apache Beam.

A unit is a number. Doing one twice leaves the same result, so work is taken up again by doing the units that are
missing, and it does not matter who does which.
"""

import concurrent.futures
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from sora_jax.errors import InputError, SoraError
from sora_jax.runtime import preemption

Work = Callable[[int], Any]  # a module's function, or functools.partial of one: it is sent to other processes


def run(
  work: Work,
  units: Sequence[int],
  name: str,
  workers: int = 0,
  beam: Sequence[str] | None = None,
  preempted: Callable[[], bool] = lambda: False,
) -> None:
  """Does every unit, or those that it has begun when it is asked to stop.

  Args:
    work: does one, and leaves its result on disk.
    units: those to do.
    name: on the progress bar.
    workers: processes; 0 does the work in this one.
    beam: the options of an Apache Beam pipeline ("--runner=DataflowRunner", ...), which does the work instead.
    preempted: whether to stop, asked between units.

  Raises:
    Whatever a unit raises; units that are done stay done.
  """
  if not units:
    return
  if beam is not None:
    _run_beam(work, units, name, beam)
    return
  with tqdm(total=len(units), desc=name, file=sys.stderr, unit="unit", mininterval=1.0) as bar:
    if workers <= 1:
      for unit in units:
        if preempted():
          return
        work(unit)
        bar.update()
      return
    # Spawned: a forked process would inherit locks that JAX's threads hold.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _take, (work,)) as pool:
      with preemption.shielded():
        waiting = [pool.submit(_do, unit) for unit in units]
      try:
        for done in concurrent.futures.as_completed(waiting):
          done.result()
          bar.update()
          if preempted():
            pool.shutdown(wait=True, cancel_futures=True)
            return
      except concurrent.futures.process.BrokenProcessPool as error:
        for worker in multiprocessing.active_children():
          worker.kill()  # the pool ends them by SIGTERM, from which they are shielded
        raise WorkerLost(
          f"{name}: a worker was killed, as a system does that has no memory left: lower --workers; what is done stays"
        ) from error
      except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise


class WorkerLost(SoraError, RuntimeError):
  """A process that works for this one was killed, as a system does that has no memory left."""


_taken: list[Work] = []  # in a worker: what it does, sent once and not with every unit


def _take(work: Work) -> None:
  _taken[:] = [work]
  # The workers of a killed process would wait for units for ever, and get in the way of the next run.
  preemption.end_with_parent()


def _do(unit: int) -> None:
  _taken[0](unit)


def _run_beam(work: Work, units: Sequence[int], name: str, options: Sequence[str]) -> None:
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise InputError("a Beam runner needs Apache Beam: pip install 'sora_jax[beam]'") from error
  # Reshuffle: without it a runner may fuse all units into one bundle, on one machine.
  with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
    numbers = pipeline | beam.Create(list(units)) | beam.Reshuffle()
    numbers | name >> beam.Map(work)
