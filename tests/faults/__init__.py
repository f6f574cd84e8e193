"""A harness that breaks the store on purpose: kills, full disks, lost power, rotten bits, crowds of workers.

    python -m tests.faults --tier short        what `make test` runs
    python -m tests.faults --tier long         `make soak`

    tap.py         every file operation of a process, seen before it happens
    toy.py         cells that cost a millisecond and go through the real store
    trials.py      one trial, and its verdict
    kills.py       a kill at every file operation, chains of random kills
    tracing.py     the same by strace, which sees what no wrapper in Python can
    disks.py       full disks, input/output errors, too many open files, a small tmpfs
    power.py       every legal state of the disk after the power is lost
    mutations.py   bytes that rot, files that are swapped
    crowd.py       many workers, some killed, some paused, with clocks days apart
    lora.py        real adapters of a small Llama, killed in training, checkpoints and commits

Nothing but the last of it loads torch. Verdicts are those of a harness for checkpoints: PASS, LOST_WORK, HARD_FAIL, SILENT_DIVERGENCE,
and two of a store: LOST_CELL, DOUBLE_COMMIT.
"""
