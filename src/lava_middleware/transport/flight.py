"""This file knows how to take one exchange from its gate to its ending, without touching a socket.

A flight is driven by the HTTP shell (sync or async, it cannot tell): the shell asks what to do and reports what
happened; the flight decides, tells the ledger, and says which bytes may go on. What follows what is the table in
core.exchange. Ending methods are idempotent: the first ending counts, the others change nothing (one atomic pop).
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..core.bound import Estimate, output_tokens
from ..core.commands import Authorize, Extend, Report, Settle, Void
from ..core.decide import Declined
from ..core.events import Extended, Held
from ..core.exchange import SETTLE, UNKNOWN, VOID, answer_to, follow
from ..core.intent import Intent, Text
from ..core.money import LARGEST, PER_MILLION, Amount, charge_ceiling
from ..core.outcome import Used, used
from ..core.pricing import Price
from ..core.record import Facts
from ..dialects.dialect import BodyMeter, Dialect, Meter, Refusal, StreamMeter
from ..dialects.encoding import Inflater, inflater_for
from ..errors import EXTENSION, Denied, StreamCut, StreamStalled, logger
from ..ledger.ticket import LedgerUnavailable, Receipt, Ticket
from .seen import Answer, Departure, Stop

if TYPE_CHECKING:
    from ..lava import Lava

FIRST_SLICE: Final = 64
"""Output tokens a stream holds before its first byte."""
LEAST_CAP: Final = 16
"""OpenAI's responses refuse smaller caps; a stream that can pay for less is cut by us.
https://platform.openai.com/docs/api-reference/responses/create#responses-create-max_output_tokens"""
EXTEND_WAIT_S: Final = 0.25
"""How long a stream waits for other open calls to give back credit before it is cut."""
LARGEST_BELIEVED: Final = 10**9
"""Tokens. No exchange uses so many: figures beyond that are not believed, whoever reports them."""
LARGEST_TAIL: Final = 65_536
"""Bytes of an unfinished event that are kept back; a longer one goes through as it comes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found out about a request before anybody was asked for money. Immutable: a flight only reads it."""

    customer: str = field(repr=False)
    dialect: Dialect
    intent: Intent
    body: Mapping[str, Any] = field(repr=False)
    family: str
    estimate: Estimate
    """Of the input."""
    price_lists: tuple[str, ...]
    """Names of the price lists to look in, in order."""
    price: Price | None
    """None: not known. Then the exchange can only be unheld, and its cost is recorded as unknown."""
    overruled: str
    """Why it would be refused whoever pays, where mode observe lets it go unheld; else empty."""
    input_rate: int
    """Ticks per million input tokens charged at most; the markup is in it, as in `output_rate`."""
    output_rate: int
    fees: int
    """Ticks charged at most beside tokens: flat fees, searches."""
    output_tokens_max: int
    """The cap that the request or the model sets, per choice."""
    hide_usage: bool
    ask_usage: bool
    untouchable: bool
    """The request is signed: neither body nor headers may be changed."""
    binding: Any
    """The inbound request's Binding, told of the record at the end; None outside a request."""
    reports_cost: bool = False


