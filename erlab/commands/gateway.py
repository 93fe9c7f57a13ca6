"""`erlab gateway`: the Expert Router in front of experts that run already."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from erlab import textfiles
from erlab.commands import options, printed
from erlab.errors import ErlabError

_PROMPT, _TOKENS = "How do I salt pasta water?", 32


def gateway(
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file that describes the gateway; generalist, strong, threshold and limits are set only there. "
            "Its keys are listed in erlab/gateway/fleet.py.",
            metavar="FILE",
        ),
    ] = None,
    expert: Annotated[
        list[str] | None,
        typer.Option(
            help="Expert: NAME=http://HOST:PORT/v1#MODEL (OpenAI-compatible) or NAME=grpc://HOST:PORT/MODEL (Triton); "
            "repeat for several.",
            metavar="NAME=URL",
        ),
    ] = None,
    router: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a saved router (default: the file's; else one is trained from --prompts at first start and "
            "saved in router/ beside the file, without file in data/results/gateway/router).",
            metavar="DIR",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts to train the router from at first start, as in erlab reproduce (default: the file's, else "
            "the project's own).",
            metavar="SOURCE",
            callback=options.TEXT,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Routing policy: {gateway policies} (default: the file's, else nearest).",
            metavar="NAME",
            callback=options.one_of("gateway policies"),
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on (default: 127.0.0.1; 0.0.0.0 for all).", callback=options.TEXT),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port of the KServe v2 gRPC server (default: a free one).", parser=options.whole, callback=options.PORT
        ),
    ] = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            help="Port of the OpenAI-compatible server (default: a free one).",
            parser=options.whole,
            callback=options.PORT,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that share the ports (default: 1).", parser=options.whole, callback=options.COUNT
        ),
    ] = None,
    no_grpc: Annotated[bool, typer.Option("--no-grpc", help="Start no gRPC server.")] = False,
    no_http: Annotated[bool, typer.Option("--no-http", help="Start no HTTP server.")] = False,
    log: Annotated[
        str | None,
        typer.Option(
            help="Access log: a file, or - for standard error (default: none).", metavar="FILE", callback=options.TEXT
        ),
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Start although experts do not answer; they join later, when they do.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which expert serves which cluster, and check the experts.")
    ] = False,
    print_: Annotated[
        str | None,
        typer.Option(
            "--print",
            help="Print a Dockerfile, a systemd unit or Kubernetes manifests for the file; start nothing.",
            metavar="docker|systemd|kubernetes",
            callback=options.must("be docker, systemd or kubernetes", ("docker", "systemd", "kubernetes").__contains__),
        ),
    ] = None,
):
    """Start the router in front of your own experts and keep it running until Ctrl-C or SIGTERM.

    SIGHUP reads the file again; requests in flight go on. SIGTERM stops it after requests in flight end (at most 30 s).

    A file:

    \b
      \\[policy]
      name = "spill"
      \\[experts.math]
      url = "http://10.0.0.5:8000/v1"
      model = "Qwen2.5-Math-7B"
      domains = ["mathematics"]

    Examples:

    \b
      erlab gateway --config fleet.toml
      erlab gateway --config fleet.toml --dry-run
      erlab gateway --config fleet.toml --print systemd
      erlab gateway --expert math=http://10.0.0.5:8000/v1#Qwen2.5-Math-7B --expert code=grpc://10.0.0.6:8001/llama
    """
    from erlab.gateway import Gateway, deploy, prepare

    asked = {"host": host, "port": port, "http_port": http_port, "workers": workers}
    asked |= {"grpc": False if no_grpc else None, "http": False if no_http else None}
    asked |= {"log": log if log in (None, "-") else str(Path(log).absolute())}
    named = options.once("--expert", "expert", map(_named, expert or ()))
    changes = {
        "gateway": asked,
        "router": {"folder": router and str(router.absolute()), "prompts": prompts and _absolute(prompts)},
        "policy": {"name": policy},
        "experts": {name: {"url": url} for name, url in named.items()},
    }
    if config is None and not expert:
        raise ErlabError("--config FILE or --expert NAME=URL must be given. Help: erlab gateway --help")

    if print_:
        if config is None:
            raise ErlabError("--print needs --config FILE.")
        described, program = _read(config, changes), Path(sys.argv[0]).absolute()
        own = {"program": program} if print_ == "systemd" else {}
        printed.line(getattr(deploy, print_)(described, config, **own).rstrip("\n"))
        return

    def read() -> prepare.Prepared:
        return prepare.prepared(_read(config, changes))

    ready = read()
    if dry_run:
        _show(ready)
        return
    if not unchecked:
        prepare.require_experts(ready.config)
    with Gateway(ready.config, log=sys.stderr, waits=not unchecked) as running:
        _tell(running)
        try:
            _keep(running, read)
        except KeyboardInterrupt:
            printed.line("The gateway stops when requests in flight have ended.")


def _named(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not (name and equals and url):
        raise ErlabError(f"--expert must be NAME=URL. Got {text!r}.")
    return name, url


def _absolute(prompts: str) -> str:
    return str(Path(prompts).absolute()) if Path(prompts).exists() else prompts


def _read(config: Path | None, changes: dict[str, dict]):
    """Describe the gateway by its file and the options, which replace values of the file."""
    from erlab import paths
    from erlab.gateway import fleet

    table = fleet.read(config) if config else {"router": {"folder": str(paths.RESULTS / "gateway" / "router")}}
    for part, values in changes.items():
        if given := {name: value for name, value in values.items() if value is not None}:
            former = table.get(part, {})
            table[part] = former | given if isinstance(former, dict) else former
    return fleet.from_table(table, str(config or "erlab gateway"), config.parent if config else Path())


def _show(ready) -> None:
    from erlab.gateway import prepare

    printed.table(f"Router {ready.config.router.folder}, policy {ready.config.policy}", ready.table(), lines=True)
    problems = prepare.problems(ready.config)
    rows = []
    for expert in ready.config.experts:
        kind = "Triton" if expert.location.is_triton else "OpenAI-compatible"
        state = problems.get(expert.name, "answers")
        rows.append((expert.name, kind, expert.location.server, expert.location.model, f"{expert.weight:g}", state))
    printed.text_table("Experts", ("expert", "kind", "server", "model", "weight", "state"), rows)


def _tell(running) -> None:
    models = ", ".join(("router", *(expert.name for expert in running.config.experts)))
    addresses = [f"{running.address} (KServe v2 gRPC)"] if running.address else []
    addresses += [f"{running.http}/v1 (OpenAI-compatible)"] if running.http else []
    printed.line(f"The gateway answers at {' and '.join(addresses)}; models: {models}.")
    for line in ready_to_paste(running.address, running.http, running.config.key_variable if running.key else None):
        printed.line(line)
    printed.line("Ctrl-C or SIGTERM stops it, SIGHUP reads its file again.")


def ready_to_paste(
    address: str | None, http: str | None, key_variable: str | None = None, model: str = "router"
) -> list[str]:
    """Return shell commands that send a prompt to a model: curl, the openai package, tritonclient.

    Args:
        address: HOST:PORT of the gRPC face, None for no such face.
        http: URL of the HTTP face, None for no such face.
        key_variable: Environment variable with the key that the gateway requires, None for none.
    """
    commands, body = [], f'{{"model": "{model}", "prompt": "{_PROMPT}", "max_tokens": {_TOKENS}}}'
    if http:
        key = f'-H "Authorization: Bearer ${key_variable}" ' if key_variable else ""
        commands.append(f"curl {http}/v1/completions {key}-H 'Content-Type: application/json' -d '{body}'")
        key = f"os.environ['{key_variable}']" if key_variable else "'none'"
        client = f"OpenAI(base_url='{http}/v1', api_key={key})"
        asked = f"completions.create(model='{model}', prompt='{_PROMPT}', max_tokens={_TOKENS})"
        commands.append(f'python -c "import os; from openai import OpenAI; print({client}.{asked}.choices[0].text)"')
    if address:
        key = f", headers={{'authorization': 'Bearer ' + os.environ['{key_variable}']}}" if key_variable else ""
        code = (
            "import os, numpy as np, tritonclient.grpc as triton",
            "inputs = [triton.InferInput(n, [1, 1], t) for n, t in (('text_input', 'BYTES'), ('max_tokens', 'INT32'))]",
            f"inputs[0].set_data_from_numpy(np.array([['{_PROMPT}']], object))",
            f"inputs[1].set_data_from_numpy(np.array([[{_TOKENS}]], np.int32))",
            f"client = triton.InferenceServerClient('{address}')",
            "words = lambda answer: b''.join(t for t in np.ravel(answer.as_numpy('text_output')) if t).decode()",
            f"client.start_stream(lambda result, error: print(error or words(result), end=' '){key})",
            f"client.async_stream_infer('{model}', inputs)",
            "client.stop_stream()",
        )
        commands.append(f'python -c "{"; ".join(code)}"')
    return commands


def _keep(running, read: Callable) -> None:
    """Wait until the gateway ends; read the description again after SIGHUP."""
    hung_up = threading.Event()
    signal.signal(signal.SIGHUP, lambda *_: hung_up.set())
    while running.alive():
        if not hung_up.wait(1):
            continue
        hung_up.clear()
        with contextlib.suppress(OSError):
            try:
                _reload(running, read)
            except Exception as e:  # whatever is wrong with the file, the former experts stay
                text = " ".join(str(e).split()) or type(e).__name__
                print(f"erlab: Not reloaded, the former experts stay: {textfiles.printable(text)}", file=sys.stderr)
    raise ErlabError("The gateway ended by itself.")


def _reload(running, read: Callable) -> None:
    from erlab.gateway import prepare

    config = read().config
    running.reload(config)
    printed.line(f"Reloaded: {', '.join(expert.name for expert in config.experts)}.")
    for name, problem in prepare.problems(config).items():
        printed.line(f"Expert {name!r}: {problem}")
