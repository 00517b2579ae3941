"""Real servers name what each token was drawn from, and SGLang its experts too; log-probs under the sets are the policy's."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from support.engine_models import STOP, logits_of, new_model, requests, weights_of
from support.engine_servers import serving
from support.tiny_qwen3 import family_config, hugging_face_model
from transformers import PreTrainedModel

from megatron_fork.conversion import PublishedWeights
from megatron_fork.rollout import Completion, RemoteConfig, RemoteEngine, Request, RolloutConfig

CUTS = {"top_p": 0.9, "top_k": 20, "min_p": 0.02}


def drawn(
    engine: str, url: str, model: PreTrainedModel, folder: Path, *, experts: bool
) -> Iterator[tuple[Request, Completion]]:
    config = RolloutConfig(
        engine=engine,
        servers=[url],
        replay_sampling_mask=True,
        remote=RemoteConfig(control_seconds=60.0, health_timeout_seconds=30.0, stream_interval=4),
        **CUTS,
    )
    made = RemoteEngine(
        config, model.config, stop_tokens=(STOP,), folder=folder, world=None, records_experts=experts, save=lambda: None
    )
    asked = requests(20, max_tokens=24, temperature=0.8, reports_kept=True, **CUTS)
    with closing(made):
        made.update_weights(list(PublishedWeights(dict(weights_of(model))).items()), 1)
        for completion in made.generate(asked):
            yield asked[completion.number], completion


def check_sets(model: PreTrainedModel, request: Request, completion: Completion) -> int:
    """Log-probs under the sets are the model's; how many tokens were cut."""
    assert completion.kept is not None and len(completion.kept) == len(completion.tokens)
    logits = logits_of(model, request, tuple(completion.tokens)) / request.temperature
    ids, cut = iter(completion.kept.ids), 0
    for token, count, logprob, logits_v in zip(
        completion.tokens, completion.kept.counts, completion.logprob, logits, strict=True
    ):
        kept = [next(ids) for _ in range(count)]
        expected = logits_v[kept].log_softmax(0)[kept.index(token)]
        assert abs(float(expected) - logprob) < 1e-4
        most = logits_v.softmax(0).topk(count).indices.tolist()
        assert 1 <= count <= CUTS["top_k"] and set(kept) == set(most)
        cut += count < len(logits_v)
    return cut


def test_vllm_without_its_second_runner_names_the_sets_by_log_probs(tmp_path: Path) -> None:
    model = new_model(tied=True, seed=3)
    model.save_pretrained(tmp_path / "model")
    options = ["--max-logprobs", str(CUTS["top_k"])]
    with serving("vllm", tmp_path / "model", tmp_path, options=options) as server:
        pairs = list(drawn("vllm", server.url, model, tmp_path / "weights", experts=False))
    assert len(pairs) == 20 and sum(check_sets(model, *pair) for pair in pairs) > 100


def test_sglang_names_the_sets_and_the_experts(tmp_path: Path) -> None:
    config = family_config("qwen3_moe", vocab_size=135, max_position_embeddings=128, eos_token_id=STOP, pad_token_id=0)
    model = hugging_face_model(config)
    model.save_pretrained(tmp_path / "model")
    with serving("sglang", tmp_path / "model", tmp_path, options=["--enable-return-routed-experts"]) as server:
        pairs = list(drawn("sglang", server.url, model, tmp_path / "weights", experts=True))
    assert len(pairs) == 20 and sum(check_sets(model, *pair) for pair in pairs) > 100
    alike = total = 0
    for request, completion in pairs:
        tokens = torch.tensor([[*request.tokens, *completion.tokens][:-1]])
        with torch.no_grad():
            scores = model.model(input_ids=tokens, output_router_logits=True).router_logits
        wanted = torch.stack([layer.topk(config.num_experts_per_tok).indices for layer in scores], dim=1)
        assert completion.experts is not None and completion.experts.shape == wanted.shape
        same = completion.experts.long().sort(-1).values == wanted.sort(-1).values
        alike, total = alike + int(same.all(-1).sum()), total + same.shape[0] * same.shape[1]
    assert alike > 0.99 * total  # two scores may be nearly the same