class Flight:
    """One exchange. Not for two threads at once, except that any thread may end it."""

    def __init__(self, lava: Lava, plan: Plan, facts: Facts) -> None:
        self._lava = lava
        self._plan = plan
        self._facts = facts
        self._pid = os.getpid()
        self._state = "new"
        self._ending = [True]
        """Popped by whoever ends the exchange."""
        self._ticket: Ticket | None = None
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
        self._taught = lava.learned.output_bound(self._lesson)
        """Thousandths of the expected output that bound it, where this model's calls have taught them."""
        self._upstream_ended = False
        self._stalled = False
        self.last_read = lava.monotonic()
        """time.monotonic() when the reader last asked for bytes; for the watcher of stalls."""
        self.reading = False
        """A read is pending: nobody's patience runs out meanwhile."""
        self.extensions: dict[str, Any] = {"lava_record_id": facts.id}

    def __repr__(self) -> str:
        return f"<Flight {self._facts.id} {self._state}>"

    @property
    def ended(self) -> bool:
        return not self._ending

    @property
    def id(self) -> str:
        return self._facts.id

    # Before the request leaves ---------------------------------------------------------------------------------------

    def authorize(self) -> Ticket | None:
        """Ask the ledger for a hold. None: it needs none, or the answer is there already."""
        plan, settings = self._plan, self._lava.settings
        if plan.overruled:
            self._let_through(plan.overruled)
            return None
        try:
            command = self._authorization(plan)
        except LedgerUnavailable as error:  # the ledger has never heard of this process and cannot be told
            self._ticket = _failed(plan.customer, self._facts.id, error)
            return None
        self._facts.estimate = (plan.estimate.expected, 0)
        wait = settings.hold_wait_s if settings.mode == "enforce" else 0.0
        self._ticket = self._lava.ledger.apply(plan.customer, command, record=self._facts.to_json(), wait_s=wait)
        return None if self._ticket.done else self._ticket

    def _authorization(self, plan: Plan) -> Authorize:
        settings, intent = self._lava.settings, plan.intent
        cap = plan.output_tokens_max * intent.choices
        capped = intent.output_tokens_max is not None
        if self._sliced:
            wanted = min(cap, FIRST_SLICE * intent.choices)
            least = min(wanted, FIRST_SLICE // 2)
        else:
            wanted = cap
            lowers = settings.clamp == "always" or (settings.clamp == "missing" and not capped)
            least = min(cap, settings.min_output_tokens * intent.choices) if lowers and not plan.untouchable else cap
        fixed = charge_ceiling(plan.estimate.cautious, plan.input_rate) + plan.fees
        expected, grows = self._owed_if_unknown(fixed, cap)
        return Authorize(
            hold=self._facts.id,
            owner=self._lava.ledger.owner,
            fixed=fixed,
            input_tokens=plan.estimate.cautious,
            output_price=plan.output_rate,
            output_tokens=wanted,
            output_tokens_min=least,
            share=1 if capped or self._sliced else settings.hold_share,
            expected=expected,
            grows=grows,
            scopes=self._scopes(),
        )

    @property
    def _sliced(self) -> bool:
        """Held in slices as it streams; else the whole cap is held at once (hidden reasoning cannot be watched)."""
        return self._plan.intent.stream and not self._plan.intent.hidden_reasoning

    def _owed_if_unknown(self, fixed: int, cap: int) -> tuple[int, bool]:
        """(what an unknown outcome owes, whether extensions add to it), by the operator's policy."""
        policy, plan, learned = self._lava.settings.on_unknown_outcome, self._plan, self._lava.learned
        if policy == "void":
            return 0, False
        if policy == "bound":
            return 2**62 - 1, False
        lesson = self._lesson
        owed = charge_ceiling(learned.input_tokens(lesson, plan.estimate.expected), plan.input_rate)
        if policy == "input" or self._sliced:
            return min(owed, fixed), policy == "expected"
        mean = learned.mean_output(lesson)
        output = cap // 4 if mean is None else min(mean * plan.intent.choices, cap)
        return min(owed, fixed) + charge_ceiling(output, plan.output_rate), False

    def _owed_unheld(self) -> int:
        """What an unknown outcome owes where no hold says so."""
        plan = self._plan
        cap = plan.output_tokens_max * plan.intent.choices
        fixed = charge_ceiling(plan.estimate.cautious, plan.input_rate) + plan.fees
        owed, _ = self._owed_if_unknown(fixed, cap)
        return min(owed, fixed + charge_ceiling(cap, plan.output_rate), LARGEST - 1)

    @property
    def _lesson(self) -> str:
        """Under which name this model's calls teach and are taught."""
        return f"{self._facts.provider}/{self._facts.model}"[:200]

    def _scopes(self) -> tuple[tuple[str, str], ...]:
        facts = self._facts
        named = (("meter", facts.meter), ("model", facts.model[:200]), ("user", facts.user), *facts.tags)
        return tuple((name, value) for name, value in named if value)

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
            return self._edits(receipt)
        return self._edits(None)

    def _approved(self, receipt: Receipt) -> None:
        held = receipt.event
        if not isinstance(held, Held):
            raise LedgerUnavailable("the ledger answered an authorization with something else; repeat the call")
        self._hold_amount, self._hold_expected = held.amount, held.expected
        self._lava.metrics.decided("held")
        self._paid = self._slice = held.output_tokens
        self._state, _ = follow(self._state, "approved")
        self._lava.opened(self)

    def _edits(self, receipt: Receipt | None) -> Departure:
        plan, settings = self._plan, self._lava.settings
        if plan.untouchable:
            return Departure()
        body: Mapping[str, Any] = plan.body
        if plan.ask_usage:
            body = plan.dialect.asking_usage(body)
        cap = self._cap_to_write(receipt)
        if cap is not None:
            body = plan.dialect.with_cap(body, cap)
        content = None
        if body is not plan.body:
            content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        may_cut = settings.mode == "enforce" and not self._unheld
        identity = plan.intent.stream and (may_cut or plan.hide_usage)
        return Departure(None, content, {"accept-encoding": "identity"} if identity else {})

    def _cap_to_write(self, receipt: Receipt | None) -> int | None:
        """Output tokens per choice that the request must be capped to, where it may run beyond what can be paid."""
        plan, settings = self._plan, self._lava.settings
        if receipt is None or settings.clamp == "never" or settings.mode != "enforce" or not plan.output_rate:
            return None
        if plan.intent.output_tokens_max is not None and settings.clamp != "always":
            return None
        choices = plan.intent.choices
        fits = self._paid
        if self._sliced:
            fits += max(receipt.available, 0) * PER_MILLION // plan.output_rate
        return max(LEAST_CAP, fits // choices) if fits < plan.output_tokens_max * choices else None

    def _declined(self, declined: Declined) -> Departure:
        if self._lava.settings.mode == "observe":
            self._let_through(declined.reason)
            return self._edits(None)
        self._end_unasked("declined")
        return Departure(refusal=self._refusal(self._lava.denied(self._plan.customer, declined)))

    def _unreachable(self, error: Exception) -> Departure:
        _tell_unless_known(error)
        if self._lava.lets_through_unreachable() and self._recorded_beside():
            self._let_through("ledger_unavailable")
            return self._edits(None)
        self._end_unasked("unreachable")
        return Departure(refusal=self._refusal(Denied("ledger_unavailable", retry_after_s=2)))

    def _recorded_beside(self) -> bool:
        """Write into the pending file that it leaves: open never means unrecorded. False: then it must not leave."""
        charge = self._owed_unheld()
        draft = replace(
            self._facts,
            unheld="ledger_unavailable",
            ending="owner_lost",
            basis="estimated",
            usage={"input": self._plan.estimate.expected},
            charge=charge,
        )
        report = self._report(charge, self._plan.estimate.expected, 0)
        self._beside = self._lava.ledger.keep_sent(self._plan.customer, report, draft.to_json())
        return self._beside or self._lava.settings.mode == "observe"

    def refuse(self, denied: Denied) -> Departure:
        """Refuse for a reason that the ledger was not asked about."""
        self._end_unasked("declined")
        return Departure(refusal=self._refusal(denied))

    def _let_through(self, reason: str) -> None:
        """Go on without a hold: the exchange ends in a report that says why."""
        self._unheld = self._facts.unheld = reason
        self._paid = self._room = 2**62
        self._lava.count_passed(f"would_refuse:{reason}", self._facts.host)
        self._lava.metrics.decided("open", reason)
        self._state, _ = follow(self._state, "unheld")
        if self._state == "held":
            self._lava.opened(self)
        else:
            self._take_ending()

    def _end_unasked(self, event: str) -> None:
        self._state, _ = follow(self._state, event)
        self._take_ending()

    def _refusal(self, denied: Denied) -> Answer:
        self._lava.refused(denied)
        return answer_of(self._plan.dialect, denied)

    def withdrawn(self) -> None:
        """Cancelled while the authorize was on its way: whoever answers it gives the hold back (T45)."""
        ticket = self._ticket
        if ticket is None:  # not asked yet, or answered already
            self._finish("abandoned", "withdrawn")
            return
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

    # On the wire -----------------------------------------------------------------------------------------------------

    def dispatched(self) -> None:
        """The first byte is about to leave. Raises if the exchange has ended: nothing is sent without a hold (G1)."""
        if self._state == "sent":  # a connection that died at once is tried again by the library below
            return
        self._state, _ = follow(self._state, "dispatched")

    def unsent(self, error: BaseException) -> None:
        """No byte left: nothing is owed."""
        self._finish("unsent", type(error).__name__)

    def lost(self, error: BaseException) -> None:
        """The connection broke after the request had left."""
        self._finish("lost", type(error).__name__)

    def abandoned(self, how: str) -> None:
        """The reader stopped: "closed", "cancelled", "collected".

        The collector may call it in any thread between any two statements, ours included (T35): it takes no lock and
        leaves the settling to the ledger's thread.
        """
        self._finish("abandoned", how, deferred=True)

    def stalled(self) -> None:
        """Nobody read it for too long. Pulling again raises."""
        self._stalled = True
        self._plain = None
        self._finish("stalled", "stalled", deferred=True)

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
            left = plan.output_tokens_max * plan.intent.choices - self._paid
            command = Extend(self._facts.id, plan.output_rate, max(left, FIRST_SLICE), self._slice)
            wait = EXTEND_WAIT_S if self._lava.settings.mode == "enforce" else 0.0
            ticket = self._lava.ledger.apply(plan.customer, command, wait_s=wait)
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
            self._state, _ = follow(self._state, "approved")
        return None

    def _pass_unpaid(self, reason: str) -> None:
        """Beyond its hold because mode or policy lets it: the settlement is an overrun, and the record says why."""
        self._facts.stopped = ""
        self._lava.count_passed(f"would_cut:{reason}", self._facts.host)
        self._paid = self._room = 2**62
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
            what = self._used(self._stream)
            ending = self._stream.ending(
                _refusal_terms(denied, input_tokens=what.input_tokens, output_tokens=what.output_tokens)
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
        if event in ("abandoned", "lost") and self._state == "sent" and self._answer == "rejected":
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
            self._lava.ledger.later(lambda: self._conclude(conclude))
        else:
            self._conclude(conclude)

    def _conclude(self, conclude: Callable[[], None]) -> None:
        """Tell the ledger. Whatever a provider's answer makes of our arithmetic: it does not reach the application, and
        the hold ends."""
        try:
            conclude()
        except Exception as error:
            logger.error("an answer could not be rated (%s); it is charged as an unknown outcome", type(error).__name__)
            self._facts.lines, self._facts.others, self._facts.cost = (), (), 0
            with suppress(Exception):
                self._settle_unknown()

    def _void(self) -> None:
        if not self._unheld:
            self._lava.post(self._plan.customer, Void(self._facts.id, self._facts.ending), None)
        elif self._beside:
            self._lava.ledger.later(lambda: self._lava.ledger.sent_over(self._facts.id, owed=False))

    def _settle_unknown(self) -> None:
        """Sent, and no answer: the operator's policy, fixed when the hold was made."""
        facts, plan = self._facts, self._plan
        expected = self._lava.learned.input_tokens(self._lesson, plan.estimate.expected)
        facts.basis, facts.usage = "estimated", {"input": expected}
        facts.charge = charge = self._owed_unheld() if self._unheld else self._hold_expected
        self._post(charge, expected, 0)

    def _settle(self) -> None:
        facts, plan, meter = self._facts, self._plan, self._meter
        assert meter is not None
        if self._stream is not None:
            self._stream.measure()
        facts.response_model = (meter.model or "")[:200]
        facts.response_id = (meter.response_id or "")[:200]
        facts.finish_reason = (meter.finish_reason or "")[:80]
        facts.service_tier = (meter.service_tier or plan.intent.service_tier or "")[:40]
        what = self._used(meter)
        facts.totals = {name: value for name, value in what.totals.items() if value is not None}
        reading = meter.reading
        if max(what.input_tokens, what.output_tokens) > LARGEST_BELIEVED:  # it stays on the record as evidence
            reading, what = None, self._used(meter, believed=False)
        facts.usage, facts.basis = dict(what.usage), what.basis
        facts.estimate = (plan.estimate.expected, what.counted_output)
        charge = self._lava.rate(plan, facts, what, reading)
        if what.basis != "reported" and not self._unheld:
            charge = facts.charge = min(charge, self._hold_amount)
        self._teach(what)
        self._post(charge, what.input_tokens, what.output_tokens, cause=self._cause(what))

    def _used(self, meter: Meter, *, believed: bool = True) -> Used:
        """What was used up to now, as it is billed; only by what passed where the provider is not believed."""
        content, extra_tokens = self._passed or (meter.content, meter.extra_tokens)
        return used(
            meter.reading if believed else None,
            final=meter.reading_final or meter.finished,
            others=tuple(meter.others) if believed else (),
            content=content,
            extra_tokens=extra_tokens,
            expected_input=self._plan.estimate.expected,
            family=self._plan.family,
            learned=self._lava.learned,
            lesson=self._lesson,
        )

    def _teach(self, what: Used) -> None:
        """Only calls whose input is wholly visible and whose usage was reported teach."""
        plan = self._plan
        if what.basis != "reported" or plan.intent.unseen_input or plan.intent.server_tools or plan.intent.media_tokens:
            return
        visible = what.output_tokens - (what.usage.get("reasoning", 0) if plan.intent.hidden_reasoning else 0)
        self._lava.learned.teach(
            self._lesson,
            inputs=(what.input_tokens, plan.estimate.expected),
            outputs=(max(visible, 0), what.counted_output),
            length=what.output_tokens // plan.intent.choices,
        )

    def _cause(self, what: Used) -> str:
        """Why a settlement would exceed its hold, should it do so."""
        plan = self._plan
        if self._paid >= 2**62:
            return "unheld"
        if what.input_tokens > plan.estimate.cautious:
            return "input_above_bound"
        cap = plan.output_tokens_max * plan.intent.choices
        if what.output_tokens > cap:
            return "cap_ignored"
        if what.usage.get("reasoning", 0) and what.output_tokens > self._paid:
            return "hidden_output"
        if what.output_tokens > self._paid:
            return "undercounted"
        return "dearer_model"

    def _post(self, charge: int, input_tokens: int, output_tokens: int, cause: str | None = None) -> None:
        facts, lava = self._facts, self._lava
        command: Settle | Report
        if self._unheld:
            command = self._report(charge, input_tokens, output_tokens)
        else:
            absorb = lava.settings.overrun == "absorb"
            forgive = lava.settings.mode == "observe"
            command = Settle(facts.id, charge, input_tokens, output_tokens, cause=cause, absorb=absorb, forgive=forgive)
        over = partial(lava.ledger.sent_over, facts.id, owed=True) if self._beside else None
        lava.post(self._plan.customer, command, facts.to_json(), binding=self._plan.binding, then=over)

    def _report(self, charge: int, input_tokens: int, output_tokens: int) -> Report:
        forgive = self._lava.settings.mode == "observe"
        return Report(self._facts.id, charge, input_tokens, output_tokens, forgive=forgive, scopes=self._scopes())


def _refusal_terms(denied: Denied, **figures: int) -> Refusal:
    details = {"code": denied.reason, **denied.facts(), **figures}
    return Refusal(denied.outbound_status, denied.reason, denied.message, denied.retry_after, details)


def answer_of(dialect: Dialect, denied: Denied) -> Answer:
    """A refusal as this provider would phrase an error of its own, so that the SDK raises its natural class."""
    headers = [("content-type", "application/json"), ("cache-control", "no-store"), *denied.outbound_headers.items()]
    return Answer(denied.outbound_status, headers, dialect.refusal(_refusal_terms(denied)), {EXTENSION: denied})


def microseconds_to_datetime(at: int | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at / 1_000_000, UTC)


def _failed(customer: str, hold: str, error: Exception) -> Ticket:
    """A question that could not even be asked."""
    ticket = Ticket(customer, Void(hold, "unasked"), None)
    ticket.fail(error)
    return ticket


def _tell_unless_known(error: Exception) -> None:
    """The ledger is away, which it says itself; or there is a mistake of ours, which must not reach the application."""
    if not isinstance(error, LedgerUnavailable):
        logger.error("the ledger failed with %s; the exchange goes on as if it were away", type(error).__name__)


def _shown(ticks: int) -> Amount:
    """What a request would have needed may be more than any account can hold (`n`: 10^15)."""
    return Amount(max(-LARGEST + 1, min(ticks, LARGEST - 1)))


def denied_from(declined: Declined, now: int, **more: Any) -> Denied:
    """The ledger's no in words and figures for people."""
    retry = None
    if declined.reason == "limit_reached" and declined.resets_at is not None:
        retry = max(1, -(-(declined.resets_at - now) // 1_000_000))
    elif declined.reason == "credit_on_hold":
        retry = 2
    money = declined.limit is None
    return Denied(
        declined.reason if declined.reason != "hold_ended" else "ledger_unavailable",
        available=_shown(declined.available) if money else None,
        required=_shown(declined.required) if money else None,
        output_tokens_fit=declined.output_tokens_fit or None,
        limit=declined.limit,
        unit=declined.unit,
        used=declined.used if declined.limit else None,
        quantity=declined.quantity if declined.limit else None,
        resets_at=microseconds_to_datetime(declined.resets_at),
        retry_after_s=retry,
        **more,
    )
