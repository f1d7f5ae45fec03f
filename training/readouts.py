"""Linear read-outs of a prompt's meaning from CLIP's features: what the text encoders are trained by."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.looks import COMPONENTS
from training.meaning import EACH, SLOTS, WHOLE


class Readouts(nn.Module):
    """Reads WHOLE at the token that ends the prompt, and EACH at every one of the SLOTS tokens behind it.

    CLIP attends backwards only, so these tokens are the ones that have seen the whole prompt. The slots
    share their weights, so that a name looks the same whichever thing it is; they also tell how the thing
    looks. The pooled features tell WHOLE and the names.
    """

    def __init__(self, width: int, pooled_width: int) -> None:
        super().__init__()
        names = len(EACH["name"])
        self.whole = nn.ModuleList(nn.Linear(width, len(classes)) for classes in WHOLE.values())
        self.each = nn.ModuleList(nn.Linear(width, len(classes)) for classes in EACH.values())
        self.looks = nn.Linear(width, COMPONENTS)
        nn.init.zeros_(self.looks.weight)  # features are large: random answers would be far off
        self.pooled = nn.ModuleList(nn.Linear(pooled_width, len(classes)) for classes in WHOLE.values())
        self.pooled_names = nn.ModuleList(nn.Linear(pooled_width, names) for _ in range(SLOTS))

    def tokens(self, sequence: Tensor, ends: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of WHOLE, [rows, classes] each, and of EACH, [rows, SLOTS, classes] each.

        sequence [rows, tokens, width]; ends [rows]: where the prompts end.
        """
        end = sequence[torch.arange(len(ends), device=ends.device), ends]
        behind = slots(sequence, ends)
        return [head(end) for head in self.whole], [head(behind) for head in self.each]

    def unexplained(self, sequence: Tensor, ends: Tensor, looks: Tensor) -> Tensor:
        """How far the things look from `looks` [rows, SLOTS, COMPONENTS] (zeros: none): the mean square."""
        named = looks.any(-1)
        off: Tensor = (self.looks(slots(sequence, ends)).float() - looks)[named]
        return off.square().sum(-1).mean()

    def loss(self, sequence: Tensor, pooled: Tensor, ends: Tensor, whole: Tensor, each: Tensor) -> Tensor:
        """Mean cross-entropy of every read-out against whole [rows, 2] and each [rows, SLOTS, 5]."""
        of_whole, of_each = self.tokens(sequence, ends)
        losses = [F.cross_entropy(x.float(), whole[:, k]) for k, x in enumerate(of_whole)]
        losses += [
            F.cross_entropy(x.float().flatten(0, 1), each[..., k].flatten()) for k, x in enumerate(of_each)
        ]
        losses += [F.cross_entropy(head(pooled).float(), whole[:, k]) for k, head in enumerate(self.pooled)]
        losses += [
            F.cross_entropy(head(pooled).float(), each[:, k, 0]) for k, head in enumerate(self.pooled_names)
        ]
        return torch.stack(losses).mean()

    @torch.inference_mode()
    def right(
        self, sequence: Tensor, pooled: Tensor, ends: Tensor, whole: Tensor, each: Tensor
    ) -> dict[str, float]:
        """Shares of captions whose parts are read rightly (EACH: in all slots), and of which all are; and the
        pooled features' shares.
        """
        of_whole, of_each = self.tokens(sequence, ends)
        hits = {
            name: x.argmax(-1) == whole[:, k] for k, (name, x) in enumerate(zip(WHOLE, of_whole, strict=True))
        }
        for k, (name, x) in enumerate(zip(EACH, of_each, strict=True)):
            hits[name] = (x.argmax(-1) == each[..., k]).all(1)
        hits["all"] = torch.stack(list(hits.values())).all(0)
        hits["pooled ground"] = self.pooled[1](pooled).argmax(-1) == whole[:, 1]
        hits["pooled name"] = self.pooled_names[0](pooled).argmax(-1) == each[:, 0, 0]
        return {name: float(hit.float().mean()) for name, hit in hits.items()}


def slots(sequence: Tensor, ends: Tensor) -> Tensor:
    """The SLOTS tokens behind the ends [rows] of a sequence [rows, tokens, width]: [rows, SLOTS, width]."""
    rows, last = torch.arange(len(ends), device=ends.device), sequence.shape[1] - 1
    return torch.stack([sequence[rows, (ends + 1 + k).clamp(max=last)] for k in range(SLOTS)], 1)


def contrast(one: Tensor, other: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) of two paraphrases' pooled features [rows, width]: a scalar."""
    cosines = F.normalize(one.float(), dim=-1) @ F.normalize(other.float(), dim=-1).T / temperature
    same = torch.arange(len(one), device=one.device)
    return (F.cross_entropy(cosines, same) + F.cross_entropy(cosines.T, same)) / 2
