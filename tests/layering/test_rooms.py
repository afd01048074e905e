"""Who may import whom. The table is the architecture: a new arrow is a decision, made here and in docs/ARCHITECTURE.md."""

from __future__ import annotations

import pytest

from tests.layering.imports import ROOT, Import, imports_under, module_name

FOUNDATION = {"errors", "types", "config"}

MAY_IMPORT: dict[str, set[str]] = {
    # what every room may know
    "errors": set(),
    "kv_groups": set(),
    "fail_points": set(),
    "types": {"errors", "kv_groups"},
    "config": {"errors"},
    "vllm_arguments": set(),
    # files on disk
    "checkpoint": FOUNDATION | {"process"},
    # the processes of one program, and what their event loops share
    "process": {"errors", "fail_points"},
    "aio": set(),
    # which replica a request goes to
    "routing": set(),
    # from the plan down to the device
    "scheduling": FOUNDATION | {"kv_groups"},
    "models": FOUNDATION | {"checkpoint"},
    "worker": FOUNDATION | {"checkpoint", "fail_points", "kv_groups", "process", "models", "scheduling.plan"},
    "executor": FOUNDATION | {"aio", "checkpoint", "process", "models", "worker", "scheduling.plan"},
    "engine": FOUNDATION | {"aio", "checkpoint", "fail_points", "executor", "process", "routing", "scheduling"},
    # from tokens up to the wire
    "text": FOUNDATION | {"checkpoint"},
    "text_stream": FOUNDATION | {"aio", "engine", "text"},
    "frontend": FOUNDATION | {"engine", "text", "text_stream"},
    "offline": FOUNDATION | {"text", "vllm_arguments"},
    "async_engine": FOUNDATION | {"aio", "checkpoint", "engine", "executor", "frontend", "text", "text_stream"},
    "llm": FOUNDATION | {"async_engine", "offline", "text"},
    "server": FOUNDATION | {"aio", "checkpoint", "engine", "frontend", "process", "text"},
    "demo": FOUNDATION | {"process"},
    "batch": FOUNDATION,
    # the command line; `cli` names its commands and imports them when they are called
    "commands": FOUNDATION
    | {
        "async_engine",
        "batch",
        "checkpoint",
        "engine",
        "models",
        "offline",
        "process",
        "server",
        "text",
        "vllm_arguments",
        "worker",
    },
    "deploy": FOUNDATION | {"aio", "checkpoint", "commands", "engine", "process", "server", "text"},
    "bench": FOUNDATION | {"checkpoint", "commands", "engine", "executor", "process"},
    "cli": FOUNDATION | {"process"},
    "entrypoints": {"cli"},
    # the package itself loads names on first use
    "__init__": {"types", "async_engine", "llm"},
    "__main__": {"cli"},
}

