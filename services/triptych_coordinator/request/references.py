"""The pictures that a request has a model attend to."""

from triptych.families.reference_sizes import References, SizeRule
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_coordinator.request.choices import Wrong
from triptych_coordinator.request.parameters import Limits, Reference
from triptych_coordinator.request.pictures import picture_size


def read_references(message: GenerationParameters, limits: Limits, wrong: Wrong) -> tuple[Reference, ...]:
    """Reads the heads of the files in `references`; `wrong` hears of those that are not taken."""
    given = len(message.references)
    if limits.references is None:
        if given:
            wrong["references"] = "must be left out: this model attends to no pictures"
        return ()
    if given > limits.references.most:
        wrong["references"] = f"must be at most {limits.references.most}, not {given}"
        return ()
    if given < limits.references.least:
        wrong["references"] = f"must be at least {limits.references.least}: this model edits pictures"
        return ()
    read, sized = [], limits.references.rule(given)
    for index, file in enumerate(message.references):
        try:
            read.append(_read(file, limits.references, sized, limits))
        except ValueError as error:
            wrong[f"references[{index}]"] = str(error)
    return tuple(read)


def _read(file: bytes, references: References, sized: SizeRule, limits: Limits) -> Reference:
    picture = picture_size(file)
    size = sized(*picture)
    width, height = size.kept
    if width * height > limits.max_image_pixels or max(size.kept) > limits.max_size:
        raise ValueError(
            f"becomes a reference of {width} x {height} pixels, but this server takes at most"
            f" {limits.max_image_pixels} in all and {limits.max_size} a side"
        )
    shown = references.shown(*picture) if references.shown else None
    return Reference(file, size, shown)
