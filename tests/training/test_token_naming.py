"""What the transformer's tokens are taught to tell."""

import torch

from training.token_naming import TokenNaming

KINDS = (40, 30)


def test_naming_is_learned_from_tokens_that_tell() -> None:
    torch.manual_seed(0)
    labels = torch.stack([torch.randint(kind, (4, 16)) for kind in KINDS], dim=1)
    tokens = torch.cat([torch.nn.functional.one_hot(labels[:, i], n) for i, n in enumerate(KINDS)], dim=-1)
    naming = TokenNaming(sum(KINDS), KINDS)
    optimizer = torch.optim.Adam(naming.parameters(), lr=0.01)
    losses = []
    for _ in range(100):
        losses.append(naming(tokens, labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 3
    assert losses[-1] < 0.1
