"""The script for a GPU, tried on the CPU with tiny models: every part has its results and its table."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.speed.gpu import PARTS, main, name_of
from benchmarks.speed.gpu_models import CASES
from benchmarks.speed.gpu_tables import PASSES, tables, write_page

DOCS = Path(__file__).parents[2] / "docs"


def test_every_part_runs_and_fills_its_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)  # tracing takes most of a minute
    page = Path(shutil.copy(DOCS / "gpu.md", tmp_path))

    main(["--tiny", "--seconds", "100000", "--out", str(tmp_path / "out"), "--page", str(page)])

    results = json.loads((tmp_path / "out" / "gpu.json").read_text())
    failed = [one for one in results if "failed" in one]
    assert {one["way"] for one in failed} == {"efficient", "varlen", "flash-attn"}
    assert all("it runs on CUDA devices only" in one["failed"] for one in failed)
    assert len([one for one in results if one["part"] == "weights" and one["error"] < 1e-5]) == len(CASES)
    timed = {(one["model"], one["way"]) for one in results if one["part"] == "passes"}
    assert timed == {(case.name, way) for case in CASES for way in PASSES}
    assert [one["same"] for one in results if one["part"] == "offload bits"] == [True]
    text = page.read_text()
    assert "Not measured." not in text
    assert all(text.count(f"| {case.name} | 4 | ") == 2 for case in CASES)
    assert results[-1]["part"] == "end"
    assert len({name_of(part) for part, _ in PARTS}) == len(PARTS)


def test_shares_of_the_time_are_all_of_it() -> None:
    assert sum(share for _, share in PARTS) == pytest.approx(1.0)


def test_a_row_of_the_table_has_milliseconds_a_row_and_the_share_of_the_peak() -> None:
    results = [
        {"part": "machine", "device": "X", "torch": "2", "dtype": "torch.bfloat16", "matmul_flops": 8e14},
        {"part": "weights", "model": "M", "error": 0.0, "flops": 4e13},
        {"part": "passes", "model": "M", "way": "fast", "rows": 4, "seconds": 0.4, "memory_gb": 24.04},
        {"part": "passes", "model": "M", "way": "diffusers", "rows": 4, "failed": "no"},
    ]
    assert tables(results)["passes"][-1] == "| M | 4 | 100 |  | failed |  |  | 0.50 | 24.0 |"
    assert tables(results)["machine"][-1] == "- passes M, diffusers, 4: no"


def test_a_page_without_a_place_for_a_table_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no <!-- table machine -->"):
        write_page(page, [])
