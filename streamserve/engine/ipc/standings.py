"""What an engine has last said of each tenant: how much it may still use, and that all its requests are refused for now.

One per API side of an engine, on its event loop. By it a request is refused before anything has been done for it. Knows no
limits: it repeats what the engine said, for as long as that holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from streamserve.engine.error_info import restore
from streamserve.errors import QueueFull
from streamserve.types import ErrorInfo, Quotas, Tenant

MAX_TENANTS = 4096

MAX_HOLD_S = 1.0
"""Seconds for which a refusal that holds until there is room is repeated: the permitted wait may have changed by then."""


class _Refusal(NamedTuple):
    """An error, when to try again, and until when to repeat it."""

    error: ErrorInfo
    retry_at: float
    until: float
    is_for_room: bool


class Standings:
    """Of tenants that have limits, or were refused of late. One whose limits have changed is another one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quotas: dict[Tenant, tuple[float, Quotas]] = {}
        self._refusals: dict[Tenant, _Refusal] = {}

    def told_quotas(self, tenant: Tenant, quotas: Quotas | None) -> None:
        """The engine has said what a tenant may still use."""
        if quotas is None:
            return
        self._quotas.pop(tenant, None)
        self._quotas[tenant] = (self._clock(), quotas)
        if len(self._quotas) > MAX_TENANTS:
            del self._quotas[next(iter(self._quotas))]

    def told_refusal(self, tenant: Tenant, error: ErrorInfo, holds_s: float) -> None:
        """The engine has refused a request of a tenant, and refuses all of them for `holds_s`, as on `QueueFull`."""
        if not holds_s:
            return
        now, is_for_room = self._clock(), holds_s == math.inf
        until = now + (MAX_HOLD_S if is_for_room else holds_s)
        self._refusals[tenant] = _Refusal(error, now + (error.retry_after_s or 0.0), until, is_for_room)
        if len(self._refusals) > MAX_TENANTS:
            self._refusals = {each: refusal for each, refusal in self._refusals.items() if now < refusal.until}

    def told_room(self) -> None:
        """The engine has said that there may be room again."""
        self._refusals = {each: refusal for each, refusal in self._refusals.items() if not refusal.is_for_room}

    def forget(self) -> None:
        """The engine has ended: another begins anew."""
        self._quotas, self._refusals = {}, {}

    def quotas(self, tenant: Tenant) -> Quotas | None:
        """What a tenant may still use now; None where it has no limits, or nothing was said."""
        if tenant not in self._quotas:
            return None
        at, quotas = self._quotas[tenant]
        return quotas.after(self._clock() - at)

    def refusal(self, tenant: Tenant) -> QueueFull | None:
        """The error with which every request of a tenant is refused now; None where one may be taken.

        What is lacking in a minute's use is less by now. When there will be room was an estimate, with a bound below, and is
        repeated: all that are refused meanwhile would come back at one time, and the last of them at once.
        """
        refusal = self._refusals.get(tenant)
        if refusal is None:
            return None
        now = self._clock()
        if now >= refusal.until:
            del self._refusals[tenant]
            return None
        error = restore(refusal.error)
        assert isinstance(error, QueueFull)
        if not refusal.is_for_room:
            error.retry_after_s = max(refusal.retry_at - now, 0.001)
        return error
