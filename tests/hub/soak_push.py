"""Uploads that are killed: no half-made commit, and the repeated upload sends only what is missing.

    python tests/hub/soak_push.py --count 30

Each trial pushes a checkpoint of its own to the stand-in Hub in a process that is killed (SIGKILL) when a
random number of bytes has arrived, and then pushes it again. What has to hold: after the kill the
repository has its first commit alone, or the whole checkpoint; the second push sends exactly the objects
that the Hub lacked, byte for byte; and a third sends nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from stand_in.server import HubServer
from stand_in.storage import read_folder


def main() -> int:
    """Run the trials; prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # "nothing to upload", thirty times
    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        os.environ.update(
            hub.environment(Path(folder, "home"))
        )  # before huggingface_hub is imported
        outcomes = [trial(hub, Path(folder), args.seed + n) for n in range(args.count)]
    sent = [outcome["sent_again"] for outcome in outcomes]
    whole = outcomes[0]["bytes"]
    report = {
        "killed": len(outcomes),
        "repositories_untouched_after_the_kill": sum(outcome["untouched"] for outcome in outcomes),
        "commits_whole_after_the_kill": sum(outcome["whole"] for outcome in outcomes),
        "bytes_of_a_checkpoint": whole,
        "bytes_sent_again_mean": sum(sent) // len(sent),
        "seconds": round(sum(outcome["seconds"] for outcome in outcomes), 1),
    }
    print(json.dumps(report, indent=1))
    return 0


def trial(hub: HubServer, folder: Path, seed: int) -> dict:
    """One checkpoint, killed once, pushed again twice.

    Raises:
        AssertionError: a rule is broken.
    """
    started = time.perf_counter()
    rng = random.Random(seed)
    checkpoint = make_checkpoint(folder / str(seed), seed)
    repo = f"tester/model-{seed}"
    expected = read_folder(checkpoint)
    objects = {name: expected[name] for name in expected if name.endswith(".safetensors")}
    total = sum(map(len, objects.values()))
    hub.uploads.clear()
    hub.bytes_per_second = 5_000_000
    at = hub.bytes_arrived + rng.randrange(total)
    push = start_push(checkpoint, repo)
    while hub.bytes_arrived < at and os.waitpid(push, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(push, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(push, 0)
    hub.bytes_per_second = None
    while hub.busy:  # what sockets still held has arrived, or the server has noticed
        time.sleep(0.01)
    files = hub.files(repo) if ("model", repo) in hub.repositories else {}
    assert files in ({}, expected), f"seed {seed}: a half-made commit of {sorted(files)}"
    missing = sum(
        len(content) for content in objects.values() if content not in hub.objects.values()
    )
    hub.uploads.clear()
    push_here(checkpoint, repo)
    assert hub.files(repo) == expected, f"seed {seed}: the second push left something out"
    again = hub.bytes_received()
    assert again == missing, f"seed {seed}: {again} bytes sent again, {missing} were missing"
    hub.uploads.clear()
    push_here(checkpoint, repo)
    assert not hub.uploads and len(hub.repositories["model", repo].commits) == 2
    return {
        "untouched": files == {},
        "whole": files == expected,
        "bytes": total,
        "sent_again": again,
        "seconds": time.perf_counter() - started,
    }


def make_checkpoint(folder: Path, seed: int) -> Path:
    """A checkpoint of 19 MB in files of up to 5, more than sockets buffer, with weights of its own."""
    import torch
    from checkpoint_fixtures import image_bpe, llama_3_tokenizer, patch_vq
    from transformers import LlamaConfig, LlamaForCausalLM

    from being_vl.hub.checkpoint import init_checkpoint, save_checkpoint

    tokenizer = llama_3_tokenizer()
    sizes = {"hidden_size": 512, "intermediate_size": 768, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **sizes)
    torch.manual_seed(seed)
    model, processor = init_checkpoint(LlamaForCausalLM(config), tokenizer, patch_vq(), image_bpe())
    with torch.no_grad():
        processor.vq_model.codebook.normal_(generator=torch.Generator().manual_seed(seed))
    save_checkpoint(model, processor, folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5MB")
    (folder / "README.md").write_text("# A checkpoint\n")
    return folder


def push_here(checkpoint: Path, repo: str) -> None:
    """`being-vl push` in this process."""
    from being_vl.cli import main as being_vl

    with contextlib.redirect_stdout(io.StringIO()):
        assert being_vl(["push", str(checkpoint), repo]) == 0


def start_push(checkpoint: Path, repo: str) -> int:
    """`being-vl push` in a process of its own; its number."""
    import being_vl.hub.folder  # noqa: F401  (imported once, before the process splits)

    child = os.fork()
    if child == 0:
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
                push_here(checkpoint, repo)
        finally:
            os._exit(0)
    return child


if __name__ == "__main__":
    sys.exit(main())
