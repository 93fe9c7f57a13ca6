"""A benchmark client that others wrote, run where it is on the PATH: best in an environment of its own
(`pip install aiperf==0.13.0`)."""

import json
import os
import subprocess
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def run(command: list[str], folder: Path) -> None:
    """Run it in an environment that is its own, not this one's."""
    free = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    done = subprocess.run(command, cwd=folder, env=free, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def aiperf(url: str, prompts: list[str], folder: Path, tokens: int, streams: int, *options: str) -> Path:
    """AIPerf's result file, a line a request: each prompt once, `streams` at a time, by the model `router`.

    It counts the tokens by a tokenizer of words: the gateway tells of no usage before Triton.
    """
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(folder / "tokenizer")
    (folder / "tokenizer" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in prompts))
    command = ["--model", "router", "--url", url, "--endpoint-type", "completions", "--streaming"]
    command += ["--input-file", "prompts.jsonl", "--custom-dataset-type", "single_turn", "--tokenizer", "./tokenizer"]
    command += ["--extra-inputs", f"max_tokens:{tokens}", "--request-count", str(len(prompts))]
    command += ["--concurrency", str(streams), "--artifact-dir", "found", "--ui", "none"]
    run(["aiperf", "profile", *command, *options], folder)
    return folder / "found" / "profile_export.jsonl"
