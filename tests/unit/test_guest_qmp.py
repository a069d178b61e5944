"""remuslike.guest.qmp over a socket pair, with a monitor that says what the test has it say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from fakes.monitor import GREETING, FakeMonitor, connected
from trio.testing import MockClock, wait_all_tasks_blocked

from remuslike.errors import GuestError
from remuslike.guest.qmp import GREETING_LIMIT_S, Qmp
from remuslike.guest.qmp_wire import LINE_LENGTH_MAX, Event


class Client:
    """A Qmp with the events it has told of, and the monitor at the other end."""

    def __init__(self) -> None:
        socket, self.monitor = connected()
        self.events: list[Event] = []
        self.qmp = Qmp(socket, self.events.append)

    async def close(self) -> None:
        self.qmp.close()
        await self.monitor.hang_up()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeMonitor]:
        """Negotiated, and reading."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.monitor.greet)
            await self.qmp.negotiate()
            nursery.start_soon(self.qmp.run)
            await wait_all_tasks_blocked()
            yield self.monitor
            nursery.cancel_scope.cancel()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    await made.close()


# --- negotiation ----------------------------------------------------------------------------------


async def test_negotiation_tells_the_version(client: Client) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.monitor.greet)
        greeting = await client.qmp.negotiate()
    assert (greeting.version, greeting.package) == ("7.2.22", "Debian")


