"""One training step of the four-layer slice at 7B width: ours beside Hugging Face's model, in the same run.

    python benchmarks/train_step.py --json out/train_step.json          # on a GPU
    python benchmarks/train_step.py --json out/train_step.json --cpu-smoke

Three Gated DeltaNet layers and one of attention, vocabulary 100352, bfloat16, rows of 8192 random tokens, one row a
micro-batch. Ours is the trainer's own step (FSDP2 over one rank, float32 weights and moments, finite check, global norm,
clip, vote of one rank, AdamW) under torch.use_deterministic_algorithms; data loading is left out. Theirs is transformers'
OlmoHybridForCausalLM, eager, with flash-linear-attention's kernel, weights and moments in bfloat16, fused AdamW, neither
norm nor clip nor determinism. fla refuses its backward pass on Hopper with Triton below 3.7.1, because the results are
wrong; for timing alone the refusal is lifted.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this folder has a kernels.py of its own

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from trainer.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig  # noqa: E402
from trainer.data.dataset import IGNORE_INDEX, Batch  # noqa: E402
from trainer.model.execution import Execution  # noqa: E402
from trainer.model.flops import throughput, training_flops  # noqa: E402
from trainer.model.presets import model_config  # noqa: E402
from trainer.model.transformer import HybridModel  # noqa: E402
from trainer.parallel.gang import Gang  # noqa: E402
from trainer.parallel.layout import Layout  # noqa: E402
from trainer.parallel.sharded import ShardedModel  # noqa: E402
from trainer.train.exchange import zero_state  # noqa: E402
from trainer.train.hooks import NoHooks  # noqa: E402
from trainer.train.loop import set_up_torch  # noqa: E402
from trainer.train.state import Memory  # noqa: E402
from trainer.train.step import StepRunner  # noqa: E402

SLICE = ("olmo_hybrid_7b", {"layers": 4}, 8192)
SMOKE = ("olmo_hybrid_tiny", {}, 128)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is timed: a model, rows of so many tokens, and how often."""

    model: ModelConfig
    sequence_length: int
    device: torch.device
    warm_up: int
    steps: int
    execution: Execution


def main() -> None:
    options = parse()
    setting = setting_of(options)
    results: dict = {"device": device_name(setting.device), "torch": torch.__version__, "model": setting.model.name}
    results |= {"sequence_length": setting.sequence_length, "overrides": setting.model.overrides}
    for who in options.only.split(","):
        for micro_batches in map(int, options.micro_batches.split(",")):
            with SIDES[who](setting, micro_batches) as step:
                result = measure(step, setting, micro_batches)
                if options.profile and who == "ours":
                    print_profile(step, setting)
            del step
            free(setting.device)
            results[f"{who}_{micro_batches}"] = result
            print(f"{who:>14} x{micro_batches}: {result}", flush=True)
            write(options.json, results)  # what comes after may fail
    for micro_batches in options.micro_batches.split(","):
        ours, theirs = results.get(f"ours_{micro_batches}"), results.get(f"hugging_face_{micro_batches}")
        if ours and theirs:
            results[f"speedup_{micro_batches}"] = ours["tokens_per_s"] / theirs["tokens_per_s"]
            print(f"speed-up x{micro_batches}: {results[f'speedup_{micro_batches}']:.3f}")
    write(options.json, results)


def write(path: Path | None, results: dict) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--cpu-smoke", action="store_true", help="a tiny model on the CPU: does it run at all")
    parser.add_argument("--only", default="hugging_face,ours", help="which sides, in order")
    parser.add_argument("--micro-batches", default="1,4", help="accumulated rows a step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--compile", default="auto", choices=("auto", "always", "never"))
    parser.add_argument("--activation-checkpointing", default="none", choices=("none", "mlp", "block"))
    parser.add_argument("--profile", action="store_true", help="print where a step's time goes")
    return parser.parse_args()


