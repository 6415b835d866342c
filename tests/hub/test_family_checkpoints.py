"""What a user of each family does, by the commands: init, tokenize, two stages, pipelines, card, code that travels.

The bases are random, saved by their stock class beside a tokenizer as their family has it: more rows than ids,
several ends of text, no BOS (Qwen), a chat template of the published model where TRL ships one.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from behaviour_fixtures import in_new_process
from checkpoint_fixtures import (
    CODEBOOK_SIZE,
    GRID,
    image_bpe,
    patch_vq,
    random_grids,
    smollm_tokenizer,
)
from family_fixtures import NAMES, PADDED_ROWS, base_config, family_named
from huggingface_hub import ModelCard
from PIL import Image
from template_fixtures import TRL, base_tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import being_vl
from being_vl.cli import main

EACH = pytest.mark.parametrize("name", NAMES)
TEMPLATES = {
    "being_vl": "llama3",
    "being_vl_qwen2": "qwen2_5",
    "being_vl_qwen3": "qwen3",
    "being_vl_mistral": "mistral",
    "being_vl_gemma3": "gemma3",
    "being_vl_phi3": "phi3",
}
TEXT = "Is the red square above the circle?"


def tokenizer_of(name: str):
    """As the family has it; with the template that `init` makes where there is none."""
    if name in TEMPLATES and TRL is not None:
        return base_tokenizer(TEMPLATES[name])
    tokenizer = smollm_tokenizer()
    if name.startswith("being_vl_qwen"):
        tokenizer.bos_token = None
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base-NAME and start-NAME of each family, vq, bpe, codes.npy, chats.json."""
    folder = tmp_path_factory.mktemp("families")
    patch_vq().save_pretrained(folder / "vq")
    image_bpe().save_pretrained(folder / "bpe")
    np.save(folder / "codes.npy", np.stack(random_grids(4)))
    chats = [
        {
            "id": str(number),
            "image": str(number),
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A red square."},
            ],
        }
        for number in range(4)
    ]
    (folder / "chats.json").write_text(json.dumps(chats))
    for name in NAMES:
        tokenizer = tokenizer_of(name)
        tokenizer.save_pretrained(folder / f"base-{name}")
        ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
        torch.manual_seed(0)
        config = base_config(
            name,
            rows=len(tokenizer) + PADDED_ROWS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=sorted(set(ends)),
        )
        if getattr(config, "sliding_window", None):
            config.sliding_window = (
                128  # so that an answer sees the image, whatever the template puts between
            )
        base = getattr(transformers, family_named(name).stock_class)(config)
        base.save_pretrained(folder / f"base-{name}")
        parts = ["--quantizer", f"{folder}/vq", "--bpe", f"{folder}/bpe", "--remote-code"]
        made = ["--base", f"{folder}/base-{name}", "--output", f"{folder}/start-{name}"]
        assert main(["init", *made, *parts]) == 0
    return folder


def loaded(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, AutoProcessor.from_pretrained(folder)


@EACH
@torch.no_grad()
def test_init_takes_a_saved_base(folder, name, capsys):
    """Text as in the base; unused rows are taken first; ends of text, BOS and template are the base's."""
    stock = getattr(transformers, family_named(name).stock_class)
    base = stock.from_pretrained(folder / f"base-{name}").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / f"base-{name}")
    model, processor = loaded(folder / f"start-{name}")
    assert type(model) is getattr(being_vl, family_named(name).language_model_class)
    layout, ids = model.config.layout, torch.tensor([tokenizer(TEXT).input_ids])
    assert layout.text_size == len(tokenizer) == base.config.vocab_size - PADDED_ROWS
    assert processor(text=TEXT)["input_ids"] == ids.tolist()
    ours, theirs = (m(ids).logits[..., : layout.text_size] for m in (model, base))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    plain = stock.from_pretrained(folder / f"start-{name}").eval()
    assert torch.equal(plain(ids).logits, model(ids).logits)
    ends, known = (
        [c.eos_token_id] if isinstance(c.eos_token_id, int) else c.eos_token_id
        for c in (model.generation_config, base.generation_config)
    )
    # The template's end of a turn joins them, see test_end_of_turn.py.
    assert ends[: len(known)] == known and len(ends) <= len(known) + 1
    assert processor.tokenizer.bos_token == tokenizer.bos_token
    if tokenizer.chat_template is not None:
        chat = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Yes."}]
        options = {"tokenize": False, "chat_template": None}
        assert processor.apply_chat_template(chat) == tokenizer.apply_chat_template(chat, **options)


