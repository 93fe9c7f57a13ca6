"""Calls by which a stranger would run code in a Triton server or change it, and the ports to try them on."""

import json

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

CODE = """
open({marker!r}, "w").write("ran")

class TritonPythonModel:
    def execute(self, requests):
        return []
"""
CONFIG = {
    "name": "evil",
    "backend": "python",
    "max_batch_size": 0,
    "output": [{"name": "o", "data_type": "TYPE_INT32", "dims": [1]}],
}


def inline(marker, name="evil"):
    """The call that makes Triton import Python of the caller's."""
    call = messages.RepositoryModelLoadRequest(model_name=name)
    call.parameters["config"].string_param = json.dumps(CONFIG | {"name": name})
    call.parameters["file:1/model.py"].bytes_param = CODE.format(marker=str(marker)).encode()
    return call


def attacks(marker):
    tracing = messages.TraceSettingRequest()
    tracing.settings["trace_file"].value.append(str(marker))
    tracing.settings["trace_level"].value.append("TIMESTAMPS")
    logging = messages.LogSettingsRequest()
    logging.settings["log_file"].string_param = str(marker)
    memory = messages.SystemSharedMemoryRegisterRequest(name="r", key="/r", offset=0, byte_size=8)
    return {
        "RepositoryModelLoad": inline(marker),
        "RepositoryModelUnload": messages.RepositoryModelUnloadRequest(model_name="echo"),
        "RepositoryIndex": messages.RepositoryIndexRequest(),
        "TraceSetting": tracing,
        "LogSettings": logging,
        "SystemSharedMemoryRegister": memory,
        "SystemSharedMemoryUnregister": messages.SystemSharedMemoryUnregisterRequest(),
        "SystemSharedMemoryStatus": messages.SystemSharedMemoryStatusRequest(),
        "CudaSharedMemoryRegister": messages.CudaSharedMemoryRegisterRequest(name="r", byte_size=8),
    }


def listening(pid):
    """What a process and all that it started listen on, as (address, port)."""
    process = psutil.Process(pid)
    connections = [c for p in [process, *process.children(recursive=True)] for c in p.net_connections("inet")]
    addresses = [c.laddr for c in connections if c.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)]  # TCP and UDP
    return {(ip.removeprefix("::ffff:"), port) for ip, port in addresses}


def assert_strangers_are_refused(pid, marker):
    """Play all attacks on every port of a process and of all that it started; a gateway may list its own models."""
    ports = listening(pid)
    assert len(ports) >= 2 and {ip for ip, _ in ports} == {"127.0.0.1"}
    for _, port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for method, call in attacks(marker).items():
                if method != "RepositoryIndex":
                    with pytest.raises(grpc.RpcError):
                        getattr(stub, method)(call, timeout=30)
    assert not marker.exists()
