"""The facts of the families: every service finds them, and they are whole."""

import subprocess
import sys

import pytest

from triptych.families import FAMILIES, family_of, family_of_transformer
from triptych.families.family import Family, GuidanceInput
from triptych_coordinator.sampling.sigmas import Grid
from triptych_denoiser.models import ARCHITECTURES as TRANSFORMERS
from triptych_text_encoder.recipes import RECIPES

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.pipeline)


def test_every_stage_knows_every_family() -> None:
    assert {family.pipeline for family in FAMILIES} == set(RECIPES)
    assert {family.transformer for family in FAMILIES} == set(TRANSFORMERS)


@every_family
def test_a_family_is_found_by_its_names(family: Family) -> None:
    assert family_of(family.pipeline) is family
    first = family_of_transformer(family.transformer)
    assert first is family or (first.transformer, first.mark) == (family.transformer, family.mark)
    guided, flow_maps = ([set(one.defaults) for one in (first, family)], [first.flow_map, family.flow_map])
    told = not guided[0] & guided[1] or flow_maps[0] != flow_maps[1]  # by the transformer's config
    assert first is family or family.named or told
    assert family_of("PixArtSigmaPipeline") is None


@every_family
def test_the_facts_are_whole(family: Family) -> None:
    assert Grid(family.grid)
    if family.latents:
        assert all(len(row) == 3 for row in family.latents.rgb_factors)
        assert len(family.latents.rgb_bias) == 3
    for embedded, defaults in family.defaults.items():
        assert embedded == (defaults.guidance is GuidanceInput.EMBEDDED)
        assert defaults.guidance is not GuidanceInput.NONE or defaults.guidance_scale == 1


def test_a_file_is_of_one_family_by_its_marks() -> None:
    firsts = {family.transformer: family for family in reversed(FAMILIES)}.values()
    marks = [mark for family in firsts for mark in (family.mark, family.original.mark)]
    assert len(set(marks)) == len(marks)


def test_families_need_nothing_but_python() -> None:
    program = "import sys, triptych.families as f; print(*{n.partition('.')[0] for n in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "numpy", "grpc", "google", "pydantic"}
