"""OpenAI's API as the server mounts it."""

from __future__ import annotations

from streamserve.server.api import Api
from streamserve.server.apis.openai import chat, completions, embeddings, invocations, tokenization
from streamserve.server.apis.openai.sockets import create_chat, create_completion

OPENAI = Api(
    routes=[
        completions.create_completion,
        chat.create_chat_completion,
        embeddings.create_embeddings,
        invocations.invoke,
        tokenization.tokenize,
        tokenization.detokenize,
    ],
    paths=["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/invocations", "/tokenize", "/detokenize"],
    id_prefixes=[completions.COMPLETION_PREFIX, chat.CHAT_PREFIX, embeddings.EMBEDDING_PREFIX],
    creates={"chat.completion.create": create_chat, "completion.create": create_completion},
)
