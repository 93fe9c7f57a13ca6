"""Text that deploys a gateway elsewhere: container, systemd unit, Kubernetes manifests, from its TOML file.

The files that the TOML file names, such as the router's folder, lie in its folder or below, so that they go along. The
image is python:3.12-slim with this package from a clone of its repository.
"""

import json
import os
import re
import shlex
from pathlib import Path

from erlab import textfiles
from erlab.errors import ErlabError
from erlab.gateway.fleet import FleetConfig

_PLACE = "/srv/erlab"  # of the TOML file's folder in the image
_PORT, _HTTP_PORT = 8001, 8080  # where the file leaves the port to the system
_UID = 10001
_MARGIN = 5  # seconds between the end of draining and the end of the process


def docker(config: FleetConfig, file: Path) -> str:
    """Return a Dockerfile, with the commands that build and run it as comments; podman takes the same."""
    published = " ".join(f"-p {port}:{port}" for port in _ports(config).values())
    secrets = "".join(f" -e {variable}" for variable in variables(config))
    grace = round(config.limits.drain_seconds) + _MARGIN
    _check_inside(config, file)
    return f"""\
# In a clone of the erlab repository, in which `gateway` is the folder of this file, {file.name} and the router:
#   docker build -t erlab-gateway -f gateway/Dockerfile .
#   docker run --rm --init --stop-timeout {grace} {published}{secrets} erlab-gateway
# Reload: docker kill -s HUP CONTAINER. The file of the experts may be mounted over {_PLACE}/{file.name}.
FROM python:3.12-slim
COPY . /opt/erlab
RUN python -m pip install --no-cache-dir /opt/erlab && mv /opt/erlab/gateway {_PLACE} && chown -R {_UID} {_PLACE}
WORKDIR {_PLACE}
USER {_UID}
EXPOSE {" ".join(map(str, _ports(config).values()))}
STOPSIGNAL SIGTERM
CMD {json.dumps(["erlab", *_arguments(config, file.name)])}
"""


def systemd(config: FleetConfig, file: Path, program: Path) -> str:
    """Return a systemd unit for this machine; `program`: path of the `erlab` command."""
    grace = round(config.limits.drain_seconds) + _MARGIN
    secrets = "".join(f"# {variable}=...\n" for variable in variables(config))
    secrets = f"# /etc/erlab/gateway.env, readable by root only, holds the keys:\n{secrets}" if secrets else ""
    arguments = _arguments(config, str(file.absolute()), own_host=True)
    command = " ".join(_quoted(part) for part in (str(program), *arguments))
    return f"""\
# /etc/systemd/system/erlab-gateway.service
{secrets}[Unit]
Description=Expert Router gateway
After=network-online.target
Wants=network-online.target

[Service]
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={file.absolute().parent.as_posix().replace("%", "%%")}
EnvironmentFile=-/etc/erlab/gateway.env
User={file.owner()}
Restart=on-failure
KillMode=mixed
TimeoutStopSec={grace}
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""


def kubernetes(config: FleetConfig, file: Path) -> str:
    """Return the manifests: a ConfigMap with the TOML file, a Deployment and a Service."""
    _check_inside(config, file)
    ports = _ports(config)
    grace = round(config.limits.drain_seconds) + 2 * _MARGIN
    content = "".join(f"    {line}\n" for line in textfiles.lines(textfiles.read(file)))
    named = "".join(f"            - {{name: {name}, containerPort: {port}}}\n" for name, port in ports.items())
    served = "".join(f"    - {{name: {name}, port: {port}, targetPort: {name}}}\n" for name, port in ports.items())
    secrets = "".join(_SECRET.format(variable=variable) for variable in variables(config))
    environment = f"          env:\n{secrets}" if secrets else ""
    if "http" in ports:
        probe = "httpGet: {{path: /health/{}, port: http}}"
    else:
        probe = "tcpSocket: {{port: grpc}}"
    return f"""\
# The image of erlab gateway --print docker. Keys: kubectl create secret generic erlab-gateway --from-literal=NAME=KEY
apiVersion: v1
kind: ConfigMap
metadata:
  name: erlab-gateway
data:
  fleet.toml: |
{content}---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: erlab-gateway
spec:
  replicas: 1
  selector:
    matchLabels: {{app: erlab-gateway}}
  template:
    metadata:
      labels: {{app: erlab-gateway}}
    spec:
      terminationGracePeriodSeconds: {grace}
      securityContext: {{runAsNonRoot: true, runAsUser: {_UID}}}
      containers:
        - name: gateway
          image: erlab-gateway:latest
          command: ["erlab"]
          args: {json.dumps(_arguments(config, file.name))}
          ports:
{named}{environment}          startupProbe: {{{probe.format("live")}, failureThreshold: 60, periodSeconds: 2}}
          readinessProbe: {{{probe.format("ready")}, periodSeconds: 5}}
          livenessProbe: {{{probe.format("live")}, periodSeconds: 10}}
          lifecycle: {{preStop: {{exec: {{command: ["sleep", "{_MARGIN}"]}}}}}}
          volumeMounts:
            - {{name: fleet, mountPath: {_PLACE}/{file.name}, subPath: fleet.toml}}
      volumes:
        - name: fleet
          configMap: {{name: erlab-gateway}}
---
apiVersion: v1
kind: Service
metadata:
  name: erlab-gateway
spec:
  selector: {{app: erlab-gateway}}
  ports:
{served}"""


_SECRET = """\
            - name: {variable}
              valueFrom: {{secretKeyRef: {{name: erlab-gateway, key: {variable}, optional: true}}}}
"""


def variables(config: FleetConfig) -> tuple[str, ...]:
    """Return the environment variables that hold keys."""
    named = (config.key_variable, *(expert.key_variable for expert in config.experts))
    return tuple(dict.fromkeys(filter(None, named)))


def _ports(config: FleetConfig) -> dict[str, int]:
    """The ports of the open faces by name."""
    ports = {"grpc": (config.port, _PORT), "http": (config.http_port, _HTTP_PORT)}
    return {name: port or usual for name, (port, usual) in ports.items() if port is not None}


def _arguments(config: FleetConfig, file: str, own_host: bool = False) -> list[str]:
    """Arguments of the command; experts that are away for a while don't keep it from starting."""
    ports = _ports(config)
    arguments = ["gateway", "--config", file, "--unchecked"]
    arguments += [] if own_host else ["--host", "0.0.0.0"]
    arguments += ["--port", str(ports["grpc"])] if "grpc" in ports else []
    return arguments + (["--http-port", str(ports["http"])] if "http" in ports else [])


def _check_inside(config: FleetConfig, file: Path) -> None:
    """Refuse a router or prompts that lie elsewhere than the file, since only its folder goes into the image."""
    folder = file.absolute().parent
    for path in filter(None, (config.router.folder, config.router.prompts)):
        if os.path.exists(path) and not Path(os.path.abspath(path)).is_relative_to(folder):
            raise ErlabError(f"{path}: must lie in {folder}, the folder of {file.name}, which goes into the image.")
    if not re.fullmatch(r"[\w.-]+", file.name):
        raise ErlabError(f"The file's name must consist of letters, digits, '.', '_' and '-'. Got {file.name!r}.")


def _quoted(part: str) -> str:
    return shlex.quote(part).replace("%", "%%").replace("$", "$$")
