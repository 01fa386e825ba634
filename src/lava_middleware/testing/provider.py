"""This file knows how to be a provider on the loopback interface: it serves scripts and counts what truly went out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from .answer import Answer, answer
from .ask import GENERATIONS, Ask, Call, read
from .barrier import Barrier
from .connection import LAST_CHUNK, Connection, Gone, Unreadable, framed, head
from .formats.wire import Event, Stamp, marked
from .log import Log
from .script import Script
from .served import Served, Totals

Chooser = Callable[[Served], Script]


class FakeProvider:
    """OpenAI, Azure OpenAI, Anthropic, Gemini, Mistral, Groq and Together on a local port, over real sockets, on a
    thread of its own.

    with FakeProvider() as provider:
        client = OpenAI(api_key="any", base_url=provider.openai_base_url)

    What it answers: the next script of `queue()`, else `default`, which may be a function of the request. Scripts are
    for generations (chat completions, responses, messages, generateContent, embeddings); models and token counts are
    answered plainly. Everything may be used from any thread. `start()` and `stop()` do what `with` does, and both are
    safe to repeat.
    """

    def __init__(
        self,
        default: Script | Chooser | None = None,
        *,
        port: int = 0,
        bind: str = "127.0.0.1",
        keep_bodies: bool = False,
        on_served: Callable[[Served], None] | None = None,
    ) -> None:
        self.default: Script | Chooser = Script() if default is None else default
        self._bind, self._port, self._keep_bodies, self._on_served = bind, port, keep_bodies, on_served
        self._log = Log()
        self._queue: deque[Script] = deque()
        self._barriers: set[Barrier] = set()
        self._connections: set[Connection] = set()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    # Where it is.

    @property
    def host(self) -> str:
        """ "127.0.0.1:PORT", as `Lava(hosts={...})` wants it."""
        return f"{self._bind}:{self._port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def openai_base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def anthropic_base_url(self) -> str:
        return self.url

    @property
    def azure_endpoint(self) -> str:
        return self.url

    @property
    def groq_base_url(self) -> str:
        return self.url

    @property
    def gemini_base_url(self) -> str:
        return self.url

    @property
    def mistral_base_url(self) -> str:
        return self.url

    @property
    def together_base_url(self) -> str:
        return self.url

    # What it does.

    def queue(self, *scripts: Script) -> None:
        """The next generations get these, one each, in order of arrival."""
        self._queue.extend(scripts)

    def release(self) -> None:
        """Open every barrier that a request has reached."""
        for barrier in tuple(self._barriers):
            barrier.release()

    def reset(self) -> None:
        """Forget the requests, the queued scripts and the barriers. What is being answered goes on, uncounted."""
        self.release()
        self._barriers.clear()
        self._queue.clear()
        self._log.reset()

    # What it saw.

    @property
    def count(self) -> int:
        """How many requests have arrived."""
        return len(self._log)

    @property
    def requests(self) -> tuple[Served, ...]:
        """Each request and what became of it so far, in order of arrival. Copies."""
        return self._log.copy()

    @property
    def served(self) -> Totals:
        """What was served in all."""
        return self._log.totals()

    def wait_until(self, condition: Callable[[Self], bool], timeout_s: float = 10.0) -> None:
        """Block until `condition(provider)` is true. Raises TimeoutError."""
        if not self._log.wait_until(lambda: condition(self), timeout_s):
            raise TimeoutError(f"not true after {timeout_s} s and {self.count} requests")

    def wait_idle(self, timeout_s: float = 10.0) -> None:
        """Block until every request that has arrived is over. Raises TimeoutError."""
        self.wait_until(lambda provider: all(served.ended for served in provider.requests), timeout_s)

    # Its thread.

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. Raises OSError where the port is taken."""
        if self._thread is not None:
            return
        started = threading.Event()
        thread = threading.Thread(target=self._run, args=(started,), name="fake-provider", daemon=True)
        thread.start()
        started.wait()
        if self._failure is not None:
            thread.join()
            self._raise_failure()
        self._thread = thread

    def stop(self) -> None:
        """Hang up on everybody and end the thread. The log stays readable.

        Raises what a function given as `default` or `on_served` raised meanwhile.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        thread.join()
        self._raise_failure()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._listen(started))

    async def _listen(self, started: threading.Event) -> None:
        self._stopping = asyncio.Event()
        try:
            server = await self._loop.create_server(self._connect, self._bind, self._port, backlog=4096)
        except OSError as error:
            self._failure = error
            return
        finally:
            if self._failure is not None:
                started.set()
        self._port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stopping.wait()
        server.close()
        await self._hang_up()

    async def _hang_up(self) -> None:
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for connection in tuple(self._connections):
            connection.close(reset=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connect(self) -> Connection:
        connection = Connection(self._serve)
        self._connections.add(connection)
        return connection

    # One connection.

    async def _serve(self, connection: Connection) -> None:
        try:
            while await self._exchange(connection, await connection.request()):
                pass
            connection.close()
        except Unreadable:
            self._refuse(connection)
        except Gone:
            connection.close()
        except Exception as error:  # A chooser or `on_served` of the user's: it belongs into his test.
            self._failure = self._failure or error
            connection.close(reset=True)
        finally:
            self._connections.discard(connection)

    def _refuse(self, connection: Connection) -> None:
        if not connection.gone.is_set():
            connection.write(head(400, {"content-length": "0", "connection": "close"}))
        connection.close()

    async def _exchange(self, connection: Connection, call: Call) -> bool:
        """Answer one request; whether the connection may carry another."""
        ask = read(call)
        served = self._log.open(lambda serial: self._noted(serial, call, ask))
        script = self._script(served)
        try:
            complete = await self._perform(connection, call, ask, script, served)
        except Gone:
            self._end(served, "aborted")
            raise
        except asyncio.CancelledError:
            self._end(served, "broken")
            raise
        self._end(served, "complete" if complete else "broken")
        return complete and script.keep_alive and call.headers.get("connection", "").lower() != "close"

    def _noted(self, serial: int, call: Call, ask: Ask) -> Served:
        retry = call.headers.get("x-stainless-retry-count", "0")
        return Served(
            serial=serial,
            method=call.method,
            path=call.path,
            operation=ask.operation,
            model=ask.model,
            stream=ask.stream,
            attempt=int(retry) if retry.isdecimal() else 0,
            cap=ask.cap,
            asks_usage=ask.asks_usage,
            accept_encoding=call.headers.get("accept-encoding", ""),
            body=call.body if self._keep_bodies else None,
        )

    def _script(self, served: Served) -> Script:
        if served.operation not in GENERATIONS:
            return Script()
        try:
            return self._queue.popleft()
        except IndexError:
            default = self.default
            return default if isinstance(default, Script) else default(served)

    def _end(self, served: Served, state: str) -> None:
        if served.state != state:
            self._log.note(served, state=state)
        if self._on_served is not None:
            self._on_served(served)

    async def _perform(self, connection: Connection, call: Call, ask: Ask, script: Script, served: Served) -> bool:
        """Play the script; False where the script says that the connection breaks."""
        if script.barrier is not None:
            self._barriers.add(script.barrier)
            await connection.unless_gone(script.barrier.passed())
        await connection.rest(script.first_byte_delay_s)
        if script.close_before_answer:
            connection.close(reset=script.truncate_by == "reset")
            return False
        made = answer(call, ask, script, Stamp(served.serial, int(time.time())))
        for status in script.informational:
            connection.write(head(status, {}))
        if script.stall_after is not None and made.events is None:
            await connection.rest(None)
        spent = made.reasoning_tokens
        self._log.note(
            served,
            state="answering",
            status=made.status,
            input_tokens=made.input_tokens,
            output_tokens=spent,
            reasoning_tokens=spent,
        )
        if not script.keep_alive:
            made.headers["connection"] = "close"
        if made.events is None:
            return await self._send_body(connection, made, script, served)
        return await self._send_stream(connection, made.events, made, script, served)

    async def _send_body(self, connection: Connection, made: Answer, script: Script, served: Served) -> bool:
        first = head(made.status, {**made.headers, "content-length": str(len(made.body))})
        if script.truncate_after is not None:
            connection.write(first + made.body[: len(made.body) // 2])
            await self._break(connection, script)
            return False
        connection.check()
        self._log.add(served, output_tokens=made.output_tokens, chunks=1 if made.output_tokens else 0)
        self._complete(served, reported=made.figures)
        connection.write(first + made.body)
        return True

    async def _send_stream(
        self, connection: Connection, events: Iterator[Event], made: Answer, script: Script, served: Served
    ) -> bool:
        connection.write(head(made.status, {**made.headers, "transfer-encoding": "chunked"}))
        for (data, done), last in marked(_writes(events, script)):
            if served.chunks == script.stall_after:
                await connection.rest(None)
            if served.chunks == script.truncate_after:
                await self._break(connection, script)
                return False
            await self._pace(connection, script, done, served)
            connection.check()
            self._count(served, done)
            if last:
                self._complete(served)
            connection.write(framed(data) + (LAST_CHUNK if last else b""))
            if not last:
                await connection.drain()
        return True

    def _complete(self, served: Served, **more: object) -> None:
        """Noted before the last byte is written: whoever has read it finds it in the log."""
        self._log.note(served, state="complete", **more)

    async def _pace(self, connection: Connection, script: Script, due: Iterable[Event], served: Served) -> None:
        """Wait as the script wants it before what is due goes out."""
        if script.confirm is not None and served.chunks == script.confirm_after:
            self._barriers.add(script.confirm)
            await connection.unless_gone(script.confirm.passed())
        if script.chunk_delay_s and any(event.chunk for event in due):
            await connection.rest(script.chunk_delay_s)

    def _count(self, served: Served, done: Iterable[Event]) -> None:
        for event in done:
            self._log.add(served, output_tokens=event.tokens, chunks=int(event.chunk))
            if event.figures is not None:
                self._log.note(served, reported=event.figures)

    async def _break(self, connection: Connection, script: Script) -> None:
        """Let what was written go out, then hang up as the script says."""
        await connection.rest(0.001)
        connection.close(reset=script.truncate_by == "reset")


def _writes(events: Iterator[Event], script: Script) -> Iterator[tuple[bytes, tuple[Event, ...]]]:
    """The stream as it is written: each write, and the events that it completes."""
    if script.single_chunk:
        whole = tuple(events)
        yield b"".join(event.data for event in whole), whole
    elif script.split_bytes is None:
        for event in events:
            yield event.data, (event,)
    else:
        yield from _split(events, script.split_bytes)


def _split(events: Iterator[Event], size: int) -> Iterator[tuple[bytes, tuple[Event, ...]]]:
    for event in events:
        pieces = [event.data[at : at + size] for at in range(0, len(event.data), size)]
        yield from ((piece, ()) for piece in pieces[:-1])
        yield pieces[-1], (event,)
