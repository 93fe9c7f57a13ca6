"""A gateway to try out in a notebook: start it, ask it, watch where prompts go, plot queue and latency, stop it.

    from erlab.explore import trial

    gateway = trial.start()               # in front of emulated experts, or of the experts of a fleet.toml
    gateway.ask(["Who pays if the tenant breaks the lease?"])
    gateway.watch(concurrency=16, seconds=20)
    gateway.stop()
"""

import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
from IPython.display import display
from prometheus_client.parser import text_string_to_metric_families

from erlab import paper, users
from erlab.errors import ErlabError
from erlab.figures import style
from erlab.gateway import Gateway, fleet, prepare
from erlab.gateway.fleet import ExpertConfig, FleetConfig, RouterConfig
from erlab.prompts import datasets, workload
from erlab.serving import profiles
from erlab.serving.engines import emulated
from erlab.serving.triton import Server
from erlab.serving.triton.server import available
from erlab.spec import require

SYSTEM = "E"  # its experts are emulated
TIME_SCALE = 10.0  # by which emulated experts are slower than their GPUs
_SAMPLE_SECONDS = 0.5
_SECONDS = 120  # for an answer


def start(config: str | Path | None = None, experts: int = 4, folder: str | Path | None = None) -> "Trial":
    """Start a gateway.

    Args:
        config: TOML file of a gateway (`erlab.gateway.fleet`); None for emulated experts, which keep the time of an
            expert on a GPU and compute nothing.
        experts: Number of emulated experts, 1 to 8.
        folder: Folder of the emulated experts' models and router; None for a temporary one.

    Raises:
        ErlabError: The description is wrong, or no server can run here.
    """
    with ExitStack() as stack:
        if config is not None:
            described = fleet.from_table(fleet.read(config), str(config), Path(config).parent)
        else:
            folder = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
            described = stack.enter_context(_emulated(experts, folder))
        ready = prepare.prepared(replace(described, http_port=described.http_port or 0))
        prepare.require_experts(ready.config)
        gateway = stack.enter_context(Gateway(ready.config))
        return Trial(gateway, ready, stack.pop_all())


@contextmanager
def _emulated(count: int, folder: Path) -> Iterator[FleetConfig]:
    """Start Triton with emulated experts, and describe a gateway in front of them."""
    require(1 <= count <= 8, "experts", "trial.start", "be from 1 to 8", count)
    if reason := available():
        raise ErlabError(f"Triton cannot run here: {reason}. Name a TOML file with experts on other servers.")
    system = replace(paper.SYSTEMS["v2"][SYSTEM], count=count)
    names = emulated.write_system(folder / "models", SYSTEM, system, TIME_SCALE)
    with Server(folder / "models", names) as server:
        experts = (ExpertConfig(f"expert-{i}", f"grpc://{server.grpc}/{name}") for i, name in enumerate(names))
        yield FleetConfig(tuple(experts), RouterConfig(str(folder / "router"), trains=True))


