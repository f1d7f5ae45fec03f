"""Checkpoints: what is there is read, what is wrong is said in one sentence that names the file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from triptych.checkpoints.fingerprints import fingerprint, stage_fingerprint, weights_identity
from triptych.checkpoints.opening import bundled_models, open_checkpoint
from triptych.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with one transformer, a scheduler and, left out, a third text encoder."""
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder_3": [None, None],
    }
    folder = tmp_path / "small"
    (folder / "transformer").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer" / "config.json").write_text('{"patch_size": 2}')
    (folder / "scheduler" / "scheduler_config.json").write_text('{"shift": 3.0}')
    save_file({"a": torch.arange(4.0), "b": torch.ones(2, 2)}, folder / "transformer" / WEIGHTS)
    return folder


def split(folder: Path, weight_map: dict[str, object]) -> None:
    transformer = folder / "transformer"
    (transformer / WEIGHTS).unlink()
    save_file({"a": torch.arange(4.0)}, transformer / "shard-1.safetensors")
    save_file({"b": torch.ones(2, 2)}, transformer / "shard-2.safetensors")
    (transformer / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder)).tensors("transformer")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_says_what_it_has(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.name == "small"
    assert checkpoint.has("transformer")
    assert not checkpoint.has("text_encoder_3")
    assert not checkpoint.has("tokenizer")
    assert checkpoint.class_name("transformer") == "SD3Transformer2DModel"
    assert checkpoint.config("transformer") == {"patch_size": 2}
    assert checkpoint.config("scheduler") == {"shift": 3.0}


def test_weights_are_looked_up_by_name(folder: Path) -> None:
    tensors = open_checkpoint(str(folder)).tensors("transformer")
    assert sorted(tensors) == ["a", "b"]
    assert torch.equal(tensors["a"], torch.arange(4.0))


def test_shards_are_one_mapping(folder: Path) -> None:
    split(folder, {"a": "shard-1.safetensors", "b": "shard-2.safetensors"})
    tensors = open_checkpoint(str(folder)).tensors("transformer")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"a": (4,), "b": (2, 2)}


def test_a_missing_shard_is_named(folder: Path) -> None:
    split(folder, {"a": "shard-1.safetensors", "b": "shard-3.safetensors"})
    assert_refused(folder, "shard-3.safetensors is missing")


def test_a_tensor_that_is_in_no_shard_is_named(folder: Path) -> None:
    split(folder, {"a": "shard-1.safetensors", "b": "shard-1.safetensors"})
    assert_refused(folder, "shard-1.safetensors has no tensor 'b'")


@pytest.mark.parametrize("name", ["../vae/x.safetensors", "/etc/x.safetensors", "..", "x.bin", 7])
def test_an_index_names_only_files_beside_it(folder: Path, name: object) -> None:
    split(folder, {"a": name})
    assert_refused(folder, "index.json names", repr(name))


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(folder: Path, index: str) -> None:
    split(folder, {})
    (folder / "transformer" / f"{WEIGHTS}.index.json").write_text(index)
    assert_refused(folder, f"{WEIGHTS}.index.json")


@pytest.mark.parametrize("length", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_named(folder: Path, length: int) -> None:
    file = folder / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:length])
    assert_refused(folder, str(file), "truncated")


def test_pickles_are_not_loaded(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).rename(folder / "transformer" / "diffusion_pytorch_model.bin")
    assert_refused(folder, "diffusion_pytorch_model.bin", "only safetensors")


def test_a_component_without_weights_is_named(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).unlink()
    assert_refused(folder, str(folder / "transformer"), "has no diffusion_pytorch_model.safetensors")


def test_a_component_without_its_folder_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder for its component 'vae'"):
        open_checkpoint(str(folder)).config("vae")


def test_a_component_that_the_index_leaves_out_is_named(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="names no component 'text_encoder_3'"):
        open_checkpoint(str(folder)).tensors("text_encoder_3")


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe\x00"])
def test_a_config_that_is_no_json_object_is_named(folder: Path, text: bytes) -> None:
    (folder / "transformer" / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(str(folder)).config("transformer")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no model_index\.json"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="neither a known model nor a folder"):
        open_checkpoint(str(tmp_path / "nothing"))
    (tmp_path / "model_index.json").write_text("no")
    with pytest.raises(CheckpointError, match=r"model_index\.json is not JSON"):
        open_checkpoint(str(tmp_path))


def rename_weights(folder: Path, *names: str) -> None:
    """Each name has weights of its own: "a" counts which."""
    (folder / "transformer" / WEIGHTS).unlink()
    for number, name in enumerate(names):
        save_file({"a": torch.tensor([float(number)])}, folder / "transformer" / name)


def first_of(folder: Path, variant: str | None = None) -> float:
    return float(open_checkpoint(str(folder), variant=variant).tensors("transformer")["a"][0])


def test_a_folder_with_one_variant_has_it(folder: Path) -> None:
    rename_weights(folder, "diffusion_pytorch_model.fp16.safetensors")
    assert first_of(folder) == first_of(folder, "fp16") == 0


def test_of_several_variants_the_plain_one_is_taken_or_the_chosen_one(folder: Path) -> None:
    rename_weights(folder, "diffusion_pytorch_model.fp16.safetensors", WEIGHTS)
    assert (first_of(folder), first_of(folder, "fp16")) == (1, 0)


def test_several_variants_without_a_plain_one_must_be_chosen_from(folder: Path) -> None:
    rename_weights(folder, "model.fp16.safetensors", "model.bf16.safetensors")
    assert_refused(folder, "several variants and no plain one", "--variant (bf16, fp16)")
    assert first_of(folder, "bf16") == 1


def test_a_variant_that_no_component_has_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"transformer has no variant fp61.*\(the plain one\)"):
        first_of(folder, "fp61")


