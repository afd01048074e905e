"""The conversation that a request is about: its input, behind the response it continues.

A request names earlier responses by id, and items of theirs by reference. They are looked for in the worker's store, and in
what the request's own socket keeps. Lives on one API worker's event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from streamserve.errors import InvalidParameter, InvalidRequest, quoted
from streamserve.server.apis.responses.ids import response_of
from streamserve.server.apis.responses.items import (
    ChatMessage,
    Item,
    as_items,
    as_messages,
    referenced_ids,
    require_calls,
)
from streamserve.server.apis.responses.stored_response import IN_PROGRESS, ResponseState, StoredResponse
from streamserve.server.delivery.retention import Expiring, TtlStore
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.http.bodies.large_work import CallRunner, LargeWork
from streamserve.server.service import Service
from streamserve.server.siblings.siblings import NotKeptHere
from streamserve.types import Tenant

Find = Callable[[str], ResponseState | None]


class PreviousResponseNotFound(NotKeptHere):
    """`previous_response_id` names nothing that is kept here."""

    code = "previous_response_not_found"


class ItemNotFound(NotKeptHere):
    """The input refers to an item of a response that is not kept here."""

    status = 404
    code = "item_not_found"


class KeptApart(InvalidRequest):
    """A request refers to responses of which only some are kept here: no worker has all of them."""

    code = "previous_response_not_found"


MANY_MESSAGES = 256
"""From which a conversation is worked on off the event loop, however few of them this turn brought."""


class Conversation(NamedTuple):
    """What a model reads.

    items     of this turn's input
    messages  of all turns
    """

    items: list[Item]
    messages: list[ChatMessage]

    def runner(self, run: CallRunner, large_work: LargeWork) -> CallRunner:
        """What runs work on all messages, where `run` does on those of this turn."""
        return large_work.run if len(self.messages) >= MANY_MESSAGES else run


def finder(service: Service, tenant: Tenant, kept: TtlStore[str, Expiring] | None = None) -> Find:
    """Finds responses of a tenant by id: in the worker's store, and in what a socket has `kept`."""

    def find(id: str) -> ResponseState | None:
        state = None if kept is None else kept.get(id)
        if isinstance(state, ResponseState):
            return state
        stored = find_response(service, OwnedId(tenant.name, id))
        return None if stored is None else stored.state

    return find


def find_response(service: Service, response_id: OwnedId) -> StoredResponse | None:
    """A response that is stored here."""
    stored = service.stored.get(response_id)
    return stored if isinstance(stored, StoredResponse) else None


async def read_conversation(
    input: str | list[dict[str, Any]] | None, previous_id: str | None, *, response_id: str, find: Find, run: CallRunner
) -> Conversation:
    """The conversation of an input and of the response it continues.

    response_id  of the response that will answer it
    run          runs what is done with every item

    Raises `NotKeptHere` when another worker may keep all that is referred to, `KeptApart` when none does, and
    `InvalidParameter` or `UnsupportedParameter` naming the item.
    """
    item_ids = await run(partial(referenced_ids, input))
    states = _states(find, previous_id, item_ids)
    history = [] if previous_id is None else _ended("previous_response_id", states[previous_id]).conversation()
    referenced = _items(states, item_ids)
    items = await run(partial(as_items, input, response_id, referenced))
    await run(partial(require_calls, items, history))
    return Conversation(items, [*history, *await run(partial(as_messages, items))])


def _states(find: Find, previous_id: str | None, item_ids: Sequence[str]) -> dict[str, ResponseState]:
    """All responses that a request refers to, by id."""
    absent: dict[str, NotKeptHere] = {}
    for item_id in item_ids:
        owner = response_of(item_id) or item_id
        absent[owner] = ItemNotFound(owner, f"no item {quoted(item_id)} is kept: {_NOT_KEPT}", param="input")
    if previous_id is not None:
        message = f"no response {quoted(previous_id)} is kept: {_NOT_KEPT}"
        absent[previous_id] = PreviousResponseNotFound(previous_id, message, param="previous_response_id")
    found = {id: state for id in absent if (state := find(id)) is not None}
    missing = [error for id, error in absent.items() if id not in found]
    if missing and found:
        # Not sent on: a worker that lacks what is here would send it back.
        raise KeptApart(
            "no API worker keeps all that this request refers to: send the items themselves", param=missing[0].param
        )
    if missing:
        raise missing[-1]
    return found


def _items(states: dict[str, ResponseState], item_ids: Sequence[str]) -> dict[str, Item]:
    """The items that an input refers to, by id."""
    owners = {response_of(item_id) or item_id for item_id in item_ids}
    kept = {item["id"]: item for owner in owners for item in _ended("input", states[owner]).all_items()}
    for item_id in item_ids:
        if item_id not in kept:
            raise ItemNotFound(item_id, f"no item {quoted(item_id)} is kept: {_NOT_KEPT}", param="input")
    return kept


def _ended(param: str, state: ResponseState) -> ResponseState:
    if state.status == IN_PROGRESS:
        raise InvalidParameter(param, "that response is still being generated")
    return state


_NOT_KEPT = "it was not stored, or has expired"