class Trial:
    """A running gateway; `http` and `address` are its faces."""

    def __init__(self, gateway: Gateway, ready: prepare.Prepared, stack: ExitStack):
        self.http, self.address = gateway.http, gateway.address
        self._gateway, self._ready, self._stack = gateway, ready, stack

    def clusters(self) -> pd.DataFrame:
        """Tabulate the clusters: terms, size, experts and their prices; one row per cluster."""
        return self._ready.table().set_index("cluster")

    def ask(self, prompts: Sequence[str], model: str = "router", max_tokens: int = 16) -> pd.DataFrame:
        """Ask for completions, one after the other.

        Args:
            prompts: Prompts.
            model: "router", or an expert's name.
            max_tokens: Output tokens of each.

        Returns:
            One row per prompt: prompt, expert, cluster, margin, time of the answer (ms), answer.
        """
        rows = []
        for prompt in prompts:
            begun = time.monotonic()
            body = {"model": model, "prompt": prompt, "max_tokens": max_tokens}
            headers, answer = self._post("/v1/completions", body)
            about = {name: headers.get(f"x-erlab-{name}") for name in ("expert", "cluster", "margin")}
            spent = round((time.monotonic() - begun) * 1e3, 1)
            rows.append({"prompt": prompt} | about | {"ms": spent, "answer": answer["choices"][0]["text"]})
        return pd.DataFrame(rows)

    def destinations(self, per_domain: int = 20, seed: int = 0) -> pd.DataFrame:
        """Count the experts of prompts of each domain, without sending them; one row per domain, one column each."""
        prompts = datasets.load(self._ready.config.router.prompts, seed=seed, per_domain=per_domain).to_pandas()
        experts = [self._post("/route", {"prompt": text})[1]["expert"] for text in prompts.text]
        return pd.crosstab(prompts.domain, pd.Series(experts, name="expert", index=prompts.index))

    def watch(self, concurrency: int = 8, seconds: float = 20.0, seed: int = 0) -> pd.DataFrame:
        """Load the gateway with closed-loop users and plot queue and latency while they run.

        Args:
            concurrency: Number of users.
            seconds: Length of the load; requests in flight then end.
            seed: Seed of the requests.

        Returns:
            One row per half second and expert: seconds since the start, requests (waiting or running), mean time to
            first token (ms) of the answers that began in the interval, None without one.
        """
        prompts = datasets.load(self._ready.config.router.prompts, seed=seed, per_domain=50)
        requests = workload.requests(prompts, profiles.profile("laptop").workload, concurrency, seed)
        if self.address is None:
            raise ErlabError("The users need the gateway's gRPC face, which is closed.")
        run = {"timeout": _SECONDS, "processes": 1, "until": seconds}
        load = threading.Thread(target=users.run, args=(self.address, ("router",), requests), kwargs=run, daemon=True)
        samples, begun, former = [], time.monotonic(), self._sample()
        figure, axes = _panels()
        shown = display(figure, display_id=True)
        load.start()
        while load.is_alive():
            load.join(_SAMPLE_SECONDS)
            now = self._sample()
            elapsed = time.monotonic() - begun
            samples += [{"seconds": elapsed, "expert": e} | _between(former[e], now[e]) for e in now]
            former = now
            _draw(axes, pd.DataFrame(samples))
            shown.update(figure)
        return pd.DataFrame(samples)

    def stop(self) -> None:
        """Stop the gateway, and what `start` started behind it."""
        self._stack.close()

    def _post(self, path: str, body: dict) -> tuple:
        headers, answer = self._fetch(path, json.dumps(body).encode())
        return headers, json.loads(answer)

    def _fetch(self, path: str, data: bytes | None = None) -> tuple:
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._gateway.key}"} if self._gateway.key else {}
        request = urllib.request.Request(self.http + path, data, headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return answer.headers, answer.read()

    def _sample(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each expert by name."""
        families = text_string_to_metric_families(self._fetch("/metrics")[1].decode())
        found = {expert.name: {} for expert in self._ready.config.experts}
        for sample in (sample for family in families for sample in family.samples):
            if sample.labels.get("expert") in found:
                found[sample.labels["expert"]][sample.name] = sample.value
        return found


def _between(former: dict[str, float], now: dict[str, float]) -> dict[str, float | None]:
    began = now.get("erlab_first_seconds_count", 0) - former.get("erlab_first_seconds_count", 0)
    spent = now.get("erlab_first_seconds_sum", 0) - former.get("erlab_first_seconds_sum", 0)
    return {"requests": now.get("erlab_in_flight", 0), "ttft_ms": spent / began * 1e3 if began else None}


def _panels():
    figure = style.figure(7.0, 2.6)
    return figure, figure.subplots(1, 2)


def _draw(axes, samples: pd.DataFrame) -> None:
    for ax, column, label in zip(axes, ("requests", "ttft_ms"), ("Requests at the expert", "Time to first token (ms)")):
        ax.clear()
        for i, (expert, rows) in enumerate(samples.groupby("expert")):
            rows = rows.dropna(subset=[column])
            ax.plot(rows.seconds, rows[column].astype(float), color=style.PALETTE[i % len(style.PALETTE)], label=expert)
        ax.set(xlabel="Time (s)", ylabel=label, ylim=(0, None))
    axes[0].legend(fontsize="small")
    axes[0].figure.set_layout_engine("constrained")  # again: a figure that was shown keeps its layout