@EACH
def test_the_check_says_what_init_makes(folder, name, capsys):
    capsys.readouterr()
    assert main(["init", "--check", "--base", f"{folder}/base-{name}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    model, _ = loaded(folder / f"start-{name}")
    family = family_named(name)
    own = name in TEMPLATES and TRL is not None
    assert found == {
        "family": family.title,
        "model_class": type(model).__name__,
        "stock_class": family.stock_class,
        "text_size": model.config.text_vocab_size,
        "rows": model.config.text_vocab_size + PADDED_ROWS,
        "chat_template": "own" if own else "default",
    }


@EACH
def test_two_stages_by_the_commands(folder, tmp_path, name):
    """tokenize, pretrain, sft: text rows and the decoder stay bit for bit in the first, and move in the second."""
    start = f"{folder}/start-{name}"
    data = ["--data", f"{folder}/chats.json", "--codes", f"{folder}/codes.npy", "--workers", "1"]
    assert main(["tokenize", "--checkpoint", start, *data, "--output", f"{tmp_path}/rows"]) == 0
    options = ["--data", f"{tmp_path}/rows", "--use_cpu", "true", "--bf16", "false"]
    options += ["--max_steps", "2", "--learning_rate", "1e-2", "--report_to", "none"]
    weights = [transformers.AutoModelForCausalLM.from_pretrained(start).state_dict()]
    for stage in ("pretrain", "sft"):
        output = f"{tmp_path}/{stage}"
        run = ["train", "--checkpoint", start, "--stage", stage, "--output_dir", output, *options]
        assert main(run) == 0
        stock = getattr(transformers, family_named(name).stock_class).from_pretrained(output)
        weights.append(stock.state_dict())
        start = output
    base, first, second = weights
    text_size = json.loads((tmp_path / "sft/config.json").read_text())["text_vocab_size"]
    rows = {"model.embed_tokens.weight", "lm_head.weight"}
    assert {key for key in base if not torch.equal(base[key], first[key])} == rows
    for key in rows:
        assert torch.equal(base[key][:text_size], first[key][:text_size])
        assert not torch.equal(first[key][:text_size], second[key][:text_size])
    assert not torch.equal(first["model.norm.weight"], second["model.norm.weight"])


@EACH
def test_pipelines(folder, name):
    model, processor = loaded(folder / f"start-{name}")
    options = {"max_new_tokens": 5, "do_sample": False}
    pipe = pipeline("text-generation", model=f"{folder}/start-{name}")
    (answer,) = pipe(TEXT, return_full_text=False, **options)
    inputs = processor(text=TEXT, return_tensors="pt")
    expected = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert answer["generated_text"] == processor.decode(expected, skip_special_tokens=True)
    pipe = pipeline("image-text-to-text", model=f"{folder}/start-{name}")
    content = [{"type": "image", "image": Image.new("RGB", (20, 30), "red")}]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": TEXT}]}]
    (answer,) = pipe(text=chat, return_full_text=False, generate_kwargs=options)
    batch = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **batch)
    expected = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert answer["generated_text"] == processor.decode(expected, skip_special_tokens=True)


@EACH
def test_card(folder, name):
    assert main(["card", f"{folder}/start-{name}", "--base-model", "tester/base"]) == 0
    text = (folder / f"start-{name}/README.md").read_text()
    data = ModelCard(text).data
    assert (data.base_model, data.pipeline_tag) == ("tester/base", "image-text-to-text")
    assert f"| {family_named(name).title} | 2 layers, 32 wide, 4 heads" in text
    model, _ = loaded(folder / f"start-{name}")
    assert f"| ids | {model.config.text_vocab_size:,} text" in text


# Runs here, and where being_vl cannot be imported.
_ANSWERS = """
def answers(source, trust):
    import hashlib
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    options = {"trust_remote_code": True} if trust else {}
    processor = AutoProcessor.from_pretrained(source, **options)
    model = AutoModelForImageTextToText.from_pretrained(source, **options).eval()
    content = [{"type": "image", "image": Image.new("RGB", (20, 30), "red")}, {"type": "text", "text": "What?"}]
    batch = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True,
                                          add_generation_prompt=True, return_tensors="pt")
    logits = model(**batch).logits.detach().numpy().tobytes()
    text = model.generate(**batch, max_new_tokens=5, do_sample=False).tolist()
    image = model.generate(**batch, generation_mode="image", do_sample=False)
    image = processor.post_process_multimodal_output(image, generation_mode="image")[0]
    seen = [hashlib.sha256(logits).hexdigest(), text, hashlib.sha256(image.tobytes()).hexdigest(), list(image.size)]
    return seen, model, processor
"""
_WITHOUT_THE_PACKAGE = (
    # numba, which is optional, would compile the image BPE anew in each of the folders.
    "import json, sys\nsys.modules['being_vl'] = sys.modules['numba'] = None\n"
    + _ANSWERS
    + """
seen = {}
for name in NAMES:
    seen[name], model, processor = answers(f"SOURCE-{name}", True)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    model.save_pretrained(f"saved-{name}")
    processor.save_pretrained(f"saved-{name}")
print(json.dumps(seen))
"""
)


@pytest.fixture(scope="module")
def generations(folder):
    """What each family's checkpoint does where the package is absent, and what one saved there does in another such process."""
    seen = []
    for number, source in enumerate((folder / "start", folder / "process-0" / "saved")):
        code = _WITHOUT_THE_PACKAGE.replace("NAMES", repr(NAMES)).replace("SOURCE", str(source))
        home = {"HF_HOME": str(folder / f"home-{number}"), "HF_HUB_OFFLINE": "1"}
        seen.append(in_new_process(code, folder / f"process-{number}", home))
    return seen


@EACH
def test_code_travels_and_is_handed_on(folder, generations, name):
    scope = {}
    exec(_ANSWERS, scope)
    want, _, processor = scope["answers"](f"{folder}/start-{name}", False)
    assert (
        want[3] == [GRID * 4, GRID * 4]
        and processor.vq_model.config.num_embeddings == CODEBOOK_SIZE
    )
    for seen in generations:
        assert seen[name] == json.loads(json.dumps(want))


@pytest.mark.parametrize("name", ["being_vl", "being_vl_gemma3"])
def test_added_tokens_without_a_row(folder, tmp_path, name, capsys):
    """Gemma 3's `<image_soft_token>`: 262,145 ids and 262,144 rows. It keeps its id, and gets a row."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / f"base-{name}")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    stock = getattr(transformers, family_named(name).stock_class)
    base = stock(base_config(name, rows=rows)).eval()
    base.save_pretrained(tmp_path / "base")
    assert main(["init", "--check", "--base", f"{tmp_path}/base"]) == 0
    assert f"{rows} rows for {rows} ids" in capsys.readouterr().out
    parts = ["--quantizer", f"{folder}/vq", "--bpe", f"{folder}/bpe"]
    made = ["--base", f"{tmp_path}/base", "--output", f"{tmp_path}/start"]
    assert main(["init", *made, *parts]) == 0
    model, processor = loaded(tmp_path / "start")
    layout = processor.tokenizer.layout
    assert layout == model.config.layout and layout.text_size == rows
    text = "the <image_soft_token>"
    ids = processor(text=text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == tokenizer(text).input_ids and ids[0, -1] == rows
    assert model(ids).logits.shape[-1] == layout.size == len(processor.tokenizer)
    ids = ids[:, :-1]
    assert torch.equal(model(ids).logits[..., :rows], base(ids).logits)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path, capsys):
    """Ids without a row that are words, not added tokens."""
    base_tokenizer("mistral").save_pretrained(tmp_path)
    base_config("being_vl", rows=100).save_pretrained(tmp_path)
    assert main(["init", "--check", "--base", str(tmp_path)]) == 2
    assert "ids, but the matrices of the text model have 100 rows" in capsys.readouterr().err
