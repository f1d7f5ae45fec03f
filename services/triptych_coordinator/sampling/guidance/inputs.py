"""How models take the guidance scale."""

from enum import StrEnum


class GuidanceInput(StrEnum):
    """How a model takes the guidance scale."""

    BRANCHES = "two branches, the negative prompt's and the prompt's, are joined with it"
    EMBEDDED = "it is an input of the model, which was distilled from two branches to one"
    NONE = "not at all: the model was distilled with guidance inside"
