"""CPU seconds count what this process has started: while it runs, and after it has ended."""

import subprocess
import sys

from onnxcompress.base.clock import cpu_seconds

WORK = """
import time
while time.process_time() < 0.4:
    pass
print(flush=True)
input()
"""


def _started(code):
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)


def test_children_count_while_they_run_and_after_they_have_ended():
    before = cpu_seconds()
    with _started(WORK) as child:
        child.stdout.readline()
        running = cpu_seconds()
        child.communicate("\n")
    assert running - before >= 0.38  # /proc counts in hundredths
    assert cpu_seconds() >= running


def test_children_of_children_count():
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORK!r}])"
    before = cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        one.stdout.readline()
        assert cpu_seconds() - before >= 0.38
        one.communicate("\n")
