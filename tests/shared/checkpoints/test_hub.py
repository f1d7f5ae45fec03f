"""Models of the hub: one commit, only files that are used, the cache when offline, errors of one sentence."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.shared.checkpoints.hub_server import COMMIT, OLD_COMMIT, Hub, running_hub
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.opening import open_checkpoint
from triptych.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, no token, and no pauses before a request is repeated."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path / "cache"


@pytest.fixture
def repository(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The files of a model on the hub, with some that must not be downloaded."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "repository")
    for file in ("transformer/diffusion_pytorch_model.bin", "transformer/x.fp16.safetensors", "README.md"):
        (folder / file).write_bytes(b"not for us")
    return folder


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(repository) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is at a port where nobody listens."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def fill_cache(cache: Path, files: Path, revision: str = "main") -> Path:
    """As huggingface_hub lays out a commit: its files, and the branch that stands for it."""
    model = cache / "models--org--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / revision).write_text(COMMIT)
    return Path(shutil.copytree(files, model / "snapshots" / COMMIT))


def assert_refused(*words: str, model: str = "org/tiny", **options: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(model, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_stage_downloads_what_it_uses(hub: Hub, repository: Path) -> None:
    checkpoint = open_checkpoint("org/tiny")
    assert (checkpoint.name, checkpoint.revision) == ("tiny", COMMIT)
    tensors, expected = checkpoint.tensors("transformer"), load_file(repository / "transformer" / WEIGHTS)
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert hub.downloaded() == {"model_index.json", "transformer/config.json", f"transformer/{WEIGHTS}"}


def test_a_config_comes_without_its_weights_and_a_tokenizer_whole(hub: Hub, repository: Path) -> None:
    (repository / "triptych.json").write_text("{}")
    checkpoint = open_checkpoint("org/tiny")
    assert checkpoint.config("scheduler")["shift"] == 3.0
    tokenizer = {file.name for file in (repository / "tokenizer").iterdir()}
    assert {file.name for file in checkpoint.folder("tokenizer").iterdir()} == tokenizer
    weights = {file for file in hub.downloaded() if file.endswith(".safetensors")}
    assert "triptych.json" in hub.downloaded()
    assert not weights


def test_shards_are_downloaded_by_their_index(hub: Hub, repository: Path) -> None:
    transformer = repository / "transformer"
    (transformer / WEIGHTS).unlink()
    for name in "ab":
        save_file({name: torch.ones(2)}, transformer / f"{name}.safetensors")
    index = '{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
    (transformer / f"{WEIGHTS}.index.json").write_text(index)
    assert set(open_checkpoint("org/tiny").tensors("transformer")) == {"a", "b"}
    assert {"transformer/a.safetensors", "transformer/b.safetensors"} <= hub.downloaded()


def test_pickles_on_the_hub_are_named_and_stay_there(hub: Hub, repository: Path) -> None:
    (repository / "transformer" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"only diffusion_pytorch_model\.bin: only safetensors"):
        open_checkpoint("org/tiny").files("transformer")
    assert not any("bin" in file for file in hub.downloaded())


@pytest.mark.parametrize(
    ("revision", "commit"), [(None, COMMIT), ("v1", OLD_COMMIT), (OLD_COMMIT, OLD_COMMIT)]
)
def test_a_branch_a_tag_and_a_commit_become_a_commit(
    revision: str | None, commit: str, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        checkpoint = open_checkpoint("org/tiny", revision=revision)
    assert checkpoint.revision == commit
    assert checkpoint.path.name == commit
    assert f"org/tiny at {revision or 'main'} is commit {commit}" in caplog.messages


def test_progress_is_log_lines_where_there_is_no_terminal(
    hub: Hub, repository: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.zeros(1 << 19)}, repository / "transformer" / WEIGHTS)
    with caplog.at_level(logging.INFO, "triptych"):
        open_checkpoint("org/tiny").tensors("transformer")
    lines = [line for line in caplog.messages if "B/s" in line]
    assert len(lines) == 2
    assert lines[-1].startswith(f"transformer/{WEIGHTS}: 2.10M of 2.10M, ")
    assert "\r" not in capfd.readouterr().err


def test_the_token_of_the_environment_is_sent_and_never_logged(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        open_checkpoint("org/tiny").config("scheduler")
        assert hub.tokens == {""}
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        open_checkpoint("org/tiny").config("vae")
    assert hub.tokens == {"", "Bearer hf_secret"}
    assert "hf_secret" not in caplog.text


def test_the_token_of_a_login_is_sent(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_of_login\n")
    open_checkpoint("org/tiny")
    assert hub.tokens == {"Bearer hf_of_login"}


def test_a_line_break_behind_a_token_does_no_harm(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", " hf_secret\r\n")
    open_checkpoint("org/tiny")
    assert hub.tokens == {"Bearer hf_secret"}


@pytest.mark.parametrize("token", ["hf_secret hf_secret", "hf_secret\t1", "hf_secret–", "hf_secret\x00"])
def test_a_token_that_is_none_is_refused_without_being_said(
    token: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._auth.os.environ", {**os.environ, "HF_TOKEN": token})
    with caplog.at_level(logging.DEBUG), pytest.raises(CheckpointError) as caught:
        open_checkpoint("org/tiny")
    assert "characters that no token has" in str(caught.value)
    assert "hf_secret" not in str(caught.value) + caplog.text
    assert not hub.asked


def test_no_error_of_a_library_says_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    def fail(*_: object, **options: object) -> None:
        raise ValueError(f"illegal header: {options}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=r"illegal header.*'\.\.\.'") as caught:
        open_checkpoint("org/tiny")
    assert "hf_secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((401, "RepoNotFound"), ["there is no folder org/tiny here", "none either or it is private"]),
        ((403, "GatedRepo"), ["org/tiny is gated", "/org/tiny, and put a token", "HF_TOKEN"]),
        ((500, ""), ["org/tiny cannot be had from the hub", "500", "with --offline"]),
    ],
)
def test_a_refusal_of_the_hub_is_said(refusal: tuple[int, str], words: Sequence[str], hub: Hub) -> None:
    hub.refusal = refusal
    assert_refused(*words)


def test_a_modular_pipeline_has_another_index(hub: Hub, repository: Path) -> None:
    (repository / "model_index.json").rename(repository / "modular_model_index.json")
    checkpoint = open_checkpoint("org/tiny")
    assert checkpoint.class_name("transformer") == "SD3Transformer2DModel"
    assert checkpoint.config("transformer")
    offline = open_checkpoint("org/tiny", offline=True)
    assert offline.config("transformer") == checkpoint.config("transformer")


def as_modular(folder: Path, source: str, revision: str | None = None) -> None:
    """An index whose transformer is elsewhere: nothing of it is in the folder."""
    index = json.loads((folder / "model_index.json").read_text())
    where = {"pretrained_model_name_or_path": source, "subfolder": "transformer", "revision": revision}
    index["transformer"] = [*index["transformer"], where]
    (folder / "model_index.json").unlink()
    (folder / "modular_model_index.json").write_text(json.dumps(index))


def test_a_component_in_another_repository_is_downloaded(
    hub: Hub, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    local = shutil.copytree(tiny_checkpoint, tmp_path / "local")
    shutil.rmtree(local / "transformer")
    as_modular(local, "org/tiny", "v1")
    checkpoint = open_checkpoint(str(local))
    assert not hub.asked
    expected = load_file(tiny_checkpoint / "transformer" / WEIGHTS)
    assert set(checkpoint.tensors("transformer")) == set(expected)
    assert hub.downloaded() == {"transformer/config.json", f"transformer/{WEIGHTS}"}
    assert checkpoint.folder("transformer").parent.name == OLD_COMMIT
    assert checkpoint.config("vae")
    asked = len(hub.asked)
    assert open_checkpoint(str(local), offline=True).config("transformer")
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("org/other", ["there is no folder org/other here"]),
        ("/etc", ["'transformer' is in '/etc', which is no name on the hub (org/name)"]),
    ],
)
def test_a_repository_names_no_component_that_cannot_be_had(
    source: str, words: Sequence[str], hub: Hub, repository: Path
) -> None:
    shutil.rmtree(repository / "transformer")
    as_modular(repository, source)
    checkpoint = open_checkpoint("org/tiny")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.config("transformer")
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_the_hub_does_not_have_is_said(hub: Hub, repository: Path) -> None:
    assert_refused("there is no folder org/other here", model="org/other")
    assert_refused("org/tiny has no branch, tag or commit 'v9'", revision="v9")
    (repository / "model_index.json").unlink()
    assert_refused("org/tiny at main is no checkpoint: it has no model_index.json")


@pytest.mark.usefixtures("no_network")
def test_without_a_network_a_commit_is_taken_from_the_cache_and_a_branch_is_not(
    cache: Path, tiny_checkpoint: Path
) -> None:
    assert_refused("org/tiny cannot be had from the hub", "with --offline")
    fill_cache(cache, tiny_checkpoint)
    assert_refused("org/tiny cannot be had from the hub", "with --offline")
    assert open_checkpoint("org/tiny", revision=COMMIT).config("scheduler")["shift"] == 3.0


def by_option(monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    return open_checkpoint("org/tiny", offline=True)


def by_environment(monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return open_checkpoint("org/tiny")


@pytest.mark.parametrize("opened", [by_option, by_environment])
def test_offline_the_cache_is_enough_and_nothing_is_asked(
    opened: Callable[[pytest.MonkeyPatch], Checkpoint],
    hub: Hub,
    cache: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill_cache(cache, tiny_checkpoint)
    checkpoint = opened(monkeypatch)
    assert (checkpoint.name, checkpoint.revision) == ("tiny", COMMIT)
    assert len(checkpoint.tensors("vae")) == len(load_file(tiny_checkpoint / "vae" / WEIGHTS))
    assert checkpoint.folder("tokenizer").is_dir()
    assert not hub.asked


def test_what_was_downloaded_is_there_offline(hub: Hub) -> None:
    open_checkpoint("org/tiny").tensors("vae")
    requests = len(hub.asked)
    assert open_checkpoint("org/tiny", offline=True).tensors("vae")
    assert len(hub.asked) == requests


def test_offline_what_the_cache_lacks_is_said(cache: Path, tiny_checkpoint: Path) -> None:
    assert_refused("org/tiny at main is not in the cache", str(cache), offline=True)
    snapshot = fill_cache(cache, tiny_checkpoint)
    assert_refused("org/tiny at v2 is not in the cache", offline=True, revision="v2")
    (snapshot / "vae" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"as far as the cache has it, has no diffusion_pytorch_model"):
        open_checkpoint("org/tiny", offline=True).files("vae")


def test_a_folder_on_the_disk_wins_over_the_hub(
    hub: Hub, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "org" / "tiny")
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint("org/tiny")
    assert (checkpoint.path, checkpoint.revision) == (tmp_path / "org" / "tiny", "")
    assert not hub.asked
    assert_refused("a revision is for a name on the hub", revision="main")


def test_the_environment_of_huggingface_hub_is_honoured_by_a_service(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    def coordinator(*arguments: str) -> str:
        command = [sys.executable, "-m", "triptych_coordinator", "--model", "org/tiny", *arguments]
        command += [
            f"--{stage}=unix:{tmp_path}/{stage}" for stage in ("text-encoder", "denoiser", "vae-codec")
        ]
        environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert result.returncode == 1
        return result.stderr

    assert f"org/tiny at main is not in the cache, {tmp_path}/home/hub" in coordinator()
    snapshot = fill_cache(tmp_path / "home" / "hub", tiny_checkpoint)
    (snapshot / "scheduler" / "scheduler_config.json").unlink()
    said = coordinator("--revision", COMMIT)
    assert f"org/tiny at {COMMIT} is commit {COMMIT}" in said
    assert "as far as the cache has it, has no" in said
