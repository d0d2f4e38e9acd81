"""`python -m trainer train | params | data | check | checkpoint | export | import | generate | store`.

Exit codes: 0 ok, 1 error, 2 usage, 3 invalid configuration, 4 no such file (check).
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from trainer.train.hooks import Hooks, NoHooks

EXIT_INVALID = 3
USAGE = """usage: python -m trainer {train --config FILE | params MODEL | data ... | check FILE | export SOURCE OUT |
                          import SOURCE OUT | checkpoint {list | verify | show | export-dcp} PATH |
                          generate --model FOLDER --prompt TEXT | store ...}"""


def main(argv: list[str], hooks: Hooks | None = None) -> int:
    """Run one command; returns the exit code. `hooks` are for tests. Imports torch only where a command needs it."""
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    match command:
        case "train":
            return _train(rest, hooks or NoHooks())
        case "params":
            return _params(rest)
        case "data":
            from trainer.data import cli as data_cli

            return data_cli.main(rest)
        case "check":
            from trainer import config_cli

            return config_cli.main(rest)
        case "export" | "import":
            from trainer.hugging_face import cli as hugging_face_cli

            return hugging_face_cli.main(command, rest)
        case "checkpoint":
            from trainer.checkpoint import cli as checkpoint_cli

            return checkpoint_cli.main(rest)
        case "generate":
            from trainer import generate_cli

            return generate_cli.main(rest)
        case "store":
            from trainer import store

            return store.main(rest, os.environ)
    print(USAGE, file=sys.stderr)
    return 0 if command in ("-h", "--help") else 2


def _train(argv: list[str], hooks: Hooks) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer train", description="Train a model.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML configuration")
    path = parser.parse_args(argv).config
    faulthandler.enable()  # a crash in C++ leaves the Python stack of each thread in the log
    from trainer import config
    from trainer.checkpoint.errors import CheckpointError
    from trainer.config_parse import ConfigError
    from trainer.data.errors import DataError
    from trainer.train import loop
    from trainer.train.step import UnstableError

    try:
        if os.environ.get("HOLDFAST_WORKER_SOCKET"):
            return loop.run_supervised(lambda: config.load(path), os.environ, hooks)
        return loop.run_alone(config.load(path), os.environ, hooks)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"error: {path}: {error}", file=sys.stderr)
        return EXIT_INVALID
    except UnstableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _params(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer params", description="Count a model's parameters.")
    parser.add_argument("model", help="name of a preset")
    name = parser.parse_args(argv).model
    from trainer.model.count import count_by_part, count_parameters
    from trainer.model.presets import model_config

    try:
        spec = model_config(name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INVALID
    parts, total = count_by_part(spec), count_parameters(spec)
    for part, count in parts.items():
        print(f"{count:>15,}  {part}")
    print(f"{total - parts['embedding']:>15,}  total without the embedding")
    print(f"{total:>15,}  total")
    return 0


def run_and_exit(run: Callable[[], int]) -> NoReturn:
    """End the process with the exit code of `run`, at once.

    An orderly end of the interpreter isn't safe: threads of gloo and of the data loader may be in C++ then, and one that
    asks for the interpreter's lock is ended there, which aborts the process.
    """
    code = 1
    try:
        code = run()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    run_and_exit(lambda: main(sys.argv[1:]))