def test_a_component_without_the_chosen_variant_has_its_plain_one(folder: Path) -> None:
    (folder / "vae").mkdir()
    save_file({"v": torch.ones(1)}, folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    assert first_of(folder, "fp16") == 0
    checkpoint = open_checkpoint(str(folder), variant="fp16")
    assert set(checkpoint.tensors("vae")) == {"v"}


@pytest.mark.parametrize(
    "index", [f"{WEIGHTS}.index.fp16.json", f"{WEIGHTS[:-12]}.fp16.safetensors.index.json"]
)
def test_shards_of_a_variant_are_one_mapping(index: str, folder: Path) -> None:
    shards = [f"diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    rename_weights(folder, *shards)
    save_file({"b": torch.ones(1)}, folder / "transformer" / shards[1])
    weight_map = {"a": shards[0], "b": shards[1]}
    (folder / "transformer" / index).write_text(json.dumps({"weight_map": weight_map}))
    assert set(open_checkpoint(str(folder)).tensors("transformer")) == {"a", "b"}


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "svdquant"])
def test_a_quantization_that_is_not_read_is_refused_by_name(method: str, folder: Path) -> None:
    config = {"patch_size": 2, "quantization_config": {"quant_method": method}}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=rf"config\.json says .* quantized by {method}; read are bitsand"
    ):
        open_checkpoint(str(folder)).config("transformer")
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(str(folder)).config("transformer") == {"patch_size": 2}


def test_the_models_of_the_package_open_by_name() -> None:
    for name in bundled_models():
        assert open_checkpoint(name).name == name


def test_the_fingerprint_changes_with_what_decides_the_bits(folder: Path) -> None:
    def current(dtype: str = "float32", determinism: str = "fast") -> str:
        checkpoint = open_checkpoint(str(folder))
        return stage_fingerprint(checkpoint, ["transformer"], "cpu", dtype, determinism)

    before = current()
    assert before == current()
    assert before != current(dtype="bfloat16")
    assert before != current(determinism="batch-invariant")
    save_file({"a": torch.arange(4.0), "b": torch.zeros(2, 2)}, folder / "transformer" / WEIGHTS)
    after = current()
    assert before != after
    (folder / "transformer" / "config.json").write_text('{"patch_size": 1}')
    assert after != current()


def test_the_order_of_a_fingerprints_parts_does_not_matter() -> None:
    assert fingerprint({"a": "1", "b": "2"}) == fingerprint({"b": "2", "a": "1"})
    assert fingerprint({"a": "1", "b": "2"}) != fingerprint({"a": "2", "b": "1"})


def test_a_large_file_is_sampled_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "large.safetensors"
    with file.open("wb") as stream:
        stream.truncate((1 << 30) + 1)  # sparse: no disk is filled
    before = weights_identity([file])
    assert before.startswith("sampled:")
    with file.open("r+b") as stream:
        stream.write(b"header")
    assert weights_identity([file]) != before


def as_modular(folder: Path, subfolder: object = "transformer", source: object = "org/name") -> None:
    """The index as a modular pipeline has it: where components are, and hints of their classes."""
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("transformer", "scheduler", "vae"):
        where = {"pretrained_model_name_or_path": "org/name", "subfolder": name, "type_hint": index[name]}
        index[name] = [None, None, where]
    index["transformer"][2] |= {"subfolder": subfolder, "pretrained_model_name_or_path": source}
    index["scheduler"][:2] = ["diffusers", "OtherScheduler"]
    (folder / "model_index.json").unlink()
    (folder / "modular_model_index.json").write_text(json.dumps(index))


def test_the_index_of_a_modular_pipeline_is_read(folder: Path) -> None:
    as_modular(folder, "elsewhere")
    (folder / "transformer").rename(folder / "elsewhere")
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.class_name("transformer") == "SD3Transformer2DModel"
    assert checkpoint.class_name("scheduler") == "OtherScheduler"
    assert not checkpoint.has("text_encoder_3")
    assert checkpoint.config("transformer") == {"patch_size": 2}
    assert checkpoint.config("scheduler") == {"shift": 3.0}
    assert set(checkpoint.tensors("transformer")) == {"a", "b"}
    with pytest.raises(CheckpointError, match=r"modular_model_index\.json names no component 'tokenizer'"):
        checkpoint.class_name("tokenizer")


@pytest.mark.parametrize("subfolder", ["transformer", ""])
def test_a_component_in_another_folder_is_read_from_there(
    subfolder: str, folder: Path, tmp_path: Path
) -> None:
    as_modular(folder, subfolder, str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    (folder / "transformer").rename(tmp_path / "other" / subfolder)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.folder("transformer") == tmp_path / "other" / subfolder
    assert checkpoint.config("transformer") == {"patch_size": 2}
    assert set(checkpoint.tensors("transformer")) == {"a", "b"}
    assert checkpoint.folder("scheduler") == folder / "scheduler"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("/no/such/folder", "'/no/such/folder', which is neither a folder here nor a name on the hub"),
        (3, "the place of 'transformer' is 3, where a name belongs"),
    ],
)
def test_a_component_that_is_nowhere_is_refused(source: object, sentence: str, folder: Path) -> None:
    as_modular(folder, "elsewhere", source)
    with pytest.raises(CheckpointError, match=sentence):
        open_checkpoint(str(folder)).config("transformer")


@pytest.mark.parametrize("subfolder", ["../other", "/etc", "a/b", "..", 3])
def test_a_component_outside_the_checkpoint_is_refused(subfolder: object, folder: Path) -> None:
    as_modular(folder, subfolder)
    with pytest.raises(CheckpointError, match=r"the folder of 'transformer' is .*, which is none of its own"):
        open_checkpoint(str(folder))
