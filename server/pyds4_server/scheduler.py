"""One thread owns the engine and steps it: continuous batching.

::

    submit ─▶ waiting ─▶ prefill ─┬▶ decode ─▶ finished
                  ▲               └ a chunk a step, beside the tokens of everyone who decodes
      queue bound: OverloadedError

A step takes one token of every decoding sequence and a bounded share of prompt tokens, so a long
prompt slows the others down but never stops them. Everything that happened in a step reaches the
event loop in one call. Only this thread touches sessions; the loop only submits and cancels.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from pyds4 import Sampler, Sampling, Tokenizer
from pyds4.chat import markers
from pyds4.errors import ContextFullError, PyDS4Error
from pyds4_server.counters import Counters
from pyds4_server.engine_api import EngineLike, StepResultLike
from pyds4_server.errors import OverloadedError, ShuttingDownError
from pyds4_server.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Lookup,
    Prefilled,
    Update,
    Usage,
)
from pyds4_server.generation import Generation, GenerationRequest, Identity, SpecialTokens
from pyds4_server.jobs import Job, Subscription
from pyds4_server.kept import Kept
from pyds4_server.planning import Answering, Work, plan
from pyds4_server.repetition import RepetitionGuard
from pyds4_server.sampling import TokenChooser
from pyds4_server.sessions import PooledSession, SessionPool
from pyds4_server.settings import Settings

log = logging.getLogger("pyds4.scheduler")


class Scheduler:
    """Runs requests on an engine. ``submit`` belongs to the event loop's thread.

    Args:
        engine: Owned from ``start`` to ``stop``.
        settings: Bounds and chunk sizes.
        kept: Told about every turn that ended.
    """

    def __init__(self, engine: EngineLike, settings: Settings, kept: Kept) -> None:
        self._engine = engine
        self._kept = kept
        # One client must not be told a word of another's conversation.
        self._shows_expected = len(settings.keys()) <= 1
        self._settings = settings
        self._tokenizer: Tokenizer = engine.tokenizer
        self._special = SpecialTokens.of(engine.tokenizer)
        self._user = engine.tokenizer.token_id(markers.USER)
        self.context_tokens = min(
            settings.context_tokens or engine.config.context_length, engine.config.context_length
        )
        limit = max(settings.max_sessions, settings.max_active)
        # A context that was asked for must have room; the model's own need not, as memory grows
        # with use.
        asked = self.context_tokens if settings.context_tokens else None
        self._pool = SessionPool(engine, limit, asked)
        self._wake = threading.Condition()
        self._inbox: deque[Job] = deque()
        self._waiting_count = 0
        self._is_stopping = False
        self._is_ended = False
        self._active: list[Answering] = []
        self._shared: dict[str, Job] = {}
        self._outbox: dict[Job, list[Update]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="pyds4-scheduler", daemon=True)
        self.counters = Counters()

    # On the event loop's thread

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to serve; events are delivered on ``loop``."""
        self._loop = loop
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._is_stopping

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def submit(self, request: GenerationRequest) -> Subscription:
        """Queue ``request``, or join the identical one that is under way.

        Raises:
            OverloadedError: the queue is full.
            ShuttingDownError: ``stop`` was called.
        """
        identity = request.identity
        running = self._joinable(identity)
        if running is not None:
            return running.subscribe()
        if self._is_stopping:
            raise ShuttingDownError
        job = Job(request, self._settled)
        with self._wake:
            busy = self.counters.active + self._waiting_count
            if busy >= self._settings.max_active + self._settings.max_waiting:
                raise OverloadedError(self._waiting_count, self._settings.retry_after_s)
            self._waiting_count += 1
            self.counters.waiting = self._waiting_count
            self._inbox.append(job)
            self._wake.notify()
        if identity is not None:
            self._shared[identity.key] = job
        return job.subscribe()

    def _joinable(self, identity: Identity | None) -> Job | None:
        """The equal request that may answer this one."""
        if identity is None:
            return None
        job = self._shared.get(identity.key)
        if job is None or job.is_cancelled or job.is_delivered or job.has_failed:
            return None
        return job if (identity.may_reuse if job.is_over else identity.may_join) else None

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, give running ones ``grace_s``, then end the rest and the thread."""
        self._is_stopping = True
        deadline = time.monotonic() + grace_s
        while self.counters.active + self._waiting_count and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        with self._wake:
            self._is_ended = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _settled(self, job: Job) -> None:
        """Nobody will ask for this job any more: it was abandoned, or delivered."""
        self._forget(job)
        with self._wake:
            self._wake.notify()

    def _deliver(self, outbox: dict[Job, list[Update]]) -> None:
        for job, updates in outbox.items():
            job.publish(updates)
            if job.is_over and job.request.identity is not None and self._loop is not None:
                ttl_s = self._settings.finished_ttl_s
                job.expiry = self._loop.call_later(ttl_s, self._forget, job)

    def _forget(self, job: Job) -> None:
        if job.expiry is not None:
            job.expiry.cancel()
        identity = job.request.identity
        if identity is not None and self._shared.get(identity.key) is job:
            del self._shared[identity.key]

    # On the scheduler's thread

    def _run(self) -> None:
        waiting: deque[Job] = deque()
        while True:
            with self._wake:
                while not (self._inbox or self._active or waiting or self._is_ended):
                    self._wake.wait()
                waiting.extend(self._inbox)
                self._inbox.clear()
            if self._is_ended:
                break
            self._drop_cancelled(waiting)
            self._admit(waiting)
            if self._active:
                self._step()
            self._flush()
        for sequence in list(self._active):
            self._end(sequence, Failed("the server is shutting down", "shutdown"))
        for job in waiting:
            self._emit(job, 0, Failed("the server is shutting down", "shutdown"))
        self._flush()
        self._keep_sessions()
        self._pool.close()

    def _keep_sessions(self) -> None:
        """Save what was evaluated since the last turn ended: the next start goes on from there."""
        for pooled in self._pool.by_last_use():
            self._kept.turn_ended(pooled.session, pooled.tokens)
            self._kept.flush()  # a store takes a few saves at a time

    def _drop_cancelled(self, waiting: deque[Job]) -> None:
        for sequence in [s for s in self._active if s.job.is_cancelled]:
            self._remove(sequence)
            self.counters.cancelled += 1
        for job in [job for job in waiting if job.is_cancelled]:
            waiting.remove(job)
            self._waiting(-1)
            self.counters.cancelled += 1

    def _admit(self, waiting: deque[Job]) -> None:
        """Start requests in the order they came, as long as the batch has room."""
        while waiting:
            job = waiting[0]
            if self._active and len(self._active) + job.request.n > self._settings.max_active:
                return
            waiting.popleft()
            try:
                self._begin(job)
            except Exception as error:
                log.exception("a request could not be started")
                self._emit(job, 0, Failed(_told(error)))
            finally:
                self._waiting(-1)

    def _begin(self, job: Job) -> None:
        request = job.request
        session, cached = self._pool.acquire(request.prompt)
        self.counters.prompt_tokens += len(request.prompt)
        self.counters.cached_tokens += cached
        lookup = self._lookup(session, request.prompt)
        log.info("%d of %d prompt tokens cached (%s)", cached, len(request.prompt), lookup.source)
        for choice in range(request.n):
            sequence = self._sequence(job, choice)
            sequence.cached, sequence.lookup = cached, lookup
            if choice == 0:
                sequence.session, sequence.done = session, cached
                sequence.anchor = self._anchor(request)
            self._active.append(sequence)
        self.counters.active = len(self._active)
        self._emit(job, 0, Prefilled(cached, len(request.prompt), cached, lookup))
        if cached == len(request.prompt):
            first = next(sequence for sequence in self._active if sequence.session is session)
            try:
                self._begin_answer(first, session, None)
            except Exception as error:
                log.exception("a first token could not be chosen")
                self._fail(first, error)

    def _anchor(self, request: GenerationRequest) -> int:
        """Where the first user's message begins: behind a system prompt and tools, with which the
        next conversation will begin as well."""
        if not request.chat or self._user is None or self._user not in request.prompt:
            return 0
        return request.prompt.index(self._user)

    def _lookup(self, pooled: PooledSession, prompt: Sequence[int]) -> Lookup:
        resume = pooled.session.resume
        if not self._shows_expected:
            resume = replace(resume, expected=None)
        return Lookup(resume.source, resume.reason(prompt, self._tokenizer.decode))

    def _sequence(self, job: Job, choice: int) -> Answering:
        request, options = job.request, job.request.sampling
        seed = None if options.seed is None else options.seed + choice
        sampler = Sampler(
            Sampling(options.temperature, options.top_p, options.top_k, options.min_p, seed)
        )
        chooser = TokenChooser(
            options, request.prompt, self._engine.config.vocab_size, sampler, request.top_logprobs
        )
        guard = RepetitionGuard() if self._settings.repetition_guard else None
        generation = Generation(request, self._tokenizer, self._special, chooser, guard)
        return Answering(job, choice, generation, sampler)

    def _step(self) -> None:
        work = plan(self._active, self._settings)
        if not work:
            return
        begin = time.monotonic()
        try:
            results: Sequence[StepResultLike] = self._engine.step([w.item for w in work])
        except Exception as error:
            # Whatever it was, the sessions of this step are in an unknown state.
            log.exception("the engine failed a step of %d items", len(work))
            self.counters.engine_errors += 1
            for sequence in list(self._active):
                self._fail(sequence, error)
            return
        took_s = time.monotonic() - begin
        self.counters.step(
            took_s,
            decoded=sum(1 for w in work if not w.prompt_tokens),
            prefilled=sum(w.prompt_tokens for w in work),
        )
        for w, result in zip(work, results, strict=True):
            try:
                self._take(w, result)
            except Exception as error:
                # Our mistake, or a sampler without a number: it costs this request, not the rest.
                log.exception("a token could not be taken")
                self._fail(w.sequence, error)

    def _take(self, work: Work, result: StepResultLike) -> None:
        """Act on one result."""
        sequence, item, prompt_tokens = work
        session = sequence.session
        if result.error is not None:
            if isinstance(result.error, ContextFullError) and not prompt_tokens:
                self._finish(sequence, "length")
            else:
                self._fail(sequence, result.error)
            return
        if session is None:
            return
        session.tokens.extend(item.tokens)
        if prompt_tokens:
            sequence.done += prompt_tokens
            progress = Prefilled(
                sequence.done, len(sequence.prompt), sequence.cached, sequence.lookup
            )
            self._emit(sequence.job, sequence.choice, progress)
            if sequence.done == sequence.anchor:
                self._kept.save(session.session)
            if sequence.done == len(sequence.prompt):
                self._begin_answer(sequence, session, result.token)
            return
        self._accept(sequence, self._chosen(sequence, session, result.token))

    def _begin_answer(self, sequence: Answering, session: PooledSession, token: int | None) -> None:
        """The prompt is evaluated: all answers to it begin."""
        if sequence.job.request.n > 1:
            self._fork_choices(sequence, session)
        self._accept(sequence, self._chosen(sequence, session, token))

    def _chosen(self, sequence: Answering, session: PooledSession, token: int | None) -> int:
        """The token that the engine drew, or one drawn here."""
        return sequence.generation.choose(session.session.logits) if token is None else token

    def _fork_choices(self, first: Answering, session: PooledSession) -> None:
        """The prompt is evaluated: the other answers to it begin at the same logits."""
        logits = session.session.logits
        for sequence in [s for s in self._active if s.job is first.job and s is not first]:
            try:
                sequence.session = self._pool.fork(session)
            except PyDS4Error as error:
                self._fail(sequence, error)
                return
            sequence.done = first.done
            self._accept(sequence, sequence.generation.choose(logits))

    def _accept(self, sequence: Answering, token: int) -> None:
        generation = sequence.generation
        if not generation.tokens:
            sequence.first_token_s = time.monotonic()
        for event in generation.accept(token):
            self._emit(sequence.job, sequence.choice, event)
        if generation.finish_reason is not None:
            self._finish(sequence, generation.finish_reason)
        elif len(sequence.prompt) + len(generation.tokens) > self.context_tokens:
            self._finish(sequence, "length")
        else:
            sequence.pending = token

    def _finish(self, sequence: Answering, reason: FinishReason) -> None:
        generation = sequence.generation
        if generation.finish_reason is None:
            for event in generation.end(reason):
                self._emit(sequence.job, sequence.choice, event)
        now = time.monotonic()
        usage = Usage(
            prompt_tokens=len(sequence.prompt),
            cached_tokens=sequence.cached,
            completion_tokens=len(generation.tokens),
            reasoning_tokens=generation.reasoning_tokens,
        )
        timing = {
            "prefill_s": round(sequence.first_token_s - sequence.started_s, 6),
            "decode_s": round(now - sequence.first_token_s, 6),
        }
        self.counters.finished += 1
        self.counters.latency(sequence.first_token_s - sequence.started_s)
        if sequence.session is not None:
            self._kept.turn_ended(sequence.session.session, sequence.session.tokens)
        finish = generation.finish_reason or reason
        self._end(sequence, Finished(finish, usage, generation.stop_sequence, timing))

    def _fail(self, sequence: Answering, error: BaseException) -> None:
        """End every answer of the request; their sessions are of no use any more."""
        self.counters.failed += 1
        for other in [s for s in self._active if s.job is sequence.job]:
            if other.session is not None:
                self._pool.discard(other.session)
                other.session = None
            self._remove(other)
        self._emit(sequence.job, sequence.choice, Failed(_told(error)))

    def _end(self, sequence: Answering, event: Event) -> None:
        self._remove(sequence)
        self._emit(sequence.job, sequence.choice, event)

    def _remove(self, sequence: Answering) -> None:
        if sequence in self._active:
            self._active.remove(sequence)
        self.counters.active = len(self._active)
        if sequence.session is not None:
            self._pool.release(sequence.session)
            sequence.session = None

    def _waiting(self, change: int) -> None:
        with self._wake:
            self._waiting_count += change
        self.counters.waiting = self._waiting_count

    def _emit(self, job: Job, choice: int, event: Event) -> None:
        self._outbox.setdefault(job, []).append(Update(choice, event))

    def _flush(self) -> None:
        """Everything that happened since the last time, in one call into the loop."""
        self.counters.sessions = len(self._pool)
        if not self._outbox or self._loop is None:
            return
        outbox, self._outbox = self._outbox, {}
        try:
            self._loop.call_soon_threadsafe(self._deliver, outbox)
        except RuntimeError:
            log.warning("the event loop is closed; %d requests lose their answers", len(outbox))


def _told(error: BaseException) -> str:
    """What a client is told of ``error``: our own mistakes are for the log."""
    return str(error) if isinstance(error, PyDS4Error) else "internal error"
