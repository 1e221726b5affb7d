"""The command line: `hashinfer run`, `inspect`, `verify`, `bench`, `compress`, `build`, `cache`, `expand`."""

import os
import sys


def main() -> None:
    """The installed command. An error is one line, never a traceback: exit code 2 for bad input, 1 for a fault of ours.

    `HASHINFER_DEBUG` set makes an unexpected error show its traceback.
    """
    import gc

    import click

    # A short process that imports 400 modules would collect garbage some thirty times on the way.
    gc.set_threshold(100_000, 50, 50)

    from hashinfer.cli.app import app
    from hashinfer.errors import HashinferError

    try:
        sys.exit(app.main(standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = "" if context is None else f" (see {context.command_path} --help)"
        _fail(error.format_message() + hint, 2)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), 2)
    except (HashinferError, MemoryError) as error:
        _fail(str(error) or type(error).__name__, 2)
    except Exception as error:
        if os.environ.get("HASHINFER_DEBUG"):
            raise
        _fail(f"internal error, {type(error).__name__}: {error} (HASHINFER_DEBUG=1 shows where)", 1)


def _fail(message: str, code: int) -> None:
    print("hashinfer: error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
