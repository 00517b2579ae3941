"""`doctor` refuses what `train` refuses, in the same words; what it counts is what a rank of this recipe would hold."""

import contextlib
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from support.commands import QUICKSTART
from support.tiny_qwen3 import family_config, hugging_face_model

from megatron_fork import distributed, planning
from megatron_fork.cli.doctor import diagnose
from megatron_fork.config import load_config
from megatron_fork.data.reach import build_tokenizer
from megatron_fork.errors import ConfigError, MegatronForkError
from megatron_fork.rollout import server_states
from megatron_fork.run.checks import check
from megatron_fork.run.console import Display
from megatron_fork.run.context import prepare

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU in vain")
DENSE_32B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}
# One of each is drawn: what is right by itself, what is wrong by itself, and what goes wrong together.
CHOICES = {
    "parallel.tensor": ["1", "2", "3"],
    "parallel.pipeline": ["1", "2", "4"],
    "parallel.expert": ["1", "2"],
    "rollout.engine": ["embedded", "vllm_colocated", "absent_module:engine"],
    "selection.tokens": ["top", "random", "absent_module:score"],
    "rollout.max_staleness": ["0", "1"],
    "rollout.tail": ["stop"],
    "objective.correction": ["none", "tis"],
    "objective.advantage": ["grpo", "gae"],
    "experts.replay": ["true", "false"],
    "optimizer.distributed": ["true", "false"],
    "critic.optimizer.distributed": ["true"],
    "optimizer.offload": ["0", "0.5"],
    "critic.optimizer.offload": ["0", "0.5"],
    "rewards.kind": ["reach", "math", "absent_module:function"],
    "rewards.workers": ["0", "1"],
    "data.source": ["reach", "arithmetic", "absent.jsonl"],
    "data.template": ["none", "chat", "qwen3", "nothing"],
    "data.held_out": ["8", "100000"],
    "rollout.max_response_tokens": ["46", "124"],
    "rollout.stop_tokens": ["[]", "[5]", "[5000]"],
    "model.hf_config.num_attention_heads": ["4", "6"],
    "model.hf_config.vocab_size": ["135", "100"],
    "compute.backend": ["auto", "transformer_engine"],
    "vocab_parallel.kernels": ["auto", "torch"],
    "compute.recompute": ["none", "full"],
    "compute.recompute_layers": ["1", "2", "7"],
    "sft.steps": ["0", "2"],
}
USUAL = {name: values[0] for name, values in CHOICES.items()}


def outcome(action: object) -> tuple[str, int] | None:
    try:
        action()  # type: ignore[operator]
    except MegatronForkError as error:
        return error.message, error.exit_code
    return None


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changed=st.dictionaries(st.sampled_from(sorted(CHOICES)), st.integers(0, 2), max_size=3),
)
@example(changed={"rewards.kind": 1, "rollout.engine": 2})  # two things that are wrong, each by itself
def test_doctor_and_train_refuse_the_same(
    changed: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    chosen = USUAL | {name: CHOICES[name][place % len(CHOICES[name])] for name, place in changed.items()}
    try:
        config = load_config(
            QUICKSTART, [*(f"{name}={value}" for name, value in chosen.items()), f"run.folder={tmp_path / 'run'}"]
        )
    except MegatronForkError:
        return  # before either

    def train() -> None:
        try:
            with prepare(config, Display(speaks=False)):
                pass
        finally:
            distributed.finalize()
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    doctor = outcome(lambda: diagnose(config, Console(file=StringIO()), ranks=1))
    assert doctor == outcome(train)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["rollout.engine=absent_module:engine", "data.source=absent.jsonl"])
def test_of_two_wrong_things_doctor_tells_the_one_that_train_tells(wrong: str) -> None:
    """Whatever the other is: nothing of a recipe is looked at before the checks."""
    others = [f"{name}={value}" for name, values in CHOICES.items() for value in values[1:]]
    told = set()
    for other in others:
        with contextlib.suppress(MegatronForkError):  # some are refused when they are read, before either
            config = load_config(QUICKSTART, [other, wrong])
            refused = outcome(lambda config=config: check(config, ranks=planning.replica_ranks(config)))
            assert refused == outcome(lambda config=config: diagnose(config, Console(file=StringIO())))
            told.add(refused)
    assert len(told) > 1


def test_no_server_is_asked_before_the_recipe_is_checked(server: str) -> None:
    Health.asked.clear()
    words = ["rollout.engine=vllm", f"rollout.servers=[{server}]"]
    with pytest.raises(MegatronForkError, match=r"rollout\.stop_tokens"):
        findings(*words, "rollout.stop_tokens=[5000]")
    assert Health.asked == []
    findings(*words)
    assert Health.asked == ["/health"]