# Rooms inside a room: whom of their own room they may import.
MAY_IMPORT_INSIDE: dict[str, dict[str, set[str]]] = {
    "models": {
        "rope": set(),
        "inputs": set(),
        "catalogue": set(),
        "communicator": set(),
        "division": set(),
        "mixture": set(),
        "arch": {"division", "mixture", "rope"},
        "config_reading": {"arch", "rope"},
        # what weights are, below the layers that have some
        "weights.noise": set(),
        "weights.storage": set(),
        "weights.grouped": set(),
        "weights.source": {"weights.grouped"},
        "weights.destination": {"weights.source"},
        "weights.placement": {"communicator", "division", "weights.storage"},
        "weights.kv_scales": {"weights.destination", "weights.placement", "weights.source"},
        "weights.forms": {"weights.destination", "weights.grouped", "weights.noise", "weights.placement"},
        "weights.schemes": {
            "weights.destination", "weights.forms", "weights.grouped", "weights.placement", "weights.source", "weights.storage",
        },
        "weights.experts": {
            "division", "mixture", "weights.destination", "weights.forms", "weights.grouped", "weights.noise",
            "weights.placement", "weights.schemes", "weights.source", "weights.storage",
        },
        "layers": {
            "arch", "communicator", "division", "inputs", "mixture", "weights.destination", "weights.experts", "weights.forms",
            "weights.kv_scales", "weights.placement", "weights.schemes",
        },
        "architectures": {
            "arch", "config_reading", "inputs", "layers", "mixture", "rope", "weights.destination", "weights.placement",
            "weights.source",
        },
        "registry": {"arch", "architectures", "config_reading", "weights.placement", "weights.schemes"},
        # whose layers: ours, or transformers'
        "transformers_model": {
            "arch", "architectures", "config_reading", "inputs", "layers", "weights.destination", "weights.grouped",
            "weights.kv_scales", "weights.placement", "weights.source",
        },
        "implementation": {"arch", "architectures", "config_reading", "registry", "transformers_model", "weights.placement"},
        # what fills a model
        "weights.safetensors": {"weights.grouped", "weights.source"},
        "weights.gguf": {"arch", "weights.grouped", "weights.source"},
        "weights.dummy": {"architectures", "layers", "weights.experts", "weights.noise"},
        "weights.loader": {
            "arch", "architectures", "communicator", "implementation", "weights.destination", "weights.dummy",
            "weights.experts", "weights.forms", "weights.gguf", "weights.kv_scales", "weights.placement", "weights.safetensors",
            "weights.source", "weights.storage",
        },
        "aot": {"architectures", "inputs", "layers", "weights.forms"},
    },
    "engine": {
        "base": set(),
        "constraints": set(),
        "error_info": set(),
        "stats": set(),
        "given_up": set(),
        # tokens on their way to a reader
        "resume_state": {"given_up"},
        "stream": {"error_info", "resume_state"},
        "stream_table": {"error_info", "resume_state", "stream"},
        # the step loop, in the caller's process or behind a socket
        "core": {"constraints", "error_info", "given_up", "stats"},
        "ipc": {"constraints", "core", "error_info"},
        "process": {"core", "ipc"},
        "inline": {"base", "constraints", "core", "stream", "stream_table"},
        "resumption": {"ipc", "stream", "stream_table"},
        "remote": {"base", "given_up", "ipc", "process", "resumption", "stream", "stream_table"},
        # several engines as one
        "replicas": {"base", "constraints", "ipc", "remote", "stream"},
        "watchdog": {"process", "remote"},
    },
    "worker": {
        "device": set(),
        "communication": {"device"},
        "kv_layout": set(),
        "kv_cache": {"device", "kv_layout"},
        "rows": {"device"},
        "sampling": {"device", "rows"},
        "pooling": {"device", "rows"},
        "graphs": {"device", "rows"},
        "startup": {"communication", "device", "kv_layout", "kv_cache", "rows", "graphs"},
        "divided_steps": set(),
        "step_memory": {"communication", "device"},
        "step": {"device", "divided_steps", "rows", "sampling", "pooling", "graphs", "step_memory"},
        "runner": {
            "communication", "device", "divided_steps", "kv_layout", "kv_cache", "rows", "startup", "step", "step_memory",
        },
    },
    "server": {
        "config": set(),
        "lifecycle": set(),
        "open_sockets": set(),
        "request_templates": set(),
        "telemetry": set(),
        "http": {"config", "telemetry"},
        "siblings": {"http"},
        "delivery": {"http", "telemetry"},
        "service": {"config", "delivery", "http", "lifecycle", "open_sockets", "request_templates", "siblings", "telemetry"},
        # what an API, the sockets and the app know of each other
        "api": {"delivery", "http", "service"},
        "early_refusal": {"delivery", "http"},
        "resumption": {"delivery", "http", "service", "siblings"},
        "ws": {"api", "config", "delivery", "http", "open_sockets", "service", "siblings"},
        "apis.openai": {"api", "config", "delivery", "early_refusal", "http", "resumption", "service", "telemetry"},
        "apis.anthropic": {"api", "apis.openai", "delivery", "early_refusal", "http", "resumption", "service", "telemetry"},
        "apis.responses": {"api", "apis.openai", "delivery", "early_refusal", "http", "service", "siblings", "telemetry"},
        "openapi": {"apis.anthropic", "apis.openai", "apis.responses"},
        "status_routes": {"http", "openapi", "service"},
        "app": {
            "api", "apis.anthropic", "apis.openai", "apis.responses", "config", "delivery", "early_refusal", "http",
            "resumption", "service", "siblings", "status_routes", "telemetry", "ws",
        },
        "process": {"app", "config", "http", "service", "siblings", "telemetry", "ws"},
    },
}  # fmt: skip

# Third parties that a room must not load, not even inside a function.
MUST_NOT_IMPORT: dict[str, set[str]] = {
    "scheduling": {"torch", "numpy", "anyio", "asyncio", "threading", "socket", "time", "random", "transformers", "litestar"},
    "engine": {"torch", "numpy", "transformers", "litestar", "uvicorn", "streamserve_kernels"},
    "text": {"torch", "litestar", "uvicorn", "streamserve_kernels"},
    "server": {"torch", "numpy", "transformers", "streamserve_kernels"},
    "frontend": {"torch", "transformers", "litestar", "uvicorn"},
    "models": {"anyio", "asyncio", "litestar", "uvicorn", "httpx"},
    "worker": {"anyio", "asyncio", "litestar", "uvicorn", "httpx", "transformers"},
    "cli": {"torch", "anyio", "asyncio", "transformers", "litestar", "uvicorn"},
}

OURS = imports_under(ROOT / "streamserve", ROOT)


def room_of(module: str) -> str:
    """The room of a module of ours; the plan is a room of its own, since it alone of scheduling crosses to workers."""
    parts = module.split(".")
    if parts[1:] == ["scheduling", "plan"]:
        return "scheduling.plan"
    return parts[1] if len(parts) > 1 else "__init__"


def inner_room(module: str, room: str) -> str | None:
    """The folder or module of `streamserve.<room>` that a module is in; None when it is elsewhere.

    Where the table names rooms of a folder, as in "apis.openai", each folder in it is a room.
    """
    parts = module.split(".")
    if parts[:2] != ["streamserve", room] or len(parts) < 3:
        return None
    if not any(name.startswith(f"{parts[2]}.") for name in MAY_IMPORT_INSIDE[room]):
        return parts[2]
    return ".".join(parts[2:4]) if len(parts) > 3 else None


