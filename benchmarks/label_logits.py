"""CPU seconds of a training step with all logits, and with those of the labels alone.

    python benchmarks/label_logits.py

A Llama of 4 layers, 288 wide, with the vocabulary of hub_configs/models/smollm2-135m (65,539 ids); 4 rows of 256
tokens, of which the last few have labels. The best of 4 steps each, in one process on one thread.
"""

import time

import torch

from being_vl import BeingVLConfig, BeingVLForCausalLM


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BeingVLConfig(
        text_vocab_size=49152,
        num_special_tokens=3,
        hidden_size=288,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    model = BeingVLForCausalLM(config).train()
    ids = torch.randint(3, config.vocab_size, (4, 256))

    def step(labels: torch.Tensor, only: bool) -> float:
        model.zero_grad()
        start = time.process_time()
        model(ids, labels=labels, loss_logits_only=only).loss.backward()
        return time.process_time() - start

    for num_labels in (5, 64, 255):
        labels = torch.full_like(ids, -100)
        labels[:, -num_labels:] = ids[:, -num_labels:]
        full, only = (min(step(labels, flag) for _ in range(4)) for flag in (False, True))
        print(f"{num_labels} labels a row: {full:.2f} s, {only:.2f} s, ratio {full / only:.1f}")


if __name__ == "__main__":
    main()
