"""What a part of a model that sees text and references alone makes of them is computed once, to the bits that
it has anew.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.denoiser.small_families import CHANNELS, FLUX3, KREA2, QWEN_IMAGE21, Config, random_transformer
from triptych_denoiser.conditioning import Reference
from triptych_denoiser.features import FeatureCache
from triptych_denoiser.models.flux3 import Flux3Transformer
from triptych_denoiser.models.krea2 import Krea2Transformer
from triptych_denoiser.models.qwen_image21 import QwenImage21Transformer
from triptych_denoiser.predictor import Predictor, StaticTexts, random_row
from triptych_denoiser.row import Row

CPU = torch.device("cpu")


FAMILIES = {Flux3Transformer: FLUX3, Krea2Transformer: KREA2, QwenImage21Transformer: QWEN_IMAGE21}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda config: config["_class_name"])


def predictor_with(cache_bytes: int, family: Config = KREA2) -> Predictor:
    texts = StaticTexts(cache_bytes, keeps_newest=False)
    return Predictor(random_transformer(family), CPU, torch.float32, 4, FeatureCache(1), texts)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has the number of tokens of every text that was computed."""
    lengths: list[int] = []

    def count(static_text: Any) -> Any:
        def counted(self: Any, sequence: Tensor, *others: Any) -> Tensor:
            lengths.append(len(sequence))
            text: Tensor = static_text(self, sequence, *others)
            return text

        return counted

    for family in FAMILIES:
        monkeypatch.setattr(family, "static_text", count(family.static_text))
    return lengths


def rows_of(predictor: Predictor, *tokens: int, **others: Any) -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    return [random_row(predictor, 4, 6, count, 1, generator) for count in tokens]


@every_family
def test_a_text_is_computed_once_for_all_its_passes(family: Config, computed: list[int]) -> None:
    remembering, forgetting = predictor_with(1 << 20, family), predictor_with(0, family)
    rows = rows_of(remembering, 7, 12)

    known = [remembering.predict(rows).velocities for _ in range(3)]
    assert computed == [7, 12]
    anew = [forgetting.predict(rows).velocities for _ in range(3)]
    assert computed == [7, 12] * 4

    for velocities in (*known, *anew):
        assert all(map(torch.equal, velocities, known[0]))


def test_a_text_with_references_is_computed_once_for_the_same_references(computed: list[int]) -> None:
    remembering, forgetting = predictor_with(1 << 20, QWEN_IMAGE21), predictor_with(0, QWEN_IMAGE21)
    pictures = [Reference(torch.randn(CHANNELS, *size)) for size in ((4, 4), (2, 6), (4, 4))]
    (plain,) = rows_of(remembering, 7)
    text = replace(plain.conditioning, reference_positions=(1, 3))
    rows = [replace(plain, conditioning=text, references=(pictures[first], pictures[1])) for first in (0, 2)]

    known = [remembering.predict(rows).velocities for _ in range(2)]
    assert computed == [7, 7]  # the second has another first picture
    anew = [forgetting.predict(rows[1:] + rows[:1]).velocities for _ in range(2)]

    assert len(computed) == 2 + 4
    assert not torch.equal(known[0][0], known[0][1])
    for velocities in (known[1], *(each[::-1] for each in anew)):
        assert all(map(torch.equal, velocities, known[0]))


def test_texts_are_no_more_than_the_cache_holds(computed: list[int]) -> None:
    predictor = predictor_with(2_000)  # one text of 12 tokens of 32 channels
    rows = rows_of(predictor, 12, 12)

    predictor.predict(rows[:1])
    predictor.predict(rows)
    predictor.predict(rows[1:])

    assert len(computed) == 2
    assert predictor.texts.held_bytes() <= 2_000
