"""Names of other packages that our code uses although they are not documented: all are listed, and all are there.

An upgrade may remove any of them without notice: pyproject.toml caps torch, triton and uvicorn at the newest that were tested.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("streamserve", "kernels/streamserve_kernels", "clients")

NAMES = {
    # server/http/connections/protocol.py
    "uvicorn.protocols.http.httptools_impl": ["STATUS_LINE", "HttpToolsProtocol._start_asgi_task"],
    # worker/startup/triton_cache.py, compile_ahead.py and launch.py of the kernels
    "triton.backends.compiler": ["GPUTarget"],
    "triton.backends.nvidia.driver": ["CudaLauncher", "CudaUtils"],
    "triton.runtime": ["driver", "JITFunction"],
    "triton.runtime.cache": ["triton_key"],
    "triton.runtime.driver": ["DriverConfig.set_active"],
    # worker/communication/peers.py
    "torch.distributed._symmetric_memory": ["empty", "rendezvous"],
    # models/transformers_model
    "transformers.conversion_mapping": ["get_model_conversion_mapping"],
    "transformers.core_model_loading": ["WeightConverter.add_tensor", "WeightConverter.convert", "rename_source_key"],
    "transformers.integrations.moe": ["ALL_EXPERTS_FUNCTIONS.register", "grouped_mm_experts_forward"],
    "transformers.modeling_rope_utils": ["ROPE_INIT_FUNCTIONS"],
    "transformers.modeling_utils": [
        "PreTrainedModel._can_set_experts_implementation",
        "PreTrainedModel._from_config",
        "PreTrainedModel._is_stateful",
        "PreTrainedModel._keep_in_fp32_modules",
        "PreTrainedModel._keep_in_fp32_modules_strict",
        "PreTrainedModel._keys_to_ignore_on_load_unexpected",
        "PreTrainedModel.initialize_weights",
        "PreTrainedModel.named_non_persistent_buffers",
    ],
    # models/aot
    # and compile_ahead.py of the kernels
    "torch": [
        "_C._aoti.AOTIModelPackageLoader",
        "_convert_weight_to_int4pack_for_cpu",
        "_grouped_mm",
        "_scaled_mm_v2",
        "_weight_int4pack_mm_for_cpu",
    ],
    "torch._inductor": ["aoti_compile_and_package"],
    "torch._inductor.ir": ["TensorBox"],
    "torch._inductor.lowering": ["register_lowering"],
    "torch._inductor.mkldnn_ir": ["LinearBinary", "LinearUnary"],
    # models/aot and reference/ of the kernels
    "torch.ops": [
        "mkldnn._is_mkldnn_bf16_supported",
        "mkldnn._linear_pointwise",
        "mkldnn._linear_pointwise.binary",
        "mkldnn._reorder_linear_weight",
    ],
}

ATTRIBUTES = {
    # server/http/connections/protocol.py
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol": ["cycle", "flow", "loop", "scope", "transport"],
    "uvicorn.protocols.http.httptools_impl:RequestResponseCycle": [
        "chunked_encoding",
        "disconnected",
        "expected_content_length",
        "flow",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "transport",
    ],
    "uvicorn.protocols.http.flow_control:FlowControl": ["read_paused", "write_paused"],
    # server/http/connections/server.py
    "uvicorn:Server": ["server_state", "servers"],
    # server/ws/protocol.py
    "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol": [
        "close_sent",
        "config",
        "conn",
        "handshake_complete",
        "handshake_initiated",
        "loop",
        "transport",
        "writable",
    ],
    # models/transformers_model
    "transformers.modeling_utils:PreTrainedModel": ["_is_hf_initialized"],
    # server/app.py
    "litestar:Litestar": ["asgi_handler"],
    # compile_ahead.py of the kernels
    "triton.runtime.driver:DriverConfig": ["_active"],
}
"""Attributes that a class gives its instances."""

OVERRIDES = {
    "streamserve.server.http.connections.protocol:RequestProtocol": [
        "_start_asgi_task",
        "connection_lost",
        "connection_made",
        "data_received",
        "handle_websocket_upgrade",
        "on_body",
        "on_headers_complete",
        "on_message_begin",
        "on_message_complete",
        "send_400_response",
    ],
    "streamserve.server.http.connections.server:HttpServer": ["capture_signals", "on_tick", "startup"],
    "streamserve.server.ws.protocol:Handshake": ["reject"],
    "streamserve.server.ws.protocol:SocketProtocol": [
        "connection_lost",
        "data_received",
        "handle_ping",
        "send",
        "send_receive_event_to_app",
    ],
}
"""Methods of ours that a third party calls in place of its own."""

STANDARD = {"os._exit"}
NAMED_TUPLE = {"_asdict", "_replace"}


def class_named(name: str) -> type:
    module, _, qualified = name.partition(":")
    if module.startswith("triton"):
        pytest.importorskip("triton")
    cls: type = getattr(import_module(module), qualified)
    return cls


@pytest.mark.parametrize("module", NAMES)
def test_a_module_has_the_names_that_we_use(module: str) -> None:
    if module.startswith("triton"):
        pytest.importorskip("triton")
    for name in NAMES[module]:
        value = import_module(module) if module != "torch.ops" else import_module("torch").ops
        for part in name.split("."):
            value = getattr(value, part)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_instances_of_a_class_have_the_attributes_that_we_use(name: str) -> None:
    bases = "\n".join(inspect.getsource(base) for base in class_named(name).__mro__ if base.__module__ != "builtins")
    assigned = {
        node.attr
        for node in ast.walk(ast.parse(bases))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    assert not set(ATTRIBUTES[name]) - assigned


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_method_overrides_one_with_the_same_parameters(name: str) -> None:
    cls = class_named(name)
    for method in OVERRIDES[name]:
        theirs = getattr(super(cls, cls), method)
        assert [*inspect.signature(getattr(cls, method)).parameters] == [*inspect.signature(theirs).parameters], method


def test_every_private_name_in_our_sources_is_listed() -> None:
    listed = {
        part
        for module, names in (NAMES | ATTRIBUTES).items()
        for name in names
        for part in f"{module}.{name}".split(".")
    }  # fmt: skip
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for folder in SOURCES
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in private_names(ast.parse(path.read_text(encoding="utf-8")))
        if name not in listed
    ]
    assert not wrong, "\n".join(wrong)


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Underscored names that a module imports from others, or reads from objects of others."""
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    own |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store) and is_self(node.value)}
    for node in attributes:
        is_ours = is_self(node.value) or node.attr in own | NAMED_TUPLE or ast.unparse(node) in STANDARD
        if is_private(node.attr) and not is_ours:
            yield node.lineno, node.attr
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level and not str(node.module).startswith("streamserve"):
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, part) for part in parts if is_private(part))


def is_self(value: ast.expr) -> bool:
    return ast.unparse(value) in ("self", "cls")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")
