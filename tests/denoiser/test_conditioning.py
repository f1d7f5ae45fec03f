"""Conditioning is copied and shortened."""

import torch

from triptych_denoiser.conditioning import prepare, trailing_repeats

CPU = torch.device("cpu")


def test_the_run_of_equal_last_tokens_is_counted() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    assert trailing_repeats(a) == 1
    assert trailing_repeats(torch.cat([a, a, a])) == 3
    assert trailing_repeats(torch.cat([a, b, a])) == 1
    assert trailing_repeats(torch.cat([a, a, b, a, a])) == 2


def test_a_prepared_prompt_holds_its_distinct_tokens_in_memory_of_its_own() -> None:
    sequence = torch.randn(300, 8, dtype=torch.float64)
    sequence[44:] = 0

    prepared = prepare(sequence, sequence[0], CPU, torch.float32, text_positions=False)

    assert prepared.trailing_repeats == 256
    assert torch.equal(prepared.sequence, sequence[:45].float())
    assert prepared.sequence.untyped_storage().nbytes() == 45 * 8 * 4 == prepared.sequence.nbytes
    kept = prepare(prepared.sequence, prepared.pooled, CPU, torch.float32, text_positions=False)
    prepared.sequence.zero_()
    assert kept.sequence.any()


def test_equal_tokens_that_have_positions_are_all_kept() -> None:
    prepared = prepare(torch.zeros(5, 8), torch.zeros(0), CPU, torch.float32, text_positions=True)

    assert prepared.trailing_repeats == 1
    assert len(prepared.sequence) == 5