def test_layers_that_are_recomputed_together(tmp_path: Path) -> None:
    words = ["compute.recompute=full", "compute.recompute_layers=2"]
    check(load_config(QUICKSTART, words), ranks=1)
    for more in (["compute.recompute_layers=3"], ["parallel.pipeline=2"]):
        with pytest.raises(ConfigError, match=r"compute\.recompute_layers=\d does not divide the \d layers"):
            check(load_config(QUICKSTART, [*words, *more]), ranks=2)


def findings(*overrides: str, ranks: int | None = None) -> str:
    file = StringIO()
    diagnose(load_config(QUICKSTART, list(overrides)), Console(file=file, width=200), ranks=ranks)
    return file.getvalue()


def test_any_number_of_ranks() -> None:
    assert "2 data ranks of 2  (needs a multiple of 2 ranks; computed for 4)" in findings("parallel.tensor=2", ranks=4)
    with pytest.raises(MegatronForkError, match="world size 3 is not a multiple"):
        findings("parallel.tensor=2", ranks=3)


def test_a_32b_model_with_servers_has_no_engine_on_its_ranks() -> None:
    fields = ",".join(f"{name}: {json.dumps(value)}" for name, value in DENSE_32B.items())
    words = [
        f"model.hf_config={{{fields}}}",
        *("parallel.tensor=8", "parallel.pipeline=4", "policy.precision=bf16", "optimizer.distributed=true"),
        "sft.steps=0",
    ]
    with_servers = findings(*words, "rollout.engine=vllm", "rollout.servers=[http://127.0.0.1:9]", ranks=32)
    assert "embedded engine" not in with_servers and "61" not in with_servers.partition("before activations")[2]
    embedded = findings(*words, ranks=32)
    assert "embedded engine: 61.0 GiB per rank" in embedded
    assert "1.91 GiB" not in embedded.partition("before activations")[2]


@NO_GPU
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_nccl_without_a_gpu(engine: str) -> None:
    words = [f"rollout.engine={engine}", "rollout.servers=[http://127.0.0.1:9]", "rollout.sync=nccl"]
    with pytest.raises(ConfigError, match=r"rollout\.sync=nccl needs a GPU"):
        check(load_config(QUICKSTART, words), ranks=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    hugging_face_model(family_config("qwen3", vocab_size=135, eos_token_id=1)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        (["model.safetensors"], "has no *.safetensors"),
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer: none of"),
    ],
)
def test_a_folder_that_lacks_something(gone: list[str], named: str, model: Path) -> None:
    for name in gone:
        (model / name).unlink()
    config = load_config(QUICKSTART, ["model.hf_config=null", f"model.path={model}", "sft.steps=0"])
    with pytest.raises(MegatronForkError) as caught:
        check(config, ranks=1)
    assert f"model.path={model} {named}" in caught.value.message