async def test_a_monitor_that_says_nothing_is_given_up(client: Client, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    with pytest.raises(GuestError, match=f"did not answer within {GREETING_LIMIT_S:g} s"):
        await client.qmp.negotiate()
    assert trio.current_time() - began == pytest.approx(GREETING_LIMIT_S)


async def test_a_monitor_that_stops_half_way_is_given_up(client: Client, autojump_clock: MockClock) -> None:
    await client.monitor.say(GREETING)
    with pytest.raises(GuestError, match="did not answer within 5 s"):
        await client.qmp.negotiate(timeout_s=5)


@pytest.mark.parametrize("first", [{"return": {}}, {"event": "STOP"}, {"error": {"class": "a", "desc": "b"}}])
async def test_a_monitor_must_begin_with_a_greeting(client: Client, first: dict[str, object]) -> None:
    await client.monitor.say(first)
    with pytest.raises(GuestError, match="expected a greeting"):
        await client.qmp.negotiate()


async def test_a_refused_negotiation_is_named(client: Client) -> None:
    async with trio.open_nursery() as nursery:

        async def refuse() -> None:
            await client.monitor.say(GREETING)
            await client.monitor.heard()
            await client.monitor.say({"error": {"class": "GenericError", "desc": "not today"}})

        nursery.start_soon(refuse)
        with pytest.raises(GuestError, match=r"refused qmp_capabilities.*not today"):
            await client.qmp.negotiate()


async def test_an_event_right_behind_the_answer_is_not_lost(client: Client) -> None:
    """Both may come in one read; events begin with command mode (qmp-spec, section 4)."""
    async with trio.open_nursery() as nursery:

        async def answer_and_tell() -> None:
            await client.monitor.say(GREETING)
            await client.monitor.heard()
            await client.monitor.say({"return": {}}, {"event": "NIC_RX_FILTER_CHANGED"})

        nursery.start_soon(answer_and_tell)
        await client.qmp.negotiate()
        nursery.start_soon(client.qmp.run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [event.name for event in client.events] == ["NIC_RX_FILTER_CHANGED"]


async def test_a_monitor_that_hangs_up_says_so(client: Client) -> None:
    await client.monitor.hang_up()
    with pytest.raises(GuestError, match=r"closed its monitor: it ended|broke off"):
        await client.qmp.negotiate()


async def test_garbage_instead_of_a_greeting_is_named(client: Client) -> None:
    await client.monitor.say_bytes(b"SSH-2.0-OpenSSH\r\n")
    with pytest.raises(GuestError, match="which is not QMP"):
        await client.qmp.negotiate()


# --- commands -------------------------------------------------------------------------------------


async def test_a_command_returns_its_value(client: Client) -> None:
    async with client.running() as monitor, trio.open_nursery() as nursery:
        nursery.start_soon(monitor.answer, {"running": True})
        assert await client.qmp.execute("query-status") == {"running": True}


async def test_arguments_are_sent(client: Client) -> None:
    heard = []
    async with client.running() as monitor, trio.open_nursery() as nursery:

        async def hear() -> None:
            heard.append(await monitor.answer({}))

        nursery.start_soon(hear)
        assert await client.qmp.execute("migrate-incoming", uri="fd:7") == {}
    assert heard == [{"execute": "migrate-incoming", "arguments": {"uri": "fd:7"}}]


async def test_an_error_is_qemus_own_words(client: Client) -> None:
    async with client.running() as monitor, trio.open_nursery() as nursery:

        async def refuse() -> None:
            await monitor.heard()
            await monitor.say({"error": {"class": "CommandNotFound", "desc": "The command x is unknown"}})

        nursery.start_soon(refuse)
        with pytest.raises(GuestError, match=r"^x: QEMU says: The command x is unknown$"):
            await client.qmp.execute("x")
        nursery.start_soon(monitor.answer, {})
        await client.qmp.execute("stop")


async def test_events_around_an_answer_are_told_in_order(client: Client) -> None:
    async with client.running() as monitor, trio.open_nursery() as nursery:

        async def interrupt() -> None:
            await monitor.heard()
            await monitor.say({"event": "STOP"}, {"return": 1}, {"event": "RESUME", "data": {"a": 1}})

        nursery.start_soon(interrupt)
        assert await client.qmp.execute("stop") == 1
        await wait_all_tasks_blocked()
    assert client.events == [Event("STOP", {}), Event("RESUME", {"a": 1})]


async def test_commands_of_several_tasks_get_their_own_answers(client: Client) -> None:
    answers: dict[str, object] = {}

    async def ask(command: str) -> None:
        answers[command] = await client.qmp.execute(command)

    async with client.running() as monitor, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(ask, f"command-{number}")
        for _ in range(5):
            await monitor.say({"return": (await monitor.heard())["execute"]})
    assert answers == {f"command-{number}": f"command-{number}" for number in range(5)}


async def test_an_answer_byte_by_byte_is_one_answer(client: Client) -> None:
    async with client.running() as monitor, trio.open_nursery() as nursery:

        async def dribble() -> None:
            await monitor.heard()
            for byte in b'{"return": {"a": 1}}\r\n':
                await monitor.say_bytes(bytes([byte]))
                await wait_all_tasks_blocked()

        nursery.start_soon(dribble)
        assert await client.qmp.execute("stop") == {"a": 1}


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rubbish",
    [
        b"garbage\n",
        b"\n[]\n",
        b'{"return": 1}\n{"return": 2}\n{"return": 3}\n',
        b"x" * (LINE_LENGTH_MAX + 1),
        b"[" * 4000 + b"\n",
    ],
    ids=["text", "list", "answers to nothing", "endless line", "deep nesting"],
)
async def test_rubbish_breaks_the_monitor_and_nothing_else(client: Client, rubbish: bytes) -> None:
    async with client.running() as monitor, trio.open_nursery() as nursery:
        nursery.start_soon(monitor.say_bytes, rubbish)
        await wait_all_tasks_blocked()
        with pytest.raises(GuestError, match=r"^stop: QEMU"):
            await client.qmp.execute("stop")
        nursery.cancel_scope.cancel()


async def test_a_greeting_is_no_answer(client: Client) -> None:
    async with client.running() as monitor, trio.open_nursery() as nursery:

        async def greet_again() -> None:
            await monitor.heard()
            await monitor.say(GREETING)

        nursery.start_soon(greet_again)
        with pytest.raises(GuestError, match="which answers nothing"):
            await client.qmp.execute("stop")


async def test_an_end_fails_the_command_under_way_and_all_later_ones(client: Client) -> None:
    async with client.running() as monitor, trio.open_nursery() as nursery:

        async def end() -> None:
            await monitor.heard()
            await monitor.hang_up()

        nursery.start_soon(end)
        for command in ("stop", "cont"):
            with pytest.raises(GuestError, match=f"^{command}: .*(closed its monitor|broke off)"):
                await client.qmp.execute(command)


async def test_a_command_given_up_leaves_its_answer_to_nobody_else(
    client: Client, autojump_clock: MockClock
) -> None:
    async with client.running() as monitor, trio.open_nursery() as nursery:
        with trio.move_on_after(1) as scope:
            await client.qmp.execute("stop")
        assert scope.cancelled_caught
        answers: list[object] = []

        async def second() -> None:
            answers.append(await client.qmp.execute("cont"))

        nursery.start_soon(second)
        assert await monitor.answer("stale") == {"execute": "stop"}
        assert await monitor.answer("fresh") == {"execute": "cont"}
        await wait_all_tasks_blocked()
        assert answers == ["fresh"]


async def test_a_qemu_that_hangs_is_given_up_with_all_that_it_was_told(
    client: Client, autojump_clock: MockClock
) -> None:
    async with client.running():
        stop, save = client.qmp.send("stop"), client.qmp.send("save")
        with pytest.raises(GuestError, match=r"^stop: QEMU did not answer stop within 10 s$"):
            await client.qmp.wait(stop)
        for later in (client.qmp.wait(save), client.qmp.execute("cont")):
            with pytest.raises(GuestError, match="did not answer stop within 10 s"):
                await later


async def test_a_command_of_which_the_monitor_takes_a_part_fails_at_once(client: Client) -> None:
    async with client.running():
        with pytest.raises(GuestError, match="QEMU doesn't read its monitor"):
            client.qmp.send("stop", reason="long" * (1 << 20))
        with pytest.raises(GuestError, match=r"^cont: QEMU doesn't read its monitor$"):
            client.qmp.send("cont")


async def test_a_monitor_that_was_closed_answers_nothing(client: Client) -> None:
    async with client.running():
        client.qmp.close()
        await wait_all_tasks_blocked()
        with pytest.raises(GuestError, match=r"^stop: the monitor was closed$"):
            await client.qmp.execute("stop")


# --- waiting at once ------------------------------------------------------------------------------


async def test_answers_that_have_come_need_no_turn_of_the_loop(client: Client) -> None:
    async with client.running() as monitor:
        stop, save = client.qmp.send("stop"), client.qmp.send("save")
        await monitor.say({"event": "STOP"}, {"return": 1}, {"return": 2})
        for command in (stop, save):
            client.qmp.wait_at_once(command, limit_s=0)
            assert command.answered.is_set()
        assert client.events == [Event("STOP", {})]
        assert [await client.qmp.wait(command) for command in (stop, save)] == [1, 2]
        for command in ({"execute": "stop"}, {"execute": "save"}):
            assert await monitor.heard() == command
        monitor_answers = client.qmp.send("cont")
        await monitor.answer(3)
        assert await client.qmp.wait(monitor_answers) == 3, "the reading task still reads"


async def test_waiting_at_once_ends_at_its_limit(client: Client) -> None:
    async with client.running() as monitor:
        stop = client.qmp.send("stop")
        client.qmp.wait_at_once(stop, limit_s=0)
        assert not stop.answered.is_set()
        await monitor.answer("late")
        assert await client.qmp.wait(stop) == "late"


@pytest.mark.parametrize("rubbish", [b"garbage\n", None], ids=["garbage", "hung up"])
async def test_a_monitor_that_breaks_while_waited_for_at_once_fails_the_command(
    client: Client, rubbish: bytes | None
) -> None:
    async with client.running() as monitor:
        stop = client.qmp.send("stop")
        if rubbish is None:
            await monitor.hang_up()
        else:
            await monitor.say_bytes(rubbish)
        client.qmp.wait_at_once(stop, limit_s=1)
        with pytest.raises(GuestError, match=r"^stop: QEMU"):
            await client.qmp.wait(stop)


async def test_when_reading_is_cancelled_the_command_under_way_fails(client: Client) -> None:
    failures: list[str] = []

    async def ask() -> None:
        try:
            await client.qmp.execute("stop")
        except GuestError as error:
            failures.append(str(error))

    async with trio.open_nursery() as nursery, client.running():
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
    assert failures == ["stop: the monitor was closed"]
