"""Makes all that the text encoders say of a thing equally loud for the transformer in training.

Of the features behind a prompt's end a few directions are strong, those that tell what is asked for, and most
are faint, those that tell how it looks. A matrix that reads them learns the strong ones first, and the faint
ones many thousand steps later.
"""

import numpy as np
import torch
from torch import Tensor

from training.captions import caption
from training.conditioning import TextConditioning
from training.readouts import slots
from training.scenes import sample_scene
from training.text_batches import ANY_CANVAS

CAPTIONS = 1024
FLOOR = 0.01  # of a direction's variance: what is fainter stays faint


@torch.no_grad()
def whitening(text: TextConditioning) -> Tensor:
    """(C + FLOOR)^(-1/2) of the covariance C of what stands behind the ends of captions: float32
    [features, features], symmetric.
    """
    rng = np.random.default_rng(0)
    captions = [caption(sample_scene(rng, ANY_CANVAS), rng).text for _ in range(CAPTIONS)]
    ids = text.tokenized(captions)
    ends = (ids[0] == text.tokenizers[0].eos_token_id).int().argmax(1)
    sequence = text.encode_tokens(ids)[0]
    features = slots(sequence, ends.to(sequence.device)).flatten(0, 1)
    variances, directions = torch.linalg.eigh(features.T.cov())
    scaled: Tensor = directions * (variances.clamp(min=0) + FLOOR).rsqrt()
    whitened: Tensor = scaled @ directions.T
    return whitened
