"""The `erlab` command: all subcommands and their exit statuses.

Exit statuses: 2 after a user's mistake or on a full disk, with one line on standard error; 1 after a notebook that
failed for another reason; 130 after Ctrl-C or SIGTERM (0 for `erlab gateway`, which they end); 129 after SIGHUP (closed
terminal). Characters that the terminal cannot show are printed as question marks.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated

import typer

from erlab.commands import gateway, machines, options, outcomes, results, serving, study
from erlab.commands.printed import leave
from erlab.errors import ErlabError
from erlab.study import ends
from erlab.toml import nearest

_USER_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
_USER_ERRORS |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # a file instead of a folder, or the reverse

_UsageError = typer.BadParameter.__base__  # click's class, wherever this version of typer keeps it


class _Group(typer.core.TyperGroup):
    def make_context(self, info_name, args, parent=None, **extra):
        with _errors_as_one_line() if args else contextlib.nullcontext():  # without arguments, help is an exception
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx):
        with _errors_as_one_line(ctx):
            return super().invoke(ctx)

    def resolve_command(self, ctx, args):
        if not args[0].startswith("-") and args[0] not in self.commands:
            command = " ".join(["erlab", *ctx.command_path.split()[1:]])
            hint = nearest(args[0], self.commands)
            raise ErlabError(f"There is no command {args[0]!r}; {hint} Help: {command} --help")
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def _errors_as_one_line(context: typer.Context | None = None) -> Iterator[None]:
    """Exit with one line and a status after an error that the user can correct."""
    try:
        yield
    except ErlabError as e:
        leave(str(e), 2)
    except _UsageError as e:
        if not e.format_message():  # a group without a command: its help is printed already
            raise typer.Exit(2) from None
        command = e.ctx.command_path.split()[1:] if e.ctx else [context.invoked_subcommand] if context else []
        leave(f"{_message(e)}. Help: {' '.join(['erlab', *command, '--help'])}", 2)
    except KeyboardInterrupt as e:
        leave(str(e) or "Stopped.", ends.status())
    except Exception as e:
        if isinstance(e, OSError) and not _folder_exists():
            leave("The current folder does not exist any more: change to another.", 2)
        if isinstance(e, OSError) and e.errno in _USER_ERRORS:
            leave(f"{e.filename}: {e.strerror}" if e.filename else e.strerror, 2)
        if reason := ends.full(e):
            leave(reason, 2)
        raise


def _folder_exists() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _message(e: _UsageError) -> str:
    """Message of typer's error; callbacks check all values, so a BadParameter is a missing option."""
    if isinstance(e, typer.BadParameter) and e.param:
        return f"{e.param.opts[0]} {e.param.metavar} must be given"
    return e.format_message().rstrip(".")


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Reproduce the paper Expert Router (arXiv 2404.15153): a gateway classifies prompts by k-means and forwards "
    "them to expert language models behind Triton.\n\n"
    "[bold]erlab reproduce[/bold] runs the whole study on this machine; the other commands run parts of it.",
)


def _print_version(given: bool) -> None:
    if given:
        print(f"erlab {metadata.version('erlab')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
): ...


for _command in (
    study.reproduce,
    results.figures,
    results.claims,
    results.import_,
    results.export,
    study.doctor,
    serving.serve,
    gateway.gateway,
    machines.gpu,
    serving.route,
    serving.users,
    machines.simulate,
):
    app.command(_command.__name__.rstrip("_"), cls=options.Command)(_command)
app.add_typer(outcomes.app, name="outcomes", cls=_Group)


def main() -> None:
    """Run the command line in UTF-8 mode."""
    if sys.getfilesystemencoding() != "utf-8":  # an old locale, in which some file names cannot be decoded
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(errors="replace")
    # Child processes write to us, not to the terminal: always UTF-8.
    os.environ.pop("PYTHONIOENCODING", None)
    os.environ["PYTHONUTF8"] = "1"
    ends.handle()
    app(prog_name="erlab")
