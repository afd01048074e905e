"""A whole server in one process on a random model that transformers made: real steps and grammars, bytes as tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.engine.inline import InlineEngine
from streamserve.frontend import Frontend
from streamserve.server.app import create_app
from streamserve.server.config import ServerConfig
from streamserve.server.service import Service
from streamserve.text.grammars.grammar import GrammarCompiler
from tests.support.byte_tokenizer import EOS, VOCAB_SIZE, byte_tokenizer
from tests.support.live_server import serving
from tests.support.tiny_model import TinyLlama

_BLOCK_BYTES = 2 * 2 * 2 * 16 * 16 * 4


class TinyServer(NamedTuple):
    """Where it listens, and what it answers with."""

    port: int
    model: TinyLlama

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@asynccontextmanager
async def tiny_server(
    folder: Path, *, num_blocks: int = 40, vocab_size: int = VOCAB_SIZE, **config: Any
) -> AsyncIterator[TinyServer]:
    """Serve as "tiny"; so small that a crowd is chunked, queued and preempted. `config` are fields of `ServerConfig`.

    vocab_size  tokens that the model has embeddings of; the tokenizer has `VOCAB_SIZE`
    """
    model = TinyLlama(folder, vocab_size=vocab_size)
    async with checkpoint_server(folder, kv_cache_bytes=_BLOCK_BYTES * num_blocks, vocab_size=vocab_size, **config) as port:
        yield TinyServer(port, model)


@asynccontextmanager
async def checkpoint_server(
    folder: Path,
    *,
    kv_cache_bytes: int,
    max_model_len: int | None = None,
    vocab_size: int = VOCAB_SIZE,
    model_impl: str = "auto",
    **config: Any,
) -> AsyncIterator[int]:
    """Serve the checkpoint in a folder as "tiny", in float32; yields the port. The rest as in `tiny_server`."""
    settings = EngineConfig(
        model=str(folder),
        model_impl=model_impl,
        dtype="float32",
        kv_cache_memory=kv_cache_bytes,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        max_model_len=max_model_len,
    )
    grammars = GrammarCompiler(byte_tokenizer, vocab_size=vocab_size, eos_token_ids=[EOS])
    engine = InlineEngine(settings, resolve(settings.model), compile_constraint=grammars.compile)
    await engine.start()
    try:
        service = Service(ServerConfig(model_names=["tiny"], **config))
        frontend = Frontend(
            engine,
            byte_tokenizer(),
            eos_token_ids=[EOS],
            max_logprobs=service.config.max_logprobs,
            chat_template=service.config.chat_template,
        )
        service.attach(frontend, {})
        async with service.delivery.running(), serving(create_app(service)) as port:
            yield port
    finally:
        await engine.stop()
