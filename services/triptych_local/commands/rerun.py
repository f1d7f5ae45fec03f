"""`triptych rerun`: makes a picture again from what its file says, and compares the two."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import numpy as np
from google.protobuf.json_format import ParseDict, ParseError
from numpy.typing import NDArray
from PIL import Image

from triptych.file_kinds import kind_of_file
from triptych.tensors import array_to_message
from triptych.v1 import editing_pb2
from triptych.v1.generation_parameters_pb2 import GenerationParameters
from triptych_local.commands.generate import generate_files
from triptych_local.commands.settings import RerunSettings
from triptych_local.output import note
from triptych_local.request import read_file, read_latents


@dataclass(frozen=True)
class Picture:
    """A file of this program: its pixels, and what it says about itself."""

    path: Path
    record: Mapping[str, Any]
    pixels: NDArray[np.uint8]

    @classmethod
    def read(cls, path: Path) -> Picture:
        """Reads a file. Raises ValueError when it does not say how it was made."""
        try:
            with Image.open(path, formats=["PNG", "WEBP", "JPEG"]) as image:
                image.load()
                kept = image.convert("RGBA" if image.has_transparency_data else "RGB")
                text, pixels = _record_text(image), np.asarray(kept)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"'{path}' cannot be read as a PNG, WebP or JPEG file: {error}") from error
        try:
            record = json.loads(str(text)) if text else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(
                f"'{path}' does not say how it was made: it has no JSON text 'triptych', in XMP 'record'"
            )
        return cls(path, record, pixels)

    def request(self, inputs: RerunSettings) -> GenerationParameters:
        """The request that gives the picture. Raises ValueError when it cannot be had from the file."""
        if "grid" in self.record:
            raise ValueError(f"'{self.path}' is a grid: only single pictures can be made again")
        try:
            message = ParseDict(self.record["request"], GenerationParameters())
        except (KeyError, ParseError) as error:
            raise ValueError(f"'{self.path}' says nothing that this version reads: {error}") from error
        for name in ("image", "mask"):
            if f"{name}_sha256" in self.record:
                setattr(message, name, self._input(name, getattr(inputs, name)))
        message.references.extend(self._references(inputs.references or []))
        if message.HasField("image") and not message.HasField("read_as_diffusers"):
            message.read_as_diffusers = True  # as all pictures were read when this one was made
        if "latents" in self.record:
            message.latents.CopyFrom(self._latents(inputs.latents))
        return message

    def _input(self, name: str, path: Path | None) -> bytes:
        if path is None:
            raise ValueError(
                f"'{self.path}' was made from another file, which is not inside: give it with --{name}"
            )
        data = read_file(path)
        if sha256(data).hexdigest() != self.record[f"{name}_sha256"]:
            raise ValueError(f"'{path}' is not the {name} that '{self.path}' was made from")
        return data

    def _references(self, paths: Sequence[Path]) -> list[bytes]:
        """The files that the picture was made with, in their order, whatever the order of `paths`."""
        wanted = self.record.get("references_sha256", [])
        files = {sha256(data).hexdigest(): data for data in map(read_file, paths)}
        if missing := sum(digest not in files for digest in wanted):
            raise ValueError(
                f"'{self.path}' was made with {len(wanted)} references, which are not inside, and {missing}"
                " of them are not given: give each with --reference"
            )
        if unused := files.keys() - set(wanted):
            raise ValueError(
                f"'{self.path}' was not made with {len(unused)} of the references that are given"
            )
        return [files[digest] for digest in wanted]

    def _latents(self, path: Path | None) -> editing_pb2.InitialLatents:
        if path is None:
            raise ValueError(
                f"'{self.path}' was made from latents, which are not inside: give them with --latents"
            )
        wanted = self.record["latents"]
        for row in read_latents(path):
            if sha256(row.tobytes()).hexdigest() == wanted["sha256"]:
                tensor = array_to_message(row[None])
                return editing_pb2.InitialLatents(**{wanted["kind"]: tensor})
        raise ValueError(f"'{path}' does not hold the latents that '{self.path}' was made from")


def _record_text(image: Image.Image) -> str | None:
    """The JSON of a PNG file's text "triptych", or of the XMP property `record` of urn:triptych."""
    if image.format == "PNG":
        text = image.info.get("triptych")
        return None if text is None else str(text)
    try:
        packet = ElementTree.fromstring(image.info.get("xmp", b""))
    except ElementTree.ParseError:
        return None
    return packet.findtext(".//{urn:triptych}record")


async def rerun(asked: RerunSettings) -> None:
    """Makes the picture again, and says on standard error in what and why the two differ, if they do.

    Raises click.BadParameter if the file does not say how it was made, StartError or TriptychError.
    """
    try:
        picture = Picture.read(asked.picture)
        request = picture.request(asked)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="PICTURE") from error
    parameters = {field.name: value for field, value in request.ListFields() if field.name != "prompts"}
    if request.loras:
        parameters["loras"] = {lora.name: lora.weight for lora in request.loras}
    output = asked.output or asked.picture.with_stem(f"{asked.picture.stem}-again")
    kind = request.output_format.WhichOneof("format") or "png"
    if kind_of_file(output) not in (None, kind):
        parameters["output_format"] = {kind_of_file(output): {}}
    await generate_files(list(request.prompts), parameters, [output], asked.place)
    for line in compared(picture, Picture.read(output)):
        note(line)


def compared(old: Picture, new: Picture) -> Iterator[str]:
    """Whether two pictures are the same, and what was not the same where they were made."""
    if np.array_equal(old.pixels, new.pixels):
        yield "the same picture, to the bit"
    elif old.pixels.shape != new.pixels.shape:
        yield "warning: another picture: it is of another size"
    else:
        difference = np.abs(old.pixels.astype(int) - new.pixels.astype(int))
        share = 100 * (difference.max(2) > 0).mean()
        yield f"warning: {share:.2g} % of the pixels differ, by at most {difference.max()} of 255"
    before, now = old.record.get("fingerprints", {}), new.record.get("fingerprints", {})
    for stage in sorted({*before, *now}):
        was, is_now = (", ".join(prints.get(stage, ["nothing"])) for prints in (before, now))
        if was != is_now:
            yield (
                f"warning: the {stage.replace('_', ' ')} has the fingerprint {is_now}, then it was {was}:"
                " other weights, dtype, kind of device, number of threads or versions of libraries"
            )
    if old.record.get("version") != new.record.get("version"):
        yield f"warning: version {new.record.get('version')} made it, then it was {old.record.get('version')}"
