"""What the policy's statistics pass and update should cost on a GPU: counted and divided by stated rates; no GPU is used.

    python benchmarks/whole_step.py

Writes benchmarks/results/whole_step_predicted.json. Operations and bytes of a layer are counted by its real modules on tensors
without memory (`size/counted.py`), those of the LM head by `head/predicted.py`, peak memory by the planner (`size/planned.py`).

A pass is a row of launches, one after the other:

products    at the rate that the LM head's products reached on one H200: 761 TFLOP/s forward, 720 backward, or at the bandwidth
attention   half of the scores; ASSUMED rates: 350 TFLOP/s forward and 280 backward for FlashAttention 2, which local layers
            call through torch, 550 and 450 for FlashAttention 3, which they call where the package is, and for cuDNN's, which
            Transformer Engine calls, and torch for sequences that are not packed
sweeps      their bytes at 85 % of the bandwidth; Transformer Engine's are those that its modules are written to make, on the
            same layer: norms of heads, rotations and the cutting of the projection are launches of their own
LM head     its upper end: nothing hidden behind products
gradients   local layers write them in bfloat16 and add them to float32 buffers, 10 bytes a parameter; Transformer Engine adds
            inside the product, 6 bytes more than a product that writes
optimizer   Adam over float32 parameters: by torch some 94 bytes a parameter, fused 38, with norm, clipping and zeros

Not in it: time of the host, waits, the loss, embedding. `us a launch` says how slow the host may be before the GPU waits.
Utilisation is of the dense bf16 peak (989.4 TFLOP/s), by the model's operations, without recomputation, as in full_size.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from full_size import PEAKS  # noqa: E402
from head import predicted as head  # noqa: E402
from head.measure import machine  # noqa: E402
from size.counted import Book, Layers, Pass, Recompute, layer_work  # noqa: E402
from size.planned import planned_gibibytes  # noqa: E402
from size.subject import Setting, Work  # noqa: E402

from megatron_fork import distributed  # noqa: E402
from megatron_fork.models import ComputeConfig  # noqa: E402
from megatron_fork.planning import Machine  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "whole_step_predicted.json"
PROMPT = 512
# Shape, optimizer, recomputation: those that were measured on an H200.
CASES: list[tuple[str, str, Recompute]] = [("8b", "none", "full"), ("0.6b", "adam", "none")]
RESPONSES, RATIOS, GPUS = (8192, 29696), (0.2, 1.0), ("h200", "h100")
ATTENTION_RATE: dict[str, dict[Pass, float]] = {
    "FlashAttention 2": {"forward": 350e12, "backward": 280e12},
    "FlashAttention 3": {"forward": 550e12, "backward": 450e12},
    "cuDNN": {"forward": 550e12, "backward": 450e12},
}
# Which layers are predicted with which attention; torch's operations one at a time are the nearest to what was measured.
CHOICES: list[tuple[Layers, str]] = [
    ("local", "FlashAttention 2"),
    ("local", "FlashAttention 3"),
    ("transformer_engine", "cuDNN"),
    ("torch", "cuDNN"),
]
PRODUCT_RATE: dict[Pass, float] = {"forward": head.STATISTICS_RATE, "backward": head.UPDATE_RATE}
OF_GRADIENT = {"local": 10.0, "transformer_engine": 6.0, "torch": 10.0}
OF_ADAM = {"local": 94.0, "transformer_engine": 38.0, "torch": 94.0}
# Share of the peak on one H200 on 2026-11-27, with the layers of that day (torch's modules, an LM head since replaced), by
# shape and response: statistics pass, update of 20 % of the tokens, update of all.
MEASURED: dict[tuple[str, int], dict[str, float]] = {
    ("8b", 8192): {"statistics": 0.486, "update 0.2": 0.358},
    ("8b", 29696): {"statistics": 0.527, "update 0.2": 0.372},
    ("0.6b", 8192): {"statistics": 0.25, "update 0.2": 0.226, "update 1.0": 0.2},
    ("0.6b", 29696): {"statistics": 0.42, "update 0.2": 0.371, "update 1.0": 0.291},
}


def pass_of_layer(book: Book, now: Pass, attention_kernel: str, bandwidth: float) -> dict[str, float]:
    """Milliseconds by kind, of one layer."""
    product, attention, sweep = (book.total(now, kind) for kind in ("product", "attention", "sweep"))
    return {
        "products": 1e3 * max(product.operations / PRODUCT_RATE[now], product.bytes / bandwidth),
        "attention": 1e3 * attention.operations / ATTENTION_RATE[attention_kernel][now],
        "sweeps": 1e3 * sweep.bytes / bandwidth,
    }


def check(book: Book, flops_of_body: float, layers: int) -> None:
    """Fail if what was counted is not what full_size.py's formula says: forward as much, and products of backward twice."""
    forward = {kind: layers * book.total("forward", kind).operations for kind in ("product", "attention")}
    backward = layers * book.total("backward", "product").operations
    off = abs(sum(forward.values()) / flops_of_body - 1), abs(backward / (2 * forward["product"]) - 1)
    if max(off) > 1e-3:  # the formula takes the weights of norms for products
        raise SystemExit(
            f"whole_step.py: counted operations are off by {max(off):.2%}: a product was missed, or counted twice"
        )


def launches(book: Book, now: Pass) -> int:
    return sum(book.total(now, kind).launches for kind in ("product", "attention", "sweep"))


