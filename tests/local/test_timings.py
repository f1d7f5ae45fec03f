"""`triptych generate --timings`: where the time of a picture went."""

import re
from pathlib import Path

from tests.local.conftest import Up, run
from triptych.v1 import image_generation_pb2 as pb
from triptych_local.commands.timings import timing_lines


def test_the_table_says_where_the_time_of_each_phase_went() -> None:
    finished = pb.Finished(
        queue_milliseconds=10, encode_milliseconds=40, denoise_milliseconds=120, decode_milliseconds=20,
        file_milliseconds=4, total_milliseconds=200, step_milliseconds=[30, 50, 40], rows=6, prompts=2,
        cached_prompts=1, denoiser=pb.StageTime(
            calls=3, retries=1, queue_milliseconds=20, compute_milliseconds=80, wire_milliseconds=10
        ),
    )  # fmt: skip
    lines = {line[:15].strip(): line[15:].strip() for line in timing_lines(finished) if line[0] != " "}
    assert lines == {
        "queue": "10.0 ms    5 %",
        "text encoding": "40.0 ms   20 %  2 prompts, 1 of them remembered",
        "denoising": "120.0 ms   60 %  3 steps: p50 40.0 ms, max 50.0 ms; 6 rows",
        "decoding": "20.0 ms   10 %",
        "files": "4.0 ms    2 %",
        "others": "6.0 ms    3 %  taking the pictures",
        "total": "200.0 ms  100 %",
    }
    assert "  queue              20.0 ms   10 %  3 calls, 1 attempt repeated" in list(timing_lines(finished))


def test_a_fleets_picture_comes_with_its_table(up: Up, tmp_path: Path) -> None:
    arguments = ("generate", "a cat", "--steps", "3", "--timings", "-o", tmp_path / "cat.png")
    result = run(*arguments, environment=up.environment)
    assert result.status == 0, result.stderr
    _, *table = result.stdout.splitlines()
    milliseconds = {
        line[:15].strip(): float(found[1])
        for line in table
        if not line.startswith(" ") and (found := re.search(r"([\d.]+) ms", line))
    }
    total = milliseconds.pop("total")
    assert abs(sum(milliseconds.values()) - total) < 1
    compute = next(line for line in table if line.startswith("  compute"))
    assert float(compute.split()[1]) > 0
    assert any("3 steps: p50 " in line for line in table)
