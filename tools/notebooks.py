"""Run nbdev_test on every notebook, and fail where it would pass in silence: no notebook found, or too
long a run.

python tools/notebooks.py [SECONDS] [slow]

SECONDS: default 600; the notebooks are meant to take 240 s on two cores.
slow: also run the cells marked `#| slow`.
"""

import os
import signal
import subprocess
import sys

COMMAND = ["nbdev_test", "--n_workers", "2", "--do_print", "--timing"]


def main(seconds, slow):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    # a session of its own, so that the workers can be stopped with their parent: they would keep the output
    # open
    command = COMMAND + ["--flags", "slow"] * slow
    run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    timed_out, success = [], False
    signal.signal(signal.SIGALRM, lambda *_: (timed_out.append(True), os.killpg(run.pid, signal.SIGKILL)))
    signal.alarm(seconds)
    try:
        for line in run.stdout:
            print(line, end="", flush=True)
            success |= line.startswith("Success.")  # said only if there were notebooks and all of them passed
        status = run.wait()
    finally:
        signal.alarm(0)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    if timed_out:
        return (
            f"the notebooks took more than {seconds} s and were stopped; the last lines above name the slow"
            " ones"
        )
    return status or (not success and "nbdev_test found no notebook to test")


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:] if a != "slow"]
    sys.exit(main(numbers[0] if numbers else 600, "slow" in sys.argv[1:]))
