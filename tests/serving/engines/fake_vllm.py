"""Substitute for vLLM: records its arguments, then serves a tiny engine under the requested name and port.

FAKE_VLLM_CALLS: the file that gets a line of JSON a call. FAKE_VLLM_ENGINE: the tiny engine's folder. FAKE_VLLM:
"fail" ends with an error, "hang" never listens.
"""

import json
import os
import sys
import time


def main() -> None:
    with open(os.environ["FAKE_VLLM_CALLS"], "a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    mode = os.environ.get("FAKE_VLLM")
    if mode == "fail":
        print("INFO starting", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 7.00 GiB.", sep="\n")
        sys.exit(1)
    if mode == "hang":
        print("INFO loading weights", flush=True)
        time.sleep(600)
    flags = dict(zip(sys.argv[3::2], sys.argv[4::2]))
    command = [sys.executable, "-m", "erlab.serving.engines.tiny_openai", "--engine", os.environ["FAKE_VLLM_ENGINE"]]
    command += ["--name", flags["--served-model-name"], "--port", flags["--port"]]
    os.execv(sys.executable, [*command, "--max-batch-size", "16", "--max-sequence-tokens", flags["--max-model-len"]])


if __name__ == "__main__":
    main()