def fp8(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    weights[f"{name}_scale_inv"] = torch.ones(1)


def gptq(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.gate_proj"
    del weights[f"{name}.weight"]
    weights |= {f"{name}.{part}": torch.zeros(4, 4, dtype=torch.int32) for part in ("qweight", "qzeros", "g_idx")}
    weights[f"{name}.scales"] = torch.zeros(4, dtype=torch.float16)


def bitsandbytes(weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    weights[name] = torch.zeros(768, 1, dtype=torch.uint8)
    weights[f"{name}.absmax"] = torch.zeros(24)


@pytest.mark.parametrize("quantise", [fp8, gptq, bitsandbytes], ids=lambda each: each.__name__)
@pytest.mark.parametrize("is_declared", [True, False])
def test_quantised_weights_are_called_so(
    quantise: Callable[[dict[str, torch.Tensor]], None], is_declared: bool, model: Path
) -> None:
    weights = load_file(model / "model.safetensors")
    quantise(weights)
    save_file(weights, model / "model.safetensors")
    if is_declared:
        fields = json.loads((model / "config.json").read_text())
        fields["quantization_config"] = {"quant_method": quantise.__name__, "bits": 4}
        (model / "config.json").write_text(json.dumps(fields))
    with pytest.raises(MegatronForkError, match="quantised") as caught:
        check(load_config(QUICKSTART, ["model.hf_config=null", f"model.path={model}", "sft.steps=0"]), ranks=1)
    assert "quantised by " + quantise.__name__ in caught.value.message or not is_declared
    assert caught.value.hint == "quantised weights are not supported: take the model's bf16 folder"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_hidden_layers": 1}, "layer_types has 2 entries, but num_hidden_layers=1"),
        ({"num_hidden_layers": 3}, "layer_types has 2 entries, but num_hidden_layers=3"),
        ({"dtype": "bf16"}, "dtype=bf16, which is not one of float32, bfloat16"),
        ({"hidden_size": "32"}, "hidden_size=32, which is not a whole number"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps=1e-6, which is not a finite number"),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, "dtype=float32, but torch_dtype=bfloat16"),
    ],
)
def test_an_edited_config_is_one_line(fields: dict[str, object], named: str, model: Path) -> None:
    written = json.loads((model / "config.json").read_text())
    assert written["layer_types"] == ["full_attention"] * 2
    (model / "config.json").write_text(json.dumps(written | fields))
    with pytest.raises(MegatronForkError) as caught:
        check(load_config(QUICKSTART, ["model.hf_config=null", f"model.path={model}", "sft.steps=0"]), ranks=1)
    assert f"{model / 'config.json'}: {named}" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"a": ', b"\xef\xbb\xbf{}", b"\xff\xfe", b"null", b'"text"'])
def test_a_side_file_that_is_none_is_one_line_or_does_no_harm(file: str, content: bytes, model: Path) -> None:
    (model / file).write_bytes(content)
    try:
        check(load_config(QUICKSTART, ["model.hf_config=null", f"model.path={model}", "sft.steps=0"]), ranks=1)
    except MegatronForkError as error:
        assert "\n" not in error.message and str(model) in error.message and error.hint


def test_a_warm_start_without_demonstrations_is_refused(tmp_path: Path, model: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    places = range(3, 12)
    rows.write_text(
        "".join(json.dumps({"prompt": f"from {n} to {n} :", "answer": "1", "how": "done"}) + "\n" for n in places)
    )
    words = ["model.hf_config=null", f"model.path={model}", f"data.source={rows}", "rewards.kind=math", "sft.steps=2"]
    words.append("data.held_out=2")
    with pytest.raises(ConfigError, match=r"sft\.steps=2, but data\.source=.* has no demonstrations") as caught:
        check(load_config(QUICKSTART, words), ranks=1)
    assert "data.columns.solution" in caught.value.hint
    check(load_config(QUICKSTART, [*words, "data.columns.solution=how"]), ranks=1)
    long = " ".join(["done"] * 130)
    rows.write_text(rows.read_text() + json.dumps({"prompt": "from 3 to 4 :", "answer": "1", "how": long}) + "\n")
    with pytest.raises(MegatronForkError, match=r"data\.columns\.solution=how has 1\d\d tokens"):
        check(load_config(QUICKSTART, [*words, "data.columns.solution=how"]), ranks=1)


TOGETHER = 8


class Health(BaseHTTPRequestHandler):
    meeting = threading.Barrier(TOGETHER)
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/meet"):  # answers once all are asked, which must not be one after the other
            with contextlib.suppress(threading.BrokenBarrierError):
                self.meeting.wait(60)
        if self.path.startswith("/never"):
            self.rfile.read(1)  # until the client hangs up
        refused = self.path.startswith("/keyed") and self.headers["Authorization"] != "Bearer a-key"
        self.send_response(401 if refused else 503 if self.path.startswith("/ill") else 200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while self.path.startswith("/endless"):
                self.wfile.write(bytes(1 << 16))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()


def test_the_state_of_every_server(server: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://me:secret@127.0.0.1:{free.getsockname()[1]}"
    meeting = [f"{server}/meet{number}" for number in range(TOGETHER)]
    assert set(server_states(meeting, seconds=60).values()) == {"healthy"}
    states = server_states([server, f"{server}/ill", closed, "http://[", f"{server}/never"], seconds=0.5)
    assert states[server] == "healthy"
    assert states[f"{server}/ill"] == "answers /health with 503"
    assert states[closed].startswith("cannot be reached") and states["http://["].startswith("cannot be reached")
    assert states[f"{server}/never"] == "no answer in 0.5 seconds"


def test_the_state_is_asked_for_as_a_run_does(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key, past any proxy, and without reading more than an answer of health may have."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("MEGATRON_FORK_API_KEY", "a-key")
    keyed, endless = f"{server}/keyed", f"{server}/endless"
    states = server_states([server, keyed, endless], seconds=10)
    assert states[server] == states[keyed] == "healthy"
    assert states[endless] == "cannot be reached: /health was answered with more than 4194304 bytes"


def test_doctor_tells_the_state_without_a_password(server: str) -> None:
    address = server.replace("//", "//me:secret@")
    told = findings("rollout.engine=vllm", f"rollout.servers=[{address}]")
    assert f"server {server.replace('//', '//***@')}: healthy" in told and "secret" not in told


@pytest.mark.parametrize("name", ["a/b", "../a", "a\0b", "\ud800", "a\nb", "2026_11_27", "a b"])
def test_any_name_of_a_run_makes_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(QUICKSTART, [f"run.name={name}"])
    try:
        with prepare(config, Display(speaks=False)) as work:
            assert work.folder.path.resolve().parent == tmp_path / "runs"
    finally:
        distributed.finalize()
