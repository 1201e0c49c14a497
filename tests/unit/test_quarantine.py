"""Which requests are kept from replicas, and for how long."""

import asyncio

from serving.replica.quarantine import QUARANTINE_S, Quarantine
from serving.schema import AccompanimentRequest

POISON, ASKED = b"a vocal", AccompanimentRequest(seed=1, steps=2)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_request_is_held_whatever_its_seed_and_others_are_not() -> None:
    quarantine, clock = Quarantine(clock := Clock()), clock

    async def held(vocal: bytes, **fields: int) -> bool:
        return await quarantine.holds(vocal, ASKED.model_copy(update=fields))

    async def holding() -> None:
        assert not await held(POISON)
        await quarantine.add(POISON, ASKED)
        assert await held(POISON)
        assert await held(POISON, seed=2)
        assert not await held(POISON, steps=3)
        assert not await held(b"another vocal")
        clock.now_s += QUARANTINE_S - 1
        assert await held(POISON)
        clock.now_s += 1
        assert not await held(POISON)

    asyncio.run(holding())