def predictions(
    shape: str, optimizer: str, recompute: Recompute, layers: Layers, attention: str, gpu: str
) -> Iterator[dict[str, Any]]:
    """Statistics pass and updates at each length."""
    config = Setting(shape, optimizer, recompute, "local").hf_config
    bandwidth, count = head.REACHED * head.BANDWIDTH[gpu], config.num_hidden_layers
    for response in RESPONSES:
        tokens = PROMPT + response - 1
        book, of_layer = layer_work(config, layers, recompute, tokens)
        work = Work.of(config.vocab_size, 1, PROMPT, response, 1.0)
        check(book, work.forward_flops(config, 0), count)
        about = {"gpu": gpu, "layers": layers, "attention": attention, "shape": shape, "tokens": tokens}
        forward = pass_of_layer(book, "forward", attention, bandwidth)
        body = {name: count * each for name, each in forward.items()}
        of_head = head.milliseconds(head.statistics(response, config.hidden_size), head.STATISTICS_RATE, gpu)["worst"]
        flops = work.forward_flops(config, response)
        yield {
            **about,
            "what": "statistics",
            **result({**body, "LM head": of_head}, flops, count * launches(book, "forward")),
        }
        backward = pass_of_layer(book, "backward", attention, bandwidth)
        passes = 2 if recompute == "full" else 1
        body = {name: count * (passes * forward[name] + backward[name]) for name in forward}
        parameters = (
            of_layer * count + (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
        )
        body["gradients"] = 1e3 * of_layer * count * OF_GRADIENT[layers] / bandwidth
        if optimizer == "adam":
            body["optimizer"] = 1e3 * parameters * OF_ADAM[layers] / bandwidth
        for ratio in RATIOS:
            rows = round(ratio * response)
            cost = head.update(rows, config.hidden_size, into_buffer=True)
            update = {**body, "LM head": head.milliseconds(cost, head.UPDATE_RATE, gpu)["worst"]}
            number = count * (passes * launches(book, "forward") + launches(book, "backward"))
            yield {
                **about,
                "what": f"update {ratio}",
                **result(update, 3 * work.forward_flops(config, rows), number),
                "planned GiB over what is held": planned(shape, recompute, layers, tokens, ratio),
            }


def result(parts: dict[str, float], flops: float, number: int) -> dict[str, Any]:
    total = sum(parts.values())
    return {
        "ms": total,
        "of it": parts,
        "utilisation": flops / total * 1e3 / (PEAKS["H200"] * 1e12),
        "launches of layers": number,
        "us a launch": 1e3 * (total - parts["LM head"]) / number,
    }


def planned(shape: str, recompute: Recompute, layers: Layers, tokens: int, ratio: float) -> float:
    backend = "transformer_engine" if layers == "transformer_engine" else "local"
    elementwise = "torch" if layers == "torch" else "auto"
    compute = ComputeConfig(recompute=recompute, elementwise=elementwise)  # type: ignore[arg-type]
    counts = Setting(shape, "none", recompute, "local").hf_config
    return planned_gibibytes(counts, compute, Machine(backend, on_gpu=True), tokens, ratio)


def counted(shape: str, layers: Layers, recompute: Recompute) -> list[dict[str, Any]]:
    """What one layer does to 8,703 tokens, launch by launch."""
    book, _ = layer_work(Setting(shape, "none", recompute, "local").hf_config, layers, recompute, PROMPT + 8191)
    return [
        {"shape": shape, "layers": layers, "pass": now, "kind": kind, "name": name, **vars(each)}
        for (now, kind, name), each in book.entries.items()
    ]


def rounded(value: Any) -> Any:
    """Four digits of every figure."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def as_markdown(found: list[dict[str, Any]]) -> Iterator[str]:
    """The table of docs/gpu.md."""
    columns = [(layers, attention, gpu) for layers, attention in CHOICES if layers != "torch" for gpu in GPUS]
    names = {"local": "local", "transformer_engine": "Transformer Engine"}
    yield "| | " + " | ".join(f"{names[each]}, {kernel}: {gpu.upper()}" for each, kernel, gpu in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    rows: dict[str, dict[tuple[str, str, str], str]] = {}
    for each in found:
        name = f"{each['shape'].upper()}, {each['tokens']:,}, {each['what']}"
        key = each["layers"], each["attention"], each["gpu"]
        rows.setdefault(name, {})[key] = f"{each['ms']:,.0f} ms, {100 * each['utilisation']:.0f} %"
    for name, cells in rows.items():
        yield "| " + " | ".join([name, *(cells[column] for column in columns)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    distributed.initialize()
    found = [
        each
        for shape, optimizer, recompute in CASES
        for layers, attention in CHOICES
        for gpu in GPUS
        for each in predictions(shape, optimizer, recompute, layers, attention, gpu)
    ]
    checks = []
    for each in found:
        measured = MEASURED.get((each["shape"], each["tokens"] - PROMPT + 1), {}).get(each["what"])
        if measured and each["gpu"] == "h200" and each["layers"] == "torch":
            about = {name: each[name] for name in ("shape", "tokens", "what", "us a launch")}
            ratio = each["utilisation"] / measured
            checks.append({**about, "predicted": each["utilisation"], "measured": measured, "ratio": ratio})
    record = {
        "command": "python benchmarks/whole_step.py",
        "machine": machine("cpu"),
        "predicted": found,
        "counted of one layer": [
            each
            for shape, _, recompute in CASES
            for layers in dict.fromkeys(layers for layers, _ in CHOICES)
            for each in counted(shape, layers, recompute)
        ],
        "torch's modules, predicted and measured": checks,
    }
    options.out.write_text(json.dumps(rounded(record), indent=1) + "\n")
    print("\n".join(as_markdown(found)))
    for each in checks:
        print(json.dumps(rounded(each)))


if __name__ == "__main__":
    main()
