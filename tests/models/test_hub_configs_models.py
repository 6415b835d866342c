"""hub_configs/models: every configuration builds, on the meta device, at the sizes that its README states."""

import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from being_vl import BeingVLConfig, BeingVLForCausalLM
from being_vl.cli.init import make_parser

MODELS = Path(__file__).parents[2] / "hub_configs" / "models"
NAMES = sorted(path.name for path in MODELS.iterdir() if path.is_dir())
# Of the published text models.
TEXT_PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-2-7b": 6_738_415_616,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
}


def _on_meta(model_class, config):
    with torch.device("meta"):
        return model_class(config)


def _readme_rows() -> dict[str, list[int]]:
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", (MODELS / "README.md").read_text(), re.MULTILINE)
    return {
        name: [
            int(cell.replace(",", ""))
            for cell in cells.split("|")
            if re.fullmatch(r"[\s\d,]+", cell)
        ]
        for name, cells in rows
    }


def test_there_is_a_configuration_for_each_text_model():
    assert set(NAMES) == set(TEXT_PARAMETERS) == set(_readme_rows())


@pytest.mark.parametrize("num_merges", [1024, 2048, 4096, 8192, 16384])
@pytest.mark.parametrize("name", NAMES)
def test_sizes(name, num_merges):
    config = BeingVLConfig.from_pretrained(MODELS / name, num_merges=num_merges)
    assert config.vocab_size == config.layout.size
    assert config.layout.num_merges == num_merges and config.codebook_size == 8192
    model = _on_meta(BeingVLForCausalLM, config)
    rows = config.vocab_size - config.text_vocab_size
    new = rows * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    assert model.num_parameters() == TEXT_PARAMETERS[name] + new
    special = (config.boi_token_id, config.eoi_token_id, config.image_token_id)
    assert len({*special, config.pad_token_id}) == 4
    assert all(config.layout.kind(token_id) == "special" for token_id in special)
    if num_merges == 8192:
        text_size, num_special, size, parameters, stated = _readme_rows()[name]
        assert (text_size, num_special) == (config.text_vocab_size, config.num_special_tokens)
        assert (size, parameters, stated) == (config.vocab_size, model.num_parameters(), new)


def test_llama_31_has_the_ids_of_the_authors_checkpoints():
    config = BeingVLConfig.from_pretrained(MODELS / "llama-3.1-8b")
    assert config.vocab_size == 144_645
    assert config.layout.first_code_id == 128_261 and config.layout.first_merge_id == 136_453
    # <pad>, <reserved08706>, <eoss>, <image>, <racm3:break> are 128256 to 128260.
    named = (config.pad_token_id, config.eoi_token_id, config.image_token_id, config.boi_token_id)
    assert named == (128_256, 128_258, 128_259, 128_260)


@pytest.mark.parametrize("name", NAMES)
def test_the_body_is_the_text_models(name):
    config = BeingVLConfig.from_pretrained(MODELS / name)
    fields = LlamaConfig().to_dict().keys() & config.to_dict().keys()
    text = {field: getattr(config, field) for field in fields - {"model_type", "architectures"}}
    stock = _on_meta(
        LlamaForCausalLM,
        LlamaConfig(**{**text, "vocab_size": config.text_vocab_size, "pad_token_id": None}),
    )
    assert stock.num_parameters() == TEXT_PARAMETERS[name]
    shapes = {
        key: tensor.shape
        for key, tensor in _on_meta(BeingVLForCausalLM, config).state_dict().items()
    }
    assert shapes.keys() == stock.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
def test_init_options_parse(name):
    argv = [
        "--config",
        str(MODELS / name / "init.yaml"),
        "--quantizer",
        "v",
        "--bpe",
        "b",
        "--output",
        "o",
    ]
    args = make_parser().parse_args(argv)
    assert args.dtype == "bfloat16" and args.base.count("/") == 1
    assert (args.special_tokens == "llama-3.1") == (name == "llama-3.1-8b")
