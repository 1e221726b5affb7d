"""The click application: commands are imported when they are called, so that `--help` stays quick."""

from importlib import import_module

import click

from hashinfer import __version__

COMMANDS = {
    "run": "Run a model on inputs and show what comes out.",
    "inspect": "Show layers, sizes, kernels and buffers of a model.",
    "verify": "Hold the kernels against the reference evaluator.",
    "bench": "Measure start, time and memory of a model, beside onnxruntime if asked.",
    "compress": "Hash the weights of a dense model; distil it where there is data.",
    "build": "Compile a model ahead of time, for this CPU or another one.",
    "cache": "Show, warm or clear what is kept of compiled kernels.",
    "expand": "Write the plain dense twin of a model.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"hashinfer.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="hashinfer")
def app() -> None:
    """Inference for neural networks compressed by the hashing trick.

    MODEL is an .hnet file, or any ONNX model. Exit codes: 0 well, 1 a mismatch or a fault of ours, 2 bad input.
    """
