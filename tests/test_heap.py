"""What a step of training frees is the next step's, and is not given back to the kernel in between."""

import platform
import resource
import subprocess
import sys

import pytest

from persona_lab.models.bank import AdapterBank
from persona_lab.models.lora import LoraShape
from persona_lab.train.finetune import Member, Watcher, finetune

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")

BLOCKS, MEBIBYTE = 16, 1 << 20
"""As many and as large as the activations of a small model: 4,096 pages in all."""


def faults_again() -> int:
    """Pages that the kernel hands out while blocks are taken and given back, after this was done once before."""
    counts = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [bytearray(MEBIBYTE) for _ in range(BLOCKS)]
        del blocks
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return counts[-1]


def in_a_process(first: str) -> int:
    """`faults_again` in a process of its own, without torch, after a line of Python."""
    program = f"import resource\n{first}\ncounts = []\nfor _ in range(3):\n"
    program += f"    blocks = [bytearray({MEBIBYTE}) for _ in range({BLOCKS})]\n    del blocks\n"
    program += "    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\nprint(counts[2] - counts[1])\n"
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def test_memory_that_was_freed_is_not_handed_out_anew():
    assert in_a_process("pass") > 4000, "without being told, malloc gives all of it back"
    assert in_a_process("from persona_lab.train.heap import keep_freed_memory; keep_freed_memory()") < 100


def test_training_keeps_its_memory(llama, rows, accelerator):
    member = Member(rows_at=lambda step: rows[:2], rate=1e-3, clip=1.0, adapter=None, init_seed=0)
    finetune(AdapterBank(llama, LoraShape(rank=2, alpha=4)), [member], Watcher(), pad=0, stops=[1], kl_to_base=0.0, micro_batch=2, accelerator=accelerator)
    assert faults_again() < 100
