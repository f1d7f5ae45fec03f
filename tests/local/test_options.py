"""What the words of the command line mean."""

import pytest

from triptych.v1 import guidance_pb2
from triptych_local.options import read_composition, read_layers, read_method, read_schedule


def test_a_list_of_scales_is_an_explicit_schedule() -> None:
    assert read_schedule("list:7,5.5,1").explicit.scales == [7, 5.5, 1]
    assert read_schedule("list:7").explicit.scales == [7]


def test_methods_have_their_own_numbers() -> None:
    assert read_method("cfg").WhichOneof("method") == "classifier_free"
    apg = read_method("apg").adaptive_projected
    assert not any(apg.HasField(field) for field in ("eta", "norm_threshold", "momentum"))
    apg = read_method("apg:0.5:15:-0.25").adaptive_projected
    assert (apg.eta, apg.norm_threshold, apg.momentum) == (0.5, 15, -0.25)
    assert not read_method("zero-star").zero_star.HasField("zero_init_steps")
    assert read_method("zero-star:2").zero_star.zero_init_steps == 2


@pytest.mark.parametrize("text", ["", "cfg:1", "apg:x:1:2", "zero-star:1.5", "zero-star:1:2"])
def test_other_methods_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no guidance method"):
        read_method(text)


def test_layers_come_with_scale_and_steps() -> None:
    assert read_layers("7,8, 9") == {"layers": [7, 8, 9]}
    assert read_layers("7:3") == {"layers": [7], "scale": 3}
    assert read_layers("7:3:0.5:1") == {"layers": [7], "scale": 3, "start": 0.5, "stop": 1}


@pytest.mark.parametrize("text", ["", "a", "7:", "7:1:2", "7,"])
def test_other_layers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="are no layers"):
        read_layers(text)


def test_a_composed_prompts_weight_is_its_last_number() -> None:
    assert read_composition(["a hat:-0.5", "at 10:30: fog", "ratio 3:2 "], None) == guidance_pb2.Composition(
        prompts=[
            guidance_pb2.WeightedPrompt(prompt="a hat", weight=-0.5),
            guidance_pb2.WeightedPrompt(prompt="at 10:30: fog"),
            guidance_pb2.WeightedPrompt(prompt="ratio 3", weight=2),
        ]
    )
    assert read_composition(["a hat"], 0.5).prompt_weight == 0.5
