"""This file knows how to take one exchange from its gate to its ending, without touching a socket.

A flight is driven by the HTTP shell (sync or async, it cannot tell): the shell asks what to do and reports what
happened; the flight decides, tells the ledger, and says which bytes may go on. What follows what is the table in
core.exchange. Ending methods are idempotent: the first ending counts, the others change nothing (one atomic pop).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..core.bound import output_tokens
from ..core.commands import Extend, Report, Settle, Void
from ..core.decide import Declined
from ..core.events import Extended, Held
from ..core.exchange import SETTLE, UNKNOWN, VOID, answer_to, follow
from ..core.intent import Text
from ..core.record import Facts, scopes_of
from ..core.tiers import Tiers
from ..dialects.dialect import BodyMeter, StreamMeter
from ..dialects.encoding import Inflater, inflater_for
from ..errors import EXTENSION, Denied, StreamCut, StreamStalled, logger
from ..ledger.ticket import LedgerUnavailable, Receipt, Ticket
from .bill import UNLIMITED, settle, used_by
from .plan import FIRST_SLICE, Plan, authorization, cap_to_write, departure, owed_unheld
from .refusal import answer_of, refusal_terms
from .seen import Answer, Departure, Stop

if TYPE_CHECKING:
    from ..export.inference import Inference
    from ..lava import Lava

EXTEND_WAIT_S: Final = 0.25
"""How long a stream waits for other open calls to give back credit before it is cut."""
LARGEST_TAIL: Final = 65_536
"""Bytes of an unfinished event that are kept back; a longer one goes through as it comes."""


class Flight:
    """One exchange. Not for two threads at once, except that any thread may end it."""

    def __init__(self, lava: Lava, plan: Plan, facts: Facts, inference: Inference | None = None) -> None:
        self._lava = lava
        self._plan = plan
        self._facts = facts
        self._inference = inference
        """Its picture in the application's trace."""
        self._failed = ""
        """Why it failed, for the picture."""
        self._pid = os.getpid()
        self._state = "new"
        self._ending = [True]
        """Popped by whoever ends the exchange."""
        self._ticket: Ticket | None = None
        self._asked = False
        """The ledger was asked for a hold: there may be one, whether or not its ticket ever got here."""
        self._unheld = ""
        self._beside = False
        """It stands in the pending file that it left without a hold."""
        self._paid = 0
        """Output tokens the hold pays for."""
        self._room = 0
        """Output tokens that were left of it when the stream was last measured."""
        self._slice = 0
        self._hold_amount = 0
        self._hold_expected = 0
        self._hold_metered = 0
        """What is held of the meter's tiers."""
        self._metered_expected = 0
        """What of it an unknown outcome owes."""
        self._meter: BodyMeter | StreamMeter | None = None
        self._stream: StreamMeter | None = None
        self._plain: StreamMeter | None = None
        """The same, where its bytes are not compressed."""
        self._body: BodyMeter | None = None
        self._inflater: Inflater | None = None
        self._answer = ""
        """What the status said: "answered", "rejected", "lost"."""
        self._queue: deque[bytes] = deque()
        """Events (or, where the stream is compressed or the answer is a body, chunks) not yet looked at."""
        self._waiting: bytes | None = None
        """Bytes that are counted and wait to be paid for."""
        self._before: tuple[Text, int] | None = None
        """Content and extra tokens without the bytes that wait, where those are a compressed chunk of many events."""
        self._passed: tuple[Text, int] | None = None
        """What was passed on of a stream that was cut, where that is not what its meter counted."""
        self._taught = lava.learned.output_bound(plan.lesson)
        """Thousandths of the expected output that bound it, where this model's calls have taught them."""
        self._received = 0
        """Bytes of a body or of a compressed stream."""
        self._upstream_ended = False
        self._stalled = False
        self.last_read = lava.monotonic()
        """time.monotonic() when the reader last asked for bytes; for the watcher of stalls."""
        self.reading = False
        """A read is pending: nobody's patience runs out meanwhile."""
        self.hang_up: Callable[[], None] | None = None
        self.extensions: dict[str, Any] = {"lava_record_id": facts.id}

    def __repr__(self) -> str:
        return f"<Flight {self._facts.id} {self._state}>"

    @property
    def ended(self) -> bool:
        return not self._ending

    # Before the request leaves ---------------------------------------------------------------------------------------

    def authorize(self) -> Ticket | None:
        """Ask the ledger for a hold. None: it needs none, or the answer is there already."""
        plan, settings = self._plan, self._lava.settings
        if plan.overruled:
            self._let_through(plan.overruled)
            return None
        try:
            command = authorization(plan, self._facts, settings, self._lava.learned, self._lava.ledger.owner)
        except LedgerUnavailable as error:  # the ledger has never heard of this process and cannot be told
            self._ticket = _failed(plan.customer, self._facts.id, error)
            return None
        self._facts.estimate = (plan.estimate.expected, 0)
        self._metered_expected = command.metered_expected
        draft = replace(self._facts, metered=command.metered_expected) if command.metered_expected else self._facts
        wait = settings.hold_wait_s if settings.mode == "enforce" else 0.0
        self._asked = True
        self._ticket = self._lava.ask(plan.customer, command, record=draft.to_json(), wait_s=wait)
        return None if self._ticket.done else self._ticket

    def departure(self) -> Departure:
        """What the ledger's answer means for the request: a refusal, or how it leaves."""
        if self._ticket is not None:
            ticket, self._ticket = self._ticket, None
            try:
                receipt = ticket.result()
            except Exception as error:
                return self._unreachable(error)
            if receipt.declined is not None:
                return self._declined(receipt.declined)
            self._approved(receipt)
            cap = cap_to_write(self._plan, self._lava.settings, self._paid, receipt.available)
            return departure(self._plan, cap, may_cut=self._lava.settings.mode == "enforce")
        return departure(self._plan, None, may_cut=False)

    def _approved(self, receipt: Receipt) -> None:
        held = receipt.event
        if not isinstance(held, Held):
            raise LedgerUnavailable("the ledger answered an authorization with something else; repeat the call")
        self._hold_amount, self._hold_expected = held.amount, held.expected
        self._hold_metered = sum(quantity for _, _, quantity, _ in held.metered)
        self._lava.metrics.decided("held", seconds=self._answered_in())
        self._paid = self._slice = held.output_tokens
        self._state, _ = follow(self._state, "approved")
        self._lava.opened(self)

    def _declined(self, declined: Declined) -> Departure:
        if self._lava.settings.mode == "observe":
            self._let_through(declined.reason)
            return departure(self._plan, None, may_cut=False)
        self._end_unasked("declined")
        return Departure(refusal=self._refusal(self._lava.denied(self._plan.customer, declined)))

    def _unreachable(self, error: Exception) -> Departure:
        if _tell_unless_known(error):
            self._give_back()
        if self._lava.lets_through_unreachable() and self._recorded_beside():
            self._let_through("ledger_unavailable")
            return departure(self._plan, None, may_cut=False)
        self._end_unasked("unreachable")
        return Departure(refusal=self._refusal(Denied("ledger_unavailable", retry_after_s=2)))

    def _recorded_beside(self) -> bool:
        """Write into the pending file that it leaves: open never means unrecorded. False: then it must not leave."""
        charge = owed_unheld(self._plan, self._lava.settings, self._lava.learned)
        draft = replace(
            self._facts,
            unheld="ledger_unavailable",
            ending="owner_lost",
            basis="estimated",
            usage={"input": self._plan.estimate.expected},
            charge=charge,
        )
        report = self._report(charge, self._plan.estimate.expected, 0)
        self._beside = True  # before it is written: an interrupted call is struck out
        self._beside = self._lava.ledger.keep_sent(self._plan.customer, report, draft.to_json())
        return self._beside or self._lava.settings.mode == "observe"

    def _let_through(self, reason: str) -> None:
        """Go on without a hold: the exchange ends in a report that says why."""
        self._unheld = self._facts.unheld = reason
        self._paid = self._room = UNLIMITED
        self._lava.count_passed(f"would_refuse:{reason}", self._facts.host)
        self._lava.metrics.decided("open", reason, self._answered_in())
        self._state, _ = follow(self._state, "unheld")
        if self._state == "held":
            self._lava.opened(self)
        else:
            self._take_ending()

    def _end_unasked(self, event: str) -> None:
        self._state, _ = follow(self._state, event)
        self._take_ending()

    def _refusal(self, denied: Denied) -> Answer:
        self._failed = denied.reason
        self._show()
        self._lava.refused(denied, self._answered_in())
        return answer_of(self._plan.dialect, denied)

    def _answered_in(self) -> float:
        """Seconds from the start of the call to the gate's answer. Nobody has read yet."""
        return self._lava.monotonic() - self.last_read

    def withdrawn(self) -> None:
        """Cancelled while the authorize was on its way: whoever answers it gives the hold back (T45).

        An exception that came between two lines (a signal's: Ctrl-C, a worker's time limit) may have taken the ticket
        along, or what it said.
        """
        ticket = self._ticket
        if ticket is None:  # not asked yet, or answered already
            if self._asked and self._state == "new":
                self._give_back()
            self._finish("abandoned", "withdrawn")
            self._show_later()
            return
        self._show_later()
        self._state, _ = follow(self._state, "abandoned")
        if not self._take_ending():
            return
        ledger, customer, hold = self._lava.ledger, self._plan.customer, self._facts.id

        def give_back() -> None:
            try:
                receipt = ticket.result()
            except Exception:
                return
            if receipt.declined is None:
                ledger.apply(customer, Void(hold, "withdrawn"))

        ticket.withdraw()
        ticket.on_done(lambda: ledger.later(give_back))

    def _give_back(self) -> None:
        """Nobody here knows whether there is a hold, or a line that it leaves without one: neither is to stay."""
        ledger, customer, call, beside = self._lava.ledger, self._plan.customer, self._facts.id, self._beside

        def give_back() -> None:
            if beside:
                ledger.sent_over(call, owed=False)
            ledger.apply(customer, Void(call, "unsure"))

        ledger.later(give_back)

    # On the wire -----------------------------------------------------------------------------------------------------

    def dispatched(self) -> None:
        """The first byte is about to leave. Raises if the exchange has ended: nothing is sent without a hold (G1)."""
        if self._state == "sent":  # a connection that died at once is tried again by the library below
            return
        self._state, _ = follow(self._state, "dispatched")

    def unsent(self, error: BaseException) -> None:
        """No byte left: nothing is owed."""
        self._failed = type(error).__name__
        self._finish("unsent", self._failed)

    def lost(self, error: BaseException) -> None:
        """The connection broke after the request had left."""
        self._failed = type(error).__name__
        self._finish("lost", self._failed)

    def abandoned(self, how: str) -> None:
        """The reader stopped: "closed", "cancelled", "collected".

        The collector may call it in any thread between any two statements, ours included (T35): it takes no lock and
        leaves the settling to the ledger's thread.
        """
        self._finish("abandoned", how, deferred=True)

    def stalled(self) -> None:
        """Nobody read it for too long: it is closed upstream, and pulling again raises."""
        self._stalled = True
        self._plain = None
        self._finish("stalled", "stalled", deferred=True)
        if self.hang_up is not None and self._lava.settings.mode == "enforce":  # observe closes nothing
            self.hang_up()

    def answered(self, status: int, headers: list[tuple[bytes, bytes]]) -> bool:
        """The head of the answer. True: its body is to be passed through push() and pull()."""
        plan, facts = self._plan, self._facts
        facts.status, facts.answered = status, self._lava.clock()
        self._answer = answer_to(status)
        if 300 <= status < 400:
            self._finish("rejected", f"status_{status}")
            return False
        known = {name.lower(): value for name, value in headers}
        content_type = known.get(b"content-type", b"").decode("latin-1")
        encoding = known.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        if encoding and encoding != "identity":
            self._inflater = inflater_for(encoding)
        if self._answer == "answered":
            self._state, _ = follow(self._state, "answered")
        if plan.dialect.is_stream(content_type) and self._answer == "answered":
            self._meter = self._stream = plan.dialect.stream_meter(plan.intent, hide_usage=plan.hide_usage)
            self._plain = self._stream if self._inflater is None else None
        else:
            self._meter = self._body = plan.dialect.body_meter()
        return True

    def push(self, data: bytes) -> bytes | None:
        """Bytes of the answer as they came (still content-encoded). What is paid for goes on at once; None: pull()."""
        if self._plain is not None:
            return self._quick(self._plain, data)
        if self._body is not None:
            self._body.feed(data if self._inflater is None else self._inflater.feed(data))
        self._received += len(data)
        self._queue.append(data)
        return None

    def _quick(self, stream: StreamMeter, data: bytes) -> bytes | None:
        """The usual case in few steps: one whole event, and it is paid for."""
        events = stream.split(data)
        if len(events) != 1 or self._queue or self._waiting is not None:
            self._queue.extend(events)
            if stream.tail_bytes > LARGEST_TAIL:
                self._queue.append(stream.rest())
            return None
        event = stream.take(events[0])
        if event is not None and stream.unmeasured <= self._room and not stream.finished:
            return event
        self._waiting = event
        return None

    def end(self) -> None:
        """The answer's bytes have ended; pull() until it gives None."""
        self._upstream_ended = True
        if self._body is not None:
            self._body.end()
            self._whole_body()
        elif self._stream is not None and self._inflater is None and (rest := self._stream.rest()):
            self._queue.append(rest)

    def pull(self) -> bytes | Ticket | Stop | None:
        """What to do next: pass bytes on, wait for the ledger, stop, or (None) bring more input."""
        if self._stalled:
            return Stop(None, StreamStalled(self._lava.settings.stall_s))
        if self._stream is None:
            return self._joined()
        ready: list[bytes] = []
        while self._waiting is not None or self._queue:
            if self._waiting is None:
                self._waiting = self._next(self._stream)
            if self._waiting is not None:
                if self._ending and not self._paid_for(self._stream):
                    if ready:
                        return b"".join(ready)
                    step = self._extension()
                    if step is not None:
                        return step
                    continue
                ready.append(self._waiting)
                self._waiting = None
            if self._stream.finished and not self.ended:
                self._finished()
        if (self._upstream_ended or self._stream.finished) and not self.ended:
            self._finished()
        return b"".join(ready) if ready else None

    def _joined(self) -> bytes | None:
        if not self._queue:
            return None
        data = b"".join(self._queue) if len(self._queue) > 1 else self._queue[0]
        self._queue.clear()
        return data

    def _next(self, stream: StreamMeter) -> bytes | None:
        """The next bytes to pass on, counted; None: hidden."""
        data = self._queue.popleft()
        if self._inflater is None:
            return stream.take(data)
        self._room -= stream.unmeasured  # asking for the content measures it
        self._before = (stream.content, stream.extra_tokens)
        for event in stream.split(self._inflater.feed(data)):
            stream.take(event)
        if self._upstream_ended and not self._queue and (rest := stream.rest()):
            stream.take(rest)
        return data

    # Paying while it streams -----------------------------------------------------------------------------------------

    def _paid_for(self, stream: StreamMeter) -> bool:
        """Whether what has been counted, the waiting bytes included, lies within what the hold pays for."""
        if stream.unmeasured <= self._room:
            return True
        stream.measure()
        self._room = self._paid - self._cautious(stream)
        return self._room >= 0

    def _cautious(self, stream: StreamMeter) -> int:
        """What was delivered, at the upper end: by what this model's calls taught, else by its family."""
        content, extra = stream.content_bound()
        estimate = output_tokens(content, extra, self._plan.family)
        return estimate.cautious if self._taught is None else -(-estimate.expected * self._taught // 1000)

    def _extension(self) -> Ticket | Stop | None:
        """Ask for the next slice. None: it was granted (or mode lets it pass), go on."""
        ticket = self._ticket
        if ticket is None:
            plan = self._plan
            left = plan.output_cap - self._paid
            tiers, each = (plan.meter.tiers, plan.metered_each) if plan.metered_each else (None, 0)
            command = Extend(self._facts.id, plan.output_rate, max(left, FIRST_SLICE), self._slice, tiers, each)
            wait = EXTEND_WAIT_S if self._lava.settings.mode == "enforce" else 0.0
            ticket = self._lava.ask(plan.customer, command, wait_s=wait)
            if not ticket.done:
                self._ticket = ticket
                return ticket
        self._ticket = None
        try:
            receipt = ticket.result()
        except Exception as error:
            _tell_unless_known(error)
            if self._lava.lets_through_unreachable():
                self._pass_unpaid("ledger_unavailable")
                return None
            return self._cut("unreachable", Denied("ledger_unavailable", record_id=self._facts.id))
        if receipt.declined is not None:
            if self._lava.settings.mode == "observe":
                self._pass_unpaid(receipt.declined.reason)
                return None
            denied = self._lava.denied(self._plan.customer, receipt.declined, record_id=self._facts.id)
            return self._cut("declined", denied)
        extended = receipt.event
        if isinstance(extended, Extended):
            self._paid += extended.output_tokens
            self._slice = extended.output_tokens
            self._hold_amount += extended.amount
            self._hold_metered += sum(quantity for _, _, quantity, _ in extended.metered)
            self._state, _ = follow(self._state, "approved")
        return None

    def _pass_unpaid(self, reason: str) -> None:
        """Beyond its hold because mode or policy lets it: the settlement is an overrun, and the record says why."""
        self._facts.stopped = ""
        self._lava.count_passed(f"would_cut:{reason}", self._facts.host)
        self._paid = self._room = UNLIMITED
        self._state, _ = follow(self._state, "unheld")

    def _cut(self, event: str, denied: Denied) -> Stop:
        """Stop here: what waits is not passed on, and what was passed is settled."""
        assert self._stream is not None
        self._facts.stopped = denied.reason
        if self._inflater is None:
            self._stream.untake()
        else:
            self._passed = self._before
        ending = None
        if self._lava.settings.on_exhausted == "end" and self._inflater is None:
            what = used_by(self._lava, self._plan, self._stream, self._passed)
            ending = self._stream.ending(
                refusal_terms(denied, input_tokens=what.input_tokens, output_tokens=what.output_tokens)
            )
        self._queue.clear()
        self._waiting = None
        self._finish(event, "cut")
        self._lava.refused(denied)
        self.extensions[EXTENSION] = denied
        return Stop(ending, None if ending is not None else StreamCut(denied))

    # The ending ------------------------------------------------------------------------------------------------------

    def _whole_body(self) -> None:
        """A body that has come to its end: settled if it shows usage or work, else as its status says."""
        assert self._body is not None
        if self._answer == "answered":
            billed = self._body.reading is not None or self._body.content.bytes or not self._body.error
            self._finish("finished" if billed else "rejected", "finished")
        elif self._body.reading is not None:
            self._state, _ = follow(self._state, "answered") if self._state == "sent" else (self._state, None)
            self._finish("finished", f"status_{self._facts.status}")
        else:
            self._finish(self._answer, f"status_{self._facts.status}")

    def _finished(self) -> None:
        """The stream's own end, or the end of its bytes."""
        stream = self._stream
        assert stream is not None
        stream.measure()
        if stream.error and stream.reading is None and not stream.content.bytes and not stream.extra_tokens:
            self._finish("rejected", "error_in_stream")
        else:
            self._finish("finished", "finished" if stream.finished else "incomplete")

    def _take_ending(self) -> bool:
        """One atomic pop: whoever gets it ends the exchange. Inert in a forked child (T36)."""
        if os.getpid() != self._pid:
            return False
        try:
            self._ending.pop()
        except IndexError:
            return False
        self._lava.closed(self)
        return True

    def _finish(self, event: str, how: str, *, deferred: bool = False) -> None:
        """End the exchange, if it has not ended. Never raises into the application."""
        if self.ended or os.getpid() != self._pid:
            return
        if event in ("abandoned", "lost", "stalled") and self._state == "sent" and self._answer == "rejected":
            event = "rejected"  # nobody reads an error's body to its end
        state, told = follow(self._state, event)
        if told is None:
            self._state = state
            return
        if not self._take_ending():
            return
        self._state = state
        self._facts.ending, self._facts.ended = how, self._lava.clock()
        conclude = {VOID: self._void, UNKNOWN: self._settle_unknown, SETTLE: self._settle}[told]
        if deferred:
            self._lava.ledger.later(lambda: self._conclude(conclude, self._show_later))
            return
        try:  # what broke may have been broken off by the collector, too
            self._conclude(conclude, self._show_later if event in ("unsent", "lost") else self._show)
        except BaseException:  # a signal's: nobody else will end it, and to say the same twice changes nothing
            self._lava.ledger.later(lambda: self._conclude(conclude, self._show_later))
            raise

    def _conclude(self, conclude: Callable[[], None], show: Callable[[], None]) -> None:
        """Tell the ledger. Whatever a provider's answer makes of our arithmetic: it does not reach the application, and
        the hold ends."""
        try:
            conclude()
        except Exception as error:
            logger.error("an answer could not be rated (%s); it is charged as an unknown outcome", type(error).__name__)
            self._facts.lines, self._facts.others, self._facts.cost = (), (), 0
            with suppress(Exception):
                self._settle_unknown()
        show()

    def _show(self) -> None:
        """End the picture, after the ledger was told."""
        inference, self._inference = self._inference, None
        if inference is not None:
            status = self._facts.status
            inference.ended(self._facts, self._failed or self._facts.stopped or (str(status) if status >= 400 else ""))

    def _show_later(self) -> None:
        """The same where no call waits: a span has a lock, and processors that may be slow (T35)."""
        if self._inference is not None:
            self._facts.ended = self._facts.ended or self._lava.clock()
            self._lava.pictures.append(self._show)

    def _void(self) -> None:
        if not self._unheld:
            self._lava.post(self._plan.customer, Void(self._facts.id, self._facts.ending), None)
        elif self._beside:
            self._lava.ledger.later(lambda: self._lava.ledger.sent_over(self._facts.id, owed=False))

    def _settle_unknown(self) -> None:
        """Sent, and no answer: the operator's policy, fixed when the hold was made."""
        facts, plan = self._facts, self._plan
        learned = self._lava.learned.input_tokens(plan.lesson, plan.estimate.expected)
        expected = min(learned, plan.estimate.cautious)  # what was not reported is never above what was held
        facts.basis, facts.usage = "estimated", {"input": expected}
        unheld = owed_unheld(plan, self._lava.settings, self._lava.learned) if self._unheld else 0
        facts.charge = charge = unheld if self._unheld else self._hold_expected
        # Of a hold that is what `expected` was priced for, and it counts in the tiers; else nothing was held in them.
        self._post(charge, expected, 0, metered=0 if self._unheld else self._metered_expected)

    def _settle(self) -> None:
        assert self._meter is not None
        if self._stream is not None:
            self._stream.measure()
        if self._body is not None and self._body.reading is None and not self._body.finished:
            self._settle_unknown()  # it worked, and nobody knows how much: the body was not read, or cannot be
            return
        if self._stream is not None and self._inflater is not None and self._inflater.failed:
            # What cannot be inflated passed all the same: its bytes are counted as if they were letters.
            self._passed = (Text(self._received, 30 * self._received, 1), 0)
        bill = settle(
            self._lava,
            self._plan,
            self._facts,
            self._meter,
            passed=self._passed,
            paid=self._paid,
            hold_amount=None if self._unheld else self._hold_amount,
            held=self._hold_metered,
        )
        tiers = self._plan.meter.tiers if bill.metered else None
        self._post(bill.charge, bill.input_tokens, bill.output_tokens, bill.cause, tiers, bill.metered)

    def _post(
        self,
        charge: int,
        input_tokens: int,
        output_tokens: int,
        cause: str | None = None,
        tiers: Tiers | None = None,
        metered: int = 0,
    ) -> None:
        facts, lava = self._facts, self._lava
        command: Settle | Report
        if self._unheld:
            command = self._report(charge, input_tokens, output_tokens, tiers, metered)
        else:
            absorb = lava.settings.overrun == "absorb"
            forgive = lava.settings.mode == "observe"
            command = Settle(
                facts.id,
                charge,
                input_tokens,
                output_tokens,
                cause=cause,
                absorb=absorb,
                forgive=forgive,
                tiers=tiers,
                metered=metered,
            )
        over = partial(lava.ledger.sent_over, facts.id, owed=True) if self._beside else None
        lava.post(self._plan.customer, command, facts.to_json(), binding=self._plan.binding, then=over)

    def _report(
        self, charge: int, input_tokens: int, output_tokens: int, tiers: Tiers | None = None, metered: int = 0
    ) -> Report:
        return Report(
            self._facts.id,
            charge,
            input_tokens,
            output_tokens,
            forgive=self._lava.settings.mode == "observe",
            scopes=scopes_of(self._facts),
            tiers=tiers,
            metered=metered,
        )


def _failed(customer: str, hold: str, error: Exception) -> Ticket:
    """A question that could not even be asked."""
    ticket = Ticket(customer, Void(hold, "unasked"), None)
    ticket.fail(error)
    return ticket


def _tell_unless_known(error: Exception) -> bool:
    """The ledger is away, which it says itself; or (True) there is a mistake of ours or a signal's exception, which
    must not reach the application."""
    if isinstance(error, LedgerUnavailable):
        return False
    logger.error("the ledger failed with %s; the exchange goes on as if it were away", type(error).__name__)
    return True
