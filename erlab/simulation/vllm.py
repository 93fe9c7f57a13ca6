"""Settings of vLLM's server that served and simulated engines share."""

BATCHED_TOKENS = 2048  # tokens of an iteration at most: the default of vLLM's server
BLOCK_TOKENS = 16  # tokens of a block of its KV cache
