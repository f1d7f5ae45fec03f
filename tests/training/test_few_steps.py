"""Distilling few steps: the teacher's walk, and a LoRA that is what the student became."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from training.few_steps import STEPS, SUBSTEPS, Distillation
from training.run_folder import RunFolder
from training.sd3 import CONFIG, initialise
from triptych.compute.lora_files import read_lora_file
from triptych.compute.lora_fusing import FusedTensors
from triptych_denoiser.models import modules_in
from triptych_denoiser.models.sd3 import SD3Transformer


@pytest.fixture
def teacher() -> SD3Transformer:
    torch.manual_seed(0)
    model = SD3Transformer(CONFIG)
    initialise(model)
    with torch.no_grad():
        for parameter in model.parameters():  # adaLN-Zero's zeros would hide what the blocks do
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def given(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents of `rows` small pictures, and the text of their prompts and of none."""
    torch.manual_seed(1)
    sequence = torch.randn(2 * rows, 3, CONFIG.joint_attention_dim)
    return torch.randn(rows, 16, 4, 6), sequence, torch.randn(2 * rows, CONFIG.pooled_projection_dim)


def test_the_walk_ends_where_guided_euler_steps_end(teacher: SD3Transformer, tmp_path: Path) -> None:
    walk = Distillation(teacher, RunFolder(tmp_path), rank=2, learning_rate=1e-3, guidance=3.0).walk
    x, sequence, pooled = given(STEPS)
    sequence, pooled = sequence.bfloat16(), pooled.bfloat16()
    straight = walk.straight(x, torch.arange(STEPS), sequence, pooled)
    for step in range(STEPS):
        rows = [step, STEPS + step]
        at, levels = (
            x[step : step + 1],
            torch.linspace(walk.sigmas[step], walk.sigmas[step + 1], SUBSTEPS + 1),
        )
        for start, end in pairwise(levels):
            velocity = walk.velocity(at, start[None], sequence[rows], pooled[rows])
            at = at + (end - start) * velocity
        arrived = x[step] + (levels[-1] - levels[0]) * straight[step]
        assert torch.allclose(arrived, at[0], atol=0.05)


def test_the_written_lora_is_what_the_student_became(teacher: SD3Transformer, tmp_path: Path) -> None:
    first = Distillation(teacher, RunFolder(tmp_path / "run"), rank=2, learning_rate=3e-3, guidance=2.0)
    losses = [float(first.update(*given(2), factor=1.0)) for _ in range(12)]
    assert losses[-1] < losses[0]
    first.save(tmp_path / "four-steps.safetensors")
    student, before = first.student.checkpoint_keys(), teacher.checkpoint_keys()
    again = Distillation(teacher, RunFolder(tmp_path / "run"), rank=2, learning_rate=3e-3, guidance=2.0)
    assert again.step == 12
    assert all(torch.equal(tensor, student[name]) for name, tensor in again.student.checkpoint_keys().items())

    modules = modules_in("SD3Transformer2DModel", CONFIG.__dict__)
    fused = FusedTensors(before, [(read_lora_file(tmp_path / "four-steps.safetensors", modules), 1.0)])
    changed = 0
    for name, tensor in before.items():
        assert torch.allclose(fused[name], student[name].float(), atol=4e-3, rtol=1e-2), name
        changed += not torch.allclose(student[name].float(), tensor, atol=1e-3, rtol=1e-2)
    assert changed >= len(first.changes.sums) / 2
