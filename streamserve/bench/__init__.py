"""`streamserve bench`: how fast this machine serves a model, in the library and over HTTP.

`latency`, `prefill` and `throughput` run the engine in this process; `serve` loads any server that speaks OpenAI's API from
processes of its own; `startup` times a server from its start to its first token. Every command prints a table, or JSON lines
with `--json`.
"""
