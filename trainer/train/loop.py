"""The trainer's life: one attempt after another under a supervisor, or a single one under torchrun or alone."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from trainer.config import TrainConfig, check_layout
from trainer.config_parse import ConfigError
from trainer.data.dataset import TokenDataset
from trainer.data.errors import DataError
from trainer.evaluate.evaluator import Evaluator
from trainer.model.execution import Execution
from trainer.model.presets import model_config
from trainer.model.transformer import HybridModel
from trainer.parallel.gang import FORM_TIMEOUT_S, Gang
from trainer.parallel.layout import Layout
from trainer.protocol.client import Message, WorkerClient
from trainer.protocol.desk import Desk, Join
from trainer.protocol.reporter import Reporter
from trainer.records.run_log import RunLog
from trainer.train.attempt import Attempt, Job
from trainer.train.checkpoints import Saver
from trainer.train.faults import Fault, classify
from trainer.train.hooks import Hooks
from trainer.train.state import Memory

EXIT_OK, EXIT_ERROR, EXIT_INVALID = 0, 1, 3
EXIT_STUCK = 70  # EX_SOFTWARE
_LAST_WORD_S = 2.0


def set_up_torch(config: TrainConfig) -> None:
    """Same inputs, same bits, on all devices. To be called before CUDA is used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass is not deterministic; the flash kernel's can be
    torch.utils.deterministic.fill_uninitialized_memory = False