def setting_of(options: argparse.Namespace) -> Setting:
    name, overrides, length = SMOKE if options.cpu_smoke else SLICE
    device = torch.device("cpu" if options.cpu_smoke else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here; --cpu-smoke runs a tiny model on the CPU")
    execution = Execution(options.compile, options.activation_checkpointing)
    return Setting(ModelConfig(name, overrides), length, device, options.warm_up, options.steps, execution)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def measure(step: Callable[[], object], setting: Setting, micro_batches: int) -> dict:
    """Mean of consecutive steps, as in training: the host may run ahead into the next one."""
    on_gpu = setting.device.type == "cuda"
    begin = time.perf_counter()
    losses = [step() for _ in range(setting.warm_up)]
    synchronize(setting.device)
    warm_up_s = time.perf_counter() - begin
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    losses += [step() for _ in range(setting.steps)]
    synchronize(setting.device)
    step_s = (time.perf_counter() - begin) / setting.steps
    flops = training_flops(model_config(setting.model.name, setting.model.overrides), setting.sequence_length)
    tokens = micro_batches * setting.sequence_length
    result = throughput(flops, tokens, step_s, device_name=device_name(setting.device))
    return {
        **dataclasses.asdict(result),
        "step_ms": step_s * 1e3,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        "warm_up_s": warm_up_s,
        "losses": [float(losses[0]), float(losses[-1])],
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_rows(setting: Setting, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets int64 [rows, T] on the host; the last position of a row has no target."""
    vocab_size = model_config(setting.model.name, setting.model.overrides).vocab_size
    shape = (rows, setting.sequence_length)
    tokens = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(7))
    return tokens, torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=IGNORE_INDEX)


@contextmanager
def ours(setting: Setting, micro_batches: int) -> Iterator[Callable[[], object]]:
    """The trainer's step, which returns its loss."""
    config = TrainConfig(
        run_dir="/nowhere",
        steps=1000,
        batch_tokens=micro_batches * setting.sequence_length,
        model=setting.model,
        data=DataConfig(paths=["random"], sequence_length=setting.sequence_length),
        optimizer=OptimizerConfig(),
        micro_batch_sequences=1,
        device=setting.device.type,
    )
    set_up_torch(config)
    spec = model_config(setting.model.name, setting.model.overrides)
    gang = Gang(1, Layout(0, 1, 1), setting.device, dist.HashStore)
    gang.form()
    model = ShardedModel(lambda: HybridModel(spec, setting.execution), gang)
    model.module.init_weights(config.seed)
    memory = Memory(state=zero_state(model))
    runner = StepRunner(config, gang, model, memory, NoHooks())
    tokens, targets = random_rows(setting, micro_batches)
    counted = int((targets != IGNORE_INDEX).sum())
    batch = Batch(0, tokens, targets, torch.zeros_like(tokens), counted)
    try:
        yield lambda: runner.run(batch, wants_save=False).loss
    finally:
        gang.close()


@contextmanager
def hugging_face(setting: Setting, micro_batches: int) -> Iterator[Callable[[], object]]:
    """transformers' model with a plain loop around it."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.enable_cudnn_sdp(True)
    model = hugging_face_model(setting)
    on_gpu = setting.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=on_gpu)
    tokens = random_rows(setting, micro_batches)[0].to(setting.device)

    def step() -> torch.Tensor:
        total = torch.zeros((), device=setting.device)
        for row in range(micro_batches):
            part = slice(row, row + 1)
            loss = model(input_ids=tokens[part], labels=tokens[part], use_cache=False).loss
            (loss / micro_batches).backward()
            total += loss.detach() / micro_batches
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    yield step


def hugging_face_model(setting: Setting) -> torch.nn.Module:
    """OlmoHybridForCausalLM of the same shape with random weights, on the device in bfloat16."""
    lift_refusal()
    from transformers import OlmoHybridConfig, OlmoHybridForCausalLM

    from trainer.hugging_face.configuration import TextSettings, to_config

    spec = model_config(setting.model.name, setting.model.overrides)
    values = to_config(spec, TextSettings(max_position_embeddings=setting.sequence_length))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if setting.device.type == "cuda" else torch.float32)
    try:
        with setting.device:
            return OlmoHybridForCausalLM(OlmoHybridConfig(**values)).train()
    finally:
        torch.set_default_dtype(before)


def lift_refusal() -> None:
    try:
        from fla.ops.common import chunk_o
    except ImportError:
        print("flash-linear-attention is not installed: Hugging Face's model runs its own slow form", flush=True)
    else:
        chunk_o.IS_NVIDIA_HOPPER = False


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


SIDES = {"ours": ours, "hugging_face": hugging_face}

# Parts of kernels' names, in the order in which they are tried.
CATEGORIES = {
    "gemm": ("nvjet", "gemm", "cutlass::kernel2"),
    "attention": ("flash", "fmha", "cudnn"),
    "delta rule": ("scan_state", "chunk_gradients", "intra_chunk", "chunk_outputs"),
    "optimizer": ("fusedoptimizer", "lpnorm"),
    "copies": ("memcpy", "memset", "copy", "chunk_cat", "split_with", "fill"),
    "accumulation": ("cudafunctor_add",),
    "inductor": ("triton_",),
    "holdfast": ("_forward_kernel", "_backward_kernel", "_kernel"),
}


def print_profile(step: Callable[[], object], setting: Setting) -> None:
    """Device time of one step by category and by kernel, in milliseconds."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        begin = time.perf_counter()
        step()
        synchronize(setting.device)
        wall_ms = (time.perf_counter() - begin) * 1e3
    kernels: dict[str, list[float]] = {}
    spans = []
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            kernels.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e3)
            spans.append((event.time_range.start, event.time_range.end))
    totals: dict[str, float] = {}
    for name, times in kernels.items():
        kind = next((kind for kind, marks in CATEGORIES.items() if any(m in name.lower() for m in marks)), "other")
        totals[kind] = totals.get(kind, 0.0) + sum(times)
    print(f"profile: wall {wall_ms:.1f} ms, busy {busy_ms(spans):.1f} ms, sum by category:")
    for kind, total in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"  {kind:<12}{total:9.2f}")
    for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:45]:
        print(f"  {sum(times):8.3f} {len(times):5d}  {name[:110]}")


def busy_ms(spans: list[tuple[float, float]]) -> float:
    """Union of the spans, which are in microseconds: streams overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e3


if __name__ == "__main__":
    main()
