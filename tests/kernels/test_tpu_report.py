"""The report reads the compiler's files, counts work and memory traffic, and runs as a command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from emsjax.pallas_kernels.ragged_attention.tuning import TPUBlocks
from emsjax.pallas_kernels.report import ours, peer
from emsjax.pallas_kernels.report.bundles import read_loop
from emsjax.pallas_kernels.report.work import Heads, Work, ragged

# A loop over the grid contains a loop over blocks, which contains a loop over pieces.
FINAL = """
LB: loop body

     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 }
   0x2 LB: >> { %v1 = vld [vmem:%s3] }
   0x3   : >> { %v2 = vmatmul.bf16.gmra.mxu0 %v1 }
   0x4 LB: >>> { %s4 = sadd.s32 1, %s2 }
   0x5   : >>> { %5 = sbr.rel target = $region1 }
   0x6 PF: >> { vst [vmem:%s3] %v2 }
   0x7   : > { %6 = sbr.rel target = $region2 }
   0x8   :  {}
"""
UNITS = """== CAPACTIY:
MXU, VALU, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL
    4     4     3     3     1     1
== UTILIZATION:
0 0 0 0 0 0
0 1 0 0 0 0
0 3 2 1 0 0
4 4 0 0 2 0
0 0 0 0 0 0
0 0 0 0 0 0
2 1 0 0 1 1
0 0 0 0 0 0
0 0 0 0 0 0
"""
ORIGINAL = """
  #allocation1 [shape = 'u32[72,128]', space=vmem, size = 0x9000, scoped, tag = 'scratch']
  #allocation2 [shape = 's32[1]', space=smem, size = 0x200, scoped, tag = 'scratch operand']
  #allocation3 [shape = 'f32[8,128]', space=vmem, size = 0x1000, scoped, tag = 'scratch operand']
"""


def write_dump(directory: Path, stamp: int, kernel: str) -> None:
    for number, (name, text) in enumerate(
        {
            "original": ORIGINAL,
            "final_hlo-static-per-bundle-utilization": UNITS,
            "schedule-analysis_final_bundles": "",
            "final_bundles": FINAL,
        }.items()
    ):
        (directory / f"{stamp}-{kernel}.1-{number:02}-{name}.txt").write_text(text)


def test_the_loop_over_blocks_is_found_and_counted(tmp_path: Path):
    write_dump(tmp_path, 100, "other")
    write_dump(tmp_path, 101, "attention")
    loop = read_loop(tmp_path, "attention")
    assert (loop.bundles, loop.inner, loop.outer) == (3, (2,), (2,))
    assert (loop.least, loop.busiest, loop.spills) == (3, "VSTORE", 2)
    assert loop.vmem_bytes == 0x9000 + 0x1000
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_loop(tmp_path, "nothing")


WORK = Work(Heads(8, 2, 64), q_lens=(3, 0, 5), kv_lens=(100, 70, 65), capacity=128, max_q_len=5)


def test_least_bytes():
    # Keys and values of 235 tokens, queries and results of 8 rows, 2 bytes for each number.
    assert WORK.least_bytes == 235 * 2 * 2 * 64 * 2 + 2 * 8 * 8 * 64 * 2


def test_each_tile_reads_its_slot_up_to_its_last_row():
    assert list(ours._tiles(WORK, TPUBlocks(kv=64, piece=16, q=8))) == [100, 65]
    assert list(ours._tiles(WORK, TPUBlocks(kv=64, piece=16, q=4))) == [100, 64, 65]


def test_the_last_block_is_cleared_after_the_end():
    blocks = TPUBlocks(kv=64, piece=16, q=8)
    assert [ours._cleared(end, blocks) for end in (100, 128, 65)] == [(4, 3), (0, 0), (7, 7)]


def test_the_peer_reads_a_slot_once_for_each_block_of_queries():
    assert peer._visits((3, 0, 5), 32) == [1, 0, 1]
    assert peer._visits((3, 0, 5), 4) == [1, 0, 2]
    assert peer._visits((30, 8, 32), 32) == [1, 2, 2]
    assert peer._padded(Heads(9, 3, 64)) == Heads(12, 4, 128)
    assert peer._padded(Heads(40, 40, 128)) == Heads(40, 40, 128)


def test_ragged_work_is_ragged():
    work = ragged(Heads(8, 2, 64), batch=16, rows=8, context=1000)
    assert set(work.q_lens) <= set(range(1, 9))
    assert work.q_lens[0] == 8
    assert 500 <= min(work.kv_lens) < max(work.kv_lens) <= 1000
    assert (work.capacity, work.num_slots) == (1024, 16)
    assert 0 <= work.num_rows - sum(work.q_lens) < 8


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emsjax.pallas_kernels.report", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command(tmp_path: Path):
    file = tmp_path / "report.json"
    result = run("--models", "llama-3-8b", "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Compiled for TPU v5e, not run")
    our_row, tree_row, *peer_rows = json.loads(file.read_text())["rows"]
    assert (our_row["kernel"], tree_row["kernel"]) == ("emsjax", "emsjax, token trees")
    # A mask takes instructions, and reads no more of the cache.
    assert our_row["bundles"] < tree_row["bundles"] < 1.25 * our_row["bundles"]
    assert tree_row["all_bytes"] == our_row["all_bytes"]
    assert [row["kernel"][:3] for row in peer_rows] == ["jax"] * len(peer.SIZES)
    for row in (our_row, tree_row, *peer_rows):
        assert row["all_bytes"] >= row["least_bytes"] > 0
        assert row["bundles"] >= row["least"] > 0
        assert 0 < row["vmem_bytes"] < 16 << 20
    # Our kernel executes fewer instructions and moves fewer bytes than jax's.
    assert our_row["all_bundles"] < min(row["all_bundles"] for row in peer_rows)
    assert our_row["all_bytes"] < min(row["all_bytes"] for row in peer_rows)
    assert our_row["all_bytes"] < 1.05 * our_row["least_bytes"]


@pytest.mark.parametrize("arguments", [("--models", "gpt-5"), ("--rows", "0")])
def test_invalid_options_are_reported_without_a_traceback(arguments: tuple[str, ...]):
    result = run(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert arguments[1] in result.stderr or arguments[0] in result.stderr
