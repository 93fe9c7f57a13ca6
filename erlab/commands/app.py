"""The `erlab` command: puts the commands together, and ends all of them alike.

A user's mistake is one line and exit status 2, as is a full disk; Ctrl-C and SIGTERM are 130, a closed terminal is 129,
a notebook that failed otherwise is 1. What a terminal cannot show is printed as a question mark.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

import typer

from erlab.commands import machines, results, serving, study
from erlab.commands.printed import leave
from erlab.errors import ErlabError
from erlab.study import ends

_MENDABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
_MENDABLE |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}  # a file where a folder was wanted, or the other way round

_UsageError = typer.BadParameter.__base__  # click's, wherever this typer has it


class _Group(typer.core.TyperGroup):
    def make_context(self, info_name, args, parent=None, **extra):
        with _in_one_line() if args else contextlib.nullcontext():  # without any, help comes as an exception
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx):
        with _in_one_line(ctx):
            return super().invoke(ctx)

    def resolve_command(self, ctx, args):
        if not args[0].startswith("-") and args[0] not in self.commands:
            known = ", ".join(self.commands)
            raise ErlabError(f"The command must be one of {known}. Got {args[0]!r}. Help: erlab --help")
        return super().resolve_command(ctx, args)


@contextlib.contextmanager
def _in_one_line(context: typer.Context | None = None) -> Iterator[None]:
    """Ends the program after what its user can mend: with a line, and an exit status. `context`: the group's, once it
    runs."""
    try:
        yield
    except ErlabError as e:
        leave(str(e), 2)
    except _UsageError as e:
        command = e.ctx.command_path.split()[1:] if e.ctx else [context.invoked_subcommand] if context else []
        leave(f"{_refused(e)}. Help: {' '.join(['erlab', *command, '--help'])}", 2)
    except KeyboardInterrupt as e:
        leave(str(e) or "Stopped.", ends.status())
    except Exception as e:
        if isinstance(e, OSError) and _nowhere():
            leave("The current folder does not exist any more: change to another.", 2)
        if isinstance(e, OSError) and e.errno in _MENDABLE:
            leave(f"{e.filename}: {e.strerror}" if e.filename else e.strerror, 2)
        if reason := ends.full(e):
            leave(reason, 2)
        raise


def _nowhere() -> bool:
    try:
        return not os.getcwd()
    except FileNotFoundError:
        return True


def _refused(e: _UsageError) -> str:
    """What typer has to say; it checks no values here, so that what it says of one parameter is that it is missing."""
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
    help="Reproduces the paper Expert Router (arXiv 2404.15153): prompts are classified by k-means and forwarded "
    "to expert language models behind Triton.\n\n"
    "[bold]erlab reproduce[/bold] runs the whole study on this machine; the other commands do a part of it.",
)
for _command in (
    study.reproduce,
    results.figures,
    results.claims,
    study.doctor,
    serving.serve,
    machines.gpu,
    serving.route,
    serving.users,
    machines.simulate,
):
    app.command()(_command)


def main() -> None:
    if sys.getfilesystemencoding() != "utf-8":  # an old locale, in which not every name of a file is a text
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(errors="replace")
    # What the processes that we start write comes to us, not to the terminal: UTF-8, whatever that takes.
    os.environ.pop("PYTHONIOENCODING", None)
    os.environ["PYTHONUTF8"] = "1"
    ends.heed()
    app(prog_name="erlab")
