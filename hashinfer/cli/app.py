"""The click application: commands are imported when they are called, so that `--help` stays quick."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from hashinfer import __version__

COMMANDS = {
    "run": ("hashinfer.cli.run", "Run a model on inputs and show what comes out."),
    "inspect": ("hashinfer.cli.inspect", "Show layers, sizes, kernels and buffers of a model."),
    "verify": ("hashinfer.cli.verify", "Hold the kernels against the reference evaluator."),
    "bench": ("hashinfer.cli.bench", "Measure start, time and memory of a model, beside onnxruntime if asked."),
    "compress": ("hashinfer.cli.compress", "Hash the weights of a dense model; distil it where there is data."),
    "build": ("hashinfer.cli.build", "Compile a model ahead of time, for this CPU or another one."),
    "cache": ("hashinfer.cli.cache", "Show, warm or clear what is kept of compiled kernels."),
    "expand": ("hashinfer.cli.expand", "Write the plain dense twin of a model."),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: Any = import_module(COMMANDS[cmd_name][0]).command
        return command  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hashinfer")
def app() -> None:
    """Inference for neural networks compressed by the hashing trick.

    MODEL is an .hnet file, or any ONNX model. Exit codes: 0 well, 1 a mismatch or a fault of ours, 2 bad input.
    """
