"""The entropy of every token of a text under a Hugging Face model, and which are its forking tokens.

python examples/scripts/entropy_of_a_text.py MODEL_FOLDER "some text"
"""

import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_fork.selection import kth_largest
from megatron_fork.vocab_parallel import token_statistics

folder, text = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
tokens_bt = tokenizer(text, return_tensors="pt").input_ids
with torch.no_grad():
    found = token_statistics(model(tokens_bt).logits[:, :-1], tokens_bt[:, 1:])
entropy_t = found.entropy[0]  # nats; of the distribution from which each token was drawn
threshold = kth_largest(entropy_t, math.ceil(0.2 * len(entropy_t)))
for token, entropy, logprob in zip(tokens_bt[0, 1:], entropy_t, found.logprob[0], strict=True):
    mark = "fork" if entropy >= threshold else ""
    print(f"{float(entropy):6.3f}  {float(logprob):8.3f}  {tokenizer.decode([int(token)])!r:20} {mark}")