def prepare(config: TrainConfig) -> Job:
    """Set torch up and open the data. Raises ConfigError or DataError."""
    set_up_torch(config)
    _make_run_dir(config)
    try:
        spec = model_config(config.model.name, config.model.overrides)
    except ValueError as error:
        raise ConfigError("model", str(error)) from error
    execution = Execution(config.compile, config.activation_checkpointing)
    cache = Path(config.data.work_dir or Path(config.run_dir) / "cache")
    dataset = TokenDataset(config.data, spec.vocab_size, config.batch_tokens // config.data.sequence_length, cache)
    dataset.begin()
    fingerprint = dataset.fingerprint()
    evaluator = Evaluator(config.evaluation, config.data, spec.vocab_size, config.steps)
    return Job(
        config,
        lambda: HybridModel(spec, execution),
        dataset,
        fingerprint,
        Saver(config, fingerprint),
        evaluator,
        RunLog(config, spec),
    )


def _make_run_dir(config: TrainConfig) -> None:
    try:
        Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("run_dir", f"{error.filename} can't be made: {error.strerror}") from error


def choose_device(config: TrainConfig, environ: Mapping[str, str]) -> torch.device:
    """The device of this local rank. Raises ConfigError for cuda without a GPU."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device", "this machine has no usable CUDA GPU; use cpu or auto")
    device = torch.device("cuda", int(environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def run_alone(config: TrainConfig, environ: Mapping[str, str], hooks: Hooks) -> int:
    """One attempt from torchrun's environment variables, or of a single rank when there are none."""
    job = prepare(config)
    world = int(environ.get("WORLD_SIZE", "1"))
    layout = _flat_layout(int(environ.get("RANK", "0")), world, int(environ.get("LOCAL_WORLD_SIZE", str(world))))
    _require_layout(config, layout)
    attempt = 1 + int(environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    gang = Gang(attempt, layout, choose_device(config, environ), lambda: _torchrun_store(environ, attempt))
    try:
        Attempt(job, Memory(), gang, Reporter(_unheard, attempt), hooks, lambda: False).run("checkpoint")
    finally:
        gang.close()
    return EXIT_OK


def run_supervised(load: Callable[[], TrainConfig], environ: Mapping[str, str], hooks: Hooks) -> int:
    """Attempts, as a supervisor orders them on HOLDFAST_WORKER_SOCKET. A bad configuration is reported there, too."""
    worker = SupervisedTrainer(environ, hooks)
    try:
        config = load()
        worker.serve(prepare(config), choose_device(config, environ))
        return EXIT_OK
    except (ConfigError, DataError) as error:
        worker.give_up(classify(error))
        raise
    except FinalFaultError as error:
        worker.give_up(error.fault)
        return EXIT_INVALID if error.fault.kind in ("config", "data") else EXIT_ERROR


class FinalFaultError(Exception):
    """This process can't take part in any attempt any more."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.fault = fault


class SupervisedTrainer:
    """A trainer that waits for joins and holds its state between them."""

    def __init__(self, environ: Mapping[str, str], hooks: Hooks) -> None:
        self._run = environ.get("HOLDFAST_RUN", "")
        self._rank = int(environ.get("RANK", "0"))
        self._hooks = hooks
        self._memory = Memory()
        self._layout: Layout | None = None
        self._last_attempt = 0
        self._desk = Desk(self._say_left, self._stop)
        self._client = WorkerClient(environ["HOLDFAST_WORKER_SOCKET"], self._hello, self._desk.handle)
        self._client.start()

    def serve(self, job: Job, device: torch.device) -> None:
        """Take part in attempts until the run is completed. Raises FinalFaultError."""
        self._reporter(0).phase("waiting")
        while True:
            join = self._desk.next_join()
            self._enter(join)
            fault, why = self._take_part(job, device, join)
            if fault is None and not why:
                self._reporter(join.attempt).bye("completed", self._memory.step)
                self._client.flush(_LAST_WORD_S)
                return
            if fault is not None and fault.final:
                raise FinalFaultError(fault)
            self._desk.exit()
            self._reporter(join.attempt).left(self._memory, why)

    def give_up(self, fault: Fault) -> None:
        """Say what is wrong and goodbye."""
        reporter = self._reporter(self._last_attempt)
        reporter.fault(fault.kind, fault.detail)
        reporter.bye("error", self._memory.step)
        self._client.flush(_LAST_WORD_S)

    def _enter(self, join: Join) -> None:
        if join.log_path:
            _log_to(join.log_path)
        if join.layout != self._layout:  # shards of another layout are of no use
            self._memory.forget()
        self._layout, self._rank, self._last_attempt = join.layout, join.layout.rank, join.attempt
        print(f"attempt {join.attempt}: rank {join.layout.rank} of {join.layout.world}", flush=True)

    def _take_part(self, job: Job, device: torch.device, join: Join) -> tuple[Fault | None, str]:
        """(None, "") when all steps are done; else the fault, if it wasn't an order to leave, and why it is out."""
        gang = Gang(join.attempt, join.layout, device, lambda: _attempt_store(join), give_up=_end_stuck)
        reporter = self._reporter(join.attempt)
        self._desk.enter(gang)
        try:
            _require_layout(job.config, join.layout)
            Attempt(job, self._memory, gang, reporter, self._hooks, self._desk.take_save).run(join.restore)
            return None, ""
        except Exception as error:
            if gang.aborted:
                return None, gang.why or "told to leave"
            fault = classify(error)
            if fault.kind == "exception":
                traceback.print_exc()
            print(f"fault {fault.kind}: {fault.detail}", file=sys.stderr, flush=True)
            if not fault.final:
                reporter.fault(fault.kind, fault.detail)
            return fault, f"{fault.kind}: {fault.detail}"
        finally:
            gang.close()

    def _hello(self) -> Message:
        return {
            "type": "hello",
            "version": 1,
            "run": self._run,
            "rank": self._rank,
            "pid": os.getpid(),
            "attempt": self._desk.attempt,
        }

    def _say_left(self, attempt: int, why: str) -> None:
        self._reporter(attempt).left(self._memory, why)

    def _stop(self) -> None:
        bye = {"type": "bye", "attempt": self._last_attempt, "reason": "stopped", "step": self._memory.step}
        self._client.exit_after(bye, EXIT_OK)

    def _reporter(self, attempt: int) -> Reporter:
        return Reporter(self._client.send, attempt)


def _flat_layout(rank: int, world: int, local_world: int) -> Layout:
    """The recipe's default mesh: replicas = nodes, shards = ranks of a node."""
    shards = local_world if local_world and world % local_world == 0 else world
    return Layout(rank, world // shards, shards)


def _require_layout(config: TrainConfig, layout: Layout) -> None:
    for problem in check_layout(config, layout.world):
        raise ConfigError(problem["key"], problem["message"])


def _attempt_store(join: Join) -> dist.Store:
    timeout = timedelta(seconds=FORM_TIMEOUT_S)
    store = dist.TCPStore(join.store_host, join.store_port, is_master=False, timeout=timeout)
    return dist.PrefixStore(f"attempt/{join.attempt}", store)


def _torchrun_store(environ: Mapping[str, str], attempt: int) -> dist.Store:
    if "MASTER_ADDR" not in environ:
        return dist.HashStore()
    store, _, _ = next(dist.rendezvous("env://"))
    return dist.PrefixStore(f"attempt/{attempt}", store)


def _log_to(path: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _end_stuck() -> None:
    """The replicas hold this rank's state; a new process gets it from them sooner than this one gets free."""
    print("can't get out of the attempt, ending", file=sys.stderr, flush=True)
    faulthandler.dump_traceback()
    os._exit(EXIT_STUCK)


def _unheard(message: Message) -> None:
    return
