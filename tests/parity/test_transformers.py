"""Every family's transformer gives what diffusers' gives; what only one has is tested in its own file."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from tests.parity import (
    test_flux2_transformer,
    test_flux3_transformer,
    test_flux_transformer,
    test_krea2_transformer,
    test_qwen_image21_transformer,
    test_qwen_image_transformer,
    test_sd3_transformer,
    test_z_image_transformer,
)
from tests.parity.transformers import (
    Config,
    Family,
    assert_equal_shapes,
    assert_equal_weights,
    millions,
    reference_library,
)

FAMILIES: dict[str, Family] = {
    "SD3": test_sd3_transformer.FAMILY,
    "FLUX.1": test_flux_transformer.FAMILY,
    "FLUX.2": test_flux2_transformer.FAMILY,
    "FLUX.3": test_flux3_transformer.FAMILY,
    "Krea 2": test_krea2_transformer.FAMILY,
    "Qwen-Image": test_qwen_image_transformer.FAMILY,
    "Qwen-Image 2.1": test_qwen_image21_transformer.FAMILY,
    "Z-Image": test_z_image_transformer.FAMILY,
}


def of_each(names: str, cases: Callable[[Family], Iterable[tuple[Any, ...]]]) -> Any:
    """A test's cases: of every family these, and the family."""
    return pytest.mark.parametrize(
        f"family, {names}",
        [
            pytest.param(family, *case, id=f"{name}-{number}")
            for name, family in FAMILIES.items()
            for number, case in enumerate(cases(family))
        ],
    )


@of_each("variant, size", lambda each: ((v, size) for v in each.variants.values() for size in each.sizes))
def test_velocities_are_those_of_diffusers(
    family: Family, variant: Config, size: tuple[int, int, int]
) -> None:
    config = family.small | variant
    assert family.error(family.of_diffusers(config), family.inputs(config, *size)) <= 1e-5


@of_each("tokens", lambda each: ((tokens,) for tokens in each.tokens))
def test_velocities_are_those_of_diffusers_for_short_and_long_text(family: Family, tokens: int) -> None:
    given = family.inputs(family.small, 2, 4, 6, tokens)
    assert family.error(family.of_diffusers(family.small), given) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_sigma_one_and_zero_are_those_of_diffusers(family: Family) -> None:
    given = family.inputs(family.small, 2, 8, 8) | {"sigma": torch.tensor([1.0, 0.0])}
    assert family.error(family.of_diffusers(family.small), given) <= 1e-5


@of_each("variant", lambda each: ((variant,) for variant in each.variants.values()))
def test_a_loaded_checkpoint_is_written_back_as_it_was(family: Family, variant: Config) -> None:
    theirs = family.of_diffusers(family.small | variant)
    assert_equal_weights(family.ours(theirs).checkpoint_keys(), theirs.state_dict())


@of_each("config, expected", lambda each: each.public.values())
def test_public_checkpoints_have_our_names_and_shapes(family: Family, config: Config, expected: int) -> None:
    with torch.device("meta"):
        model = family.transformer.from_config(config)
        theirs = getattr(reference_library, family.reference)(**config)
    assert_equal_shapes(model.checkpoint_keys(), theirs.state_dict())
    assert millions(model) == expected


@of_each("change, sentence", lambda each: each.refused)
def test_configs_of_other_models_are_refused(family: Family, change: Config, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        family.transformer.config_class.from_dict(family.small | change)