def is_ours(target: str) -> bool:
    return target.split(".")[0] == "streamserve"


def may_import(importer: str, imported: str) -> bool:
    rooms = MAY_IMPORT[importer.split(".")[0]] | {"__init__"}
    is_same = imported.split(".")[0] == importer.split(".")[0]
    return is_same or imported in rooms or imported.split(".")[0] in rooms


def test_every_room_has_its_place_in_the_table() -> None:
    rooms = {room_of(module_name(path, ROOT)).split(".")[0] for path in (ROOT / "streamserve").rglob("*.py")}
    assert rooms <= MAY_IMPORT.keys(), f"say in MAY_IMPORT what they may import: {sorted(rooms - MAY_IMPORT.keys())}"


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_rooms_that_it_may(room: str) -> None:
    own = [each for each in OURS if is_ours(each.target) and room_of(each.module).split(".")[0] == room]
    wrong = [str(each) for each in own if not may_import(room_of(each.module), room_of(each.target))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_uses_every_arrow_that_it_has(room: str) -> None:
    used = {room_of(each.target) for each in OURS if is_ours(each.target) and room_of(each.module) == room}
    unused = MAY_IMPORT[room] - FOUNDATION - used - {target.split(".")[0] for target in used}
    assert not unused, f"{room} may import {sorted(unused)} and does not: narrow the table"


@pytest.mark.parametrize(("room", "inner"), [(room, inner) for room, table in MAY_IMPORT_INSIDE.items() for inner in table])
def test_rooms_inside_a_room_import_only_those_below_them(room: str, inner: str) -> None:
    below = MAY_IMPORT_INSIDE[room][inner] | {inner}
    own = [each for each in OURS if inner_room(each.module, room) == inner]
    assert own, f"{room}.{inner} is in the table and not in the tree"
    wrong = [str(each) for each in own if inner_room(each.target, room) not in (*below, None)]
    assert not wrong, "\n".join(wrong)
    unused = MAY_IMPORT_INSIDE[room][inner] - {inner_room(each.target, room) for each in own}
    assert not unused, f"{room}.{inner} may import {sorted(unused)} and does not: narrow the table"


@pytest.mark.parametrize("room", sorted(MAY_IMPORT_INSIDE))
def test_the_tables_inside_a_room_name_all_of_it_and_have_no_circle(room: str) -> None:
    inside = {inner_room(module_name(path, ROOT), room) for path in (ROOT / "streamserve" / room).rglob("*.py")}
    assert inside - {None} == MAY_IMPORT_INSIDE[room].keys()
    circle = _circle_in(MAY_IMPORT_INSIDE[room])
    assert circle is None, " → ".join(circle)


@pytest.mark.parametrize("room", sorted(MUST_NOT_IMPORT))
def test_a_room_stays_free_of_what_it_must_not_know(room: str) -> None:
    own = [each for each in OURS if room_of(each.module).split(".")[0] == room]
    wrong = [str(each) for each in own if each.target.split(".")[0] in MUST_NOT_IMPORT[room]]
    assert not wrong, "\n".join(wrong)


def test_the_plan_knows_nothing_else_of_scheduling() -> None:
    wrong = [
        str(e) for e in OURS if e.module == "streamserve.scheduling.plan" and e.target.startswith("streamserve.scheduling")
    ]
    assert not wrong, "\n".join(wrong)


def test_executors_load_the_worker_inside_the_rank_only() -> None:
    eager = [
        str(each)
        for each in OURS
        if each.is_eager and room_of(each.module) == "executor" and room_of(each.target) in ("worker", "models")
    ]
    assert not eager, "\n".join(eager)


@pytest.mark.parametrize("folder", ["kernels", "clients", "loadtest"])
def test_what_stands_outside_imports_nothing_of_ours(folder: str) -> None:
    wrong = [str(each) for each in imports_under(ROOT / folder, ROOT / folder) if is_ours(each.target)]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_pickled() -> None:
    wrong = [str(each) for each in OURS if each.target.split(".")[0] in ("pickle", "cloudpickle", "marshal", "shelve")]
    wrong += [str(file) for file in (ROOT / "streamserve").rglob("*.py") if "torch.load(" in file.read_text(encoding="utf-8")]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for each in OURS:
        if each.is_eager and is_ours(each.target):
            graph.setdefault(each.module, set()).add(each.target)
    circle = _circle_in(graph)
    assert circle is None, " → ".join(circle)


def _circle_in(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for target in sorted(graph.get(module, ())):
            if circle := visit(target, [*path, module]):
                return circle
        done.add(module)
        return None

    for module in sorted(graph):
        if circle := visit(module, []):
            return circle
    return None


def test_the_reader_of_imports_sees_what_it_should() -> None:
    seen = {(each.target, each.is_eager) for each in imports_under(ROOT / "streamserve", ROOT) if each.module == "streamserve"}
    assert ("streamserve.llm", False) in seen  # for type checkers only
    assert ("importlib", True) in seen
    assert Import("a", "b", 1, True) == Import("a", "b", 1, True)
