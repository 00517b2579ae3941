"""vLLM's own batch call, `LLM.generate`: run in vLLM's environment by engines.py; a line of JSON in, the number of tokens out.

.venv-vllm/bin/python benchmarks/vllm_batch.py MODEL    {"prompts": [[token ids]], "sampling": [fields of SamplingParams]}
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints is no answer
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=sys.argv[1],
        dtype="float32",
        skip_tokenizer_init=True,
        generation_config="vllm",
        enforce_eager=True,
        kv_cache_memory_bytes=256 << 20,
        logprobs_mode="processed_logprobs",
    )
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [{"prompt_token_ids": tokens} for tokens in asked["prompts"]]
        outputs = llm.generate(prompts, [SamplingParams(**fields) for fields in asked["sampling"]], use_tqdm=False)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(tokens, file=answers, flush=True)


if __name__ == "__main__":
    main()
