"""What a tenant may still use in a minute."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Quota(msgspec.Struct, frozen=True, array_like=True):
    """An amount that a minute refills, from empty to full.

    per_minute  the limit
    level       what is left of it; below 0 where more has been used than there was
    """

    per_minute: float
    level: float

    @classmethod
    def full(cls, per_minute: float | None) -> Quota | None:
        """One of which nothing has been used; None without a limit."""
        return None if per_minute is None else cls(per_minute, per_minute)

    def after(self, seconds: float) -> Quota:
        """The quota some time later, if nothing is used meanwhile."""
        return Quota(self.per_minute, min(self.per_minute, self.level + self.per_minute * seconds / 60.0))

    @property
    def reset_s(self) -> float:
        """Seconds until it is full again."""
        return 60.0 * (self.per_minute - self.level) / self.per_minute


class Quotas(msgspec.Struct, frozen=True, array_like=True):
    """The quotas of a tenant: of requests, and of tokens of prompts and outputs; None for no limit."""

    requests: Quota | None = None
    tokens: Quota | None = None

    def after(self, seconds: float) -> Quotas:
        """Both, some time later."""
        return Quotas(self.requests and self.requests.after(seconds), self.tokens and self.tokens.after(seconds))


def together(quotas: Sequence[Quotas]) -> Quotas:
    """The quotas of a tenant at engines that share its limits."""
    return Quotas(_sum([each.requests for each in quotas]), _sum([each.tokens for each in quotas]))


def _sum(quotas: Sequence[Quota | None]) -> Quota | None:
    limited = [quota for quota in quotas if quota is not None]
    return Quota(sum(quota.per_minute for quota in limited), sum(quota.level for quota in limited)) if limited else None
