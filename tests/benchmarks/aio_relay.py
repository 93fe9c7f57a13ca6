"""The least that a gateway needs with grpc.aio on both sides: streams relayed as bytes, and nothing else.

    python aio_relay.py HOST:PORT    # of the server behind it; prints its own address, ends with its stdin
"""

import asyncio
import sys
from functools import partial

import grpc

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Relay(grpc.GenericRpcHandler):
    def __init__(self, upstream):
        self._ask, self._unary = upstream.unary_stream(STREAM), upstream.unary_unary

    def service(self, details):
        if details.method == STREAM:
            return grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(partial(self._once, details.method))

    async def _once(self, method, data, context):
        return await self._unary(method)(data)

    async def _stream(self, data, context):
        async for response in self._ask(data):
            yield response


async def main(address):
    async with grpc.aio.insecure_channel(address) as upstream:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([Relay(upstream)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
