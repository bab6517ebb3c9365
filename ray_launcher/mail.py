"""The launcher's calls to a spawner: messages out in order, outcomes in, whatever becomes of the spawner.

One post is under way at a time, which keeps the order that Ray's async actors do not; what is sent meanwhile makes up
the next, so a thousand launches cost a few calls. One poll waits for outcomes. Both say which incarnation of the
spawner they are meant for; where that has been replaced, everything that is still open is sent again (see `ledger`).

All calls are made in one thread of the package's own: a Ctrl-C in the midst of one would leave it unknown whether it
was made. Answers are taken in Ray's own thread, which must not be blocked.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError, TaskCancelledError

from ray_launcher.desk import Post
from ray_launcher.errors import ProcLauncherError, describe_exception
from ray_launcher.exits import ProcExitResult
from ray_launcher.ledger import Ledger
from ray_launcher.port import (
    ExitPort,
    Source,
    connection,
    failed,
    gone_because,
    result_of_error,
    result_of_future,
    result_of_outcome,
    run_soon,
    settle,
)

_logger = logging.getLogger(__name__)

#: Seconds between two attempts to reach a spawner that Ray has not given up.
_RETRY = 0.1
#: Seconds between two looks whether Ray has been shut down meanwhile.
_LOOK = 0.5
#: Seconds for the answer to the last poll.
_LET_GO = 1.0


class Mail:
    """Everything between one launcher, `name`, and its spawner.

    at_once: whether to get in touch with it now, or when there is something to send.
    """

    def __init__(self, spawner: Any, name: str, *, at_once: bool = True) -> None:
        self._spawner, self._name = spawner, name
        self._connection = connection()
        self._lock = threading.Lock()
        self._ledger = Ledger()  # with the lock only
        self._posts = 0
        self._inflight = 0  # the number of the post under way, or 0; an answer to another one comes too late
        self._queued = False  # `_post_some` is about to be called
        self._incarnation: str | None = None
        self._received = 0
        self._sent = threading.Condition(self._lock)
        self.gone: str | None = None  # why the spawner is gone for good
        self._end: BaseException | None = None
        self._closed: threading.Event | None = None
        self._patience: threading.Timer | None = None
        self._begun = at_once
        if at_once:
            run_soon(self._poll)

    def expect_answer(self, seconds: float, otherwise: str, *others: Any) -> None:
        """Kill a spawner that has not answered once within so many seconds: Ray would try to start it for ever.

        others: actors that were started with it, and that nobody else would end then.
        """
        if seconds < threading.TIMEOUT_MAX:
            text = f"the spawner did not start within {seconds:g} s: {otherwise}"
            self._patience = threading.Timer(seconds, self._give_up, [text, *others])
            self._patience.daemon = True
            self._patience.start()

    def _give_up(self, text: str, *others: Any) -> None:
        if self._incarnation is None and self._end is None and self.connected:
            self._lost(RayActorError(error_msg=text))
            for actor in (self._spawner, *others):
                ray.kill(actor)

    @property
    def connected(self) -> bool:
        """Checked before everything that is sent: without a connection, Ray would start a cluster of its own."""
        return bool(self._connection) and connection() == self._connection

    @property
    def count(self) -> int:
        """How many messages there have been, for `ProcSpawner.in_turn`: their numbers begin with 0."""
        return self._ledger.count

    def launch(self, payloads: list[bytes]) -> list[tuple[int, ExitPort]]:
        """Send launches; returns the number and the port of each."""
        with self._lock:
            first = self._ledger.count
            numbers = range(first, first + len(payloads))
            sources = [Source(partial(self._attach, number), self._connection) for number in numbers]
            ports = [(number, ExitPort(None, source)) for number, source in zip(numbers, sources, strict=True)]
            self._ledger.launch(payloads, sources)
            end = self._end
        if end is not None:
            for number, _ in ports:
                self._close(number, result_of_error(end))
        self._wake()
        return ports

    def send(self, kind: str, content: object, about: Iterable[int] = ()) -> None:
        """Send a message of another kind; it is not heard of again.

        about: launches; while one of them is open, a spawner that is started again gets the message again, for it
        may have taken it on and not come to it.
        """
        payload = pickle.dumps(content)
        with self._lock:
            self._ledger.send(kind, payload, about)
        self._wake()

    def flush(self) -> None:
        """Return when the spawner has all that was sent, or is gone for good."""
        with self._sent:
            while self._end is None and self.connected and (self._inflight or self._ledger.has_more):
                self._sent.wait(_LOOK)

    def close(self) -> None:
        """Let go of the spawner, which may be killed next; call it when nothing is open."""
        if self.connected and self.gone is None and self._begun:
            self._closed = threading.Event()
            hushed = self._spawner.serve_hush.remote(self._name)
            self._closed.wait(_LET_GO)
            ray.wait([hushed], timeout=_LET_GO)  # its answer is as likely to be under way as the poll's

    # -- out ------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        with self._lock:
            if self._queued or self._inflight:
                return
            self._queued = True
            begin, self._begun = not self._begun, True
        if begin:
            run_soon(self._poll)
        run_soon(self._post_some)

    def _post_some(self) -> None:
        with self._lock:
            self._queued = False
            if self._inflight or not self._ledger.has_more or self._incarnation is None or not self.connected:
                return
            post = self._ledger.next_post()
            self._posts += 1
            self._inflight, incarnation = self._posts, self._incarnation
        self._deliver(self._inflight, incarnation, post)

    def _deliver(self, number: int, incarnation: str, post: Post) -> None:
        if not self.connected:
            return
        try:
            ref = self._spawner.serve_post.remote(self._name, incarnation, pickle.dumps(post))
        except Exception as error:  # noqa: BLE001  # Ray's store is full, say
            self._refused(post, error)
        else:
            ref.future().add_done_callback(partial(self._posted, number, incarnation, post))

    def _refused(self, post: Post, error: Exception) -> None:
        """Ray does not take these messages on: they come to nothing, and the next go on with all else."""
        with self._lock:
            self._ledger.refused(post)
        for message in post.messages:
            if message.kind == "launch":
                self._close(message.number, failed(f"cannot send the request: {describe_exception(error)}"))
            else:
                _logger.error("cannot send a %s: %s", message.kind, describe_exception(error))
        run_soon(self._next_post, after=_RETRY)

    def _posted(self, number: int, incarnation: str, post: Post, answer: Future[str]) -> None:
        error = answer.exception()
        if number != self._inflight:
            return  # its messages have been sent again
        if isinstance(error, ActorUnavailableError):  # nobody knows whether it arrived: the numbers will tell
            run_soon(partial(self._deliver, number, incarnation, post), after=_RETRY)
        elif error is not None:
            self._lost(error)
        elif answer.result() != incarnation:
            self._meet(answer.result())
        else:
            self._next_post()

    def _next_post(self) -> None:
        with self._lock:
            self._ledger.posted()
            self._inflight = 0
            more = self._ledger.has_more
            self._sent.notify_all()
        if more:
            self._wake()

    def _meet(self, incarnation: str) -> None:
        """Another incarnation of the spawner: the first, or one that knows nothing of us."""
        with self._lock:
            if incarnation == self._incarnation:
                return
            self._ledger.collect_again()  # the first that we meet may not be the first of its session
            if self._patience is not None:
                self._patience.cancel()
            self._incarnation, self._received = incarnation, 0
            self._inflight = 0
        self._wake()

    # -- in -------------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        if not self.connected:
            return
        with self._lock:
            incarnation, received, settled = self._incarnation, self._received, self._ledger.take_settled()
        ref = self._spawner.serve_poll.remote(self._name, incarnation, received, settled)
        ref.future().add_done_callback(partial(self._polled, incarnation, settled))

    def _polled(
        self, asked: str | None, settled: list[int], answer: Future[tuple[str, list[tuple[int, int, bytes]]]]
    ) -> None:
        error = answer.exception()
        if error is None:
            incarnation, news = answer.result()
            if incarnation != asked:
                self._meet(incarnation)
            elif asked == self._incarnation:  # else all that is open has been sent again: its end is the later one's
                for sequence, number, outcome in news:
                    self._arrived(sequence, number, outcome)
        elif isinstance(error, ActorUnavailableError):
            with self._lock:
                self._ledger.settle(settled)
        else:
            self._lost(error)
        if self._closed is not None:
            self._closed.set()
        elif self.gone is None:
            run_soon(self._poll, after=0.0 if error is None else _RETRY)

    def _arrived(self, sequence: int, number: int, outcome: bytes) -> None:
        with self._lock:
            self._received = sequence
            source = self._ledger.arrived(number, outcome)
        if source is not None:
            settle(source.result, result_of_outcome(outcome))

    def _lost(self, error: BaseException) -> None:
        """The spawner is gone for good."""
        with self._lock:
            self._end = self._end or error
            self.gone = gone_because(self._end)
            numbers = self._ledger.give_up()
            self._sent.notify_all()
        for number in numbers:
            self._close(number, result_of_error(error))

    def _close(self, number: int, result: ProcExitResult) -> None:
        with self._lock:
            source = self._ledger.close(number)
        if source is not None:
            settle(source.result, result)

    # -- refs -----------------------------------------------------------------------------------------------------

    def _attach(self, number: int, source: Source) -> ObjectRef[Any]:
        """A task of the spawner's own with the outcome of this launch: for those who need a ref."""
        if not self.connected:
            raise ProcLauncherError("the port has no ref any more: Ray was shut down in this process")
        with self._lock:
            raw = self._ledger.owe(number, source)
        ref: ObjectRef[Any] = self._spawner.serve_attach.remote(self._name, number, raw)
        ref.future().add_done_callback(partial(self._attached, number, source))
        return ref

    def _attached(self, number: int, source: Source, answer: Future[object]) -> None:
        error = answer.exception()
        answered = error is None or (isinstance(error, RayTaskError) and not isinstance(error, TaskCancelledError))
        with self._lock:
            self._ledger.answered(number, source, answered)
        self._wake()
        if isinstance(error, TaskCancelledError):
            self._cancel(number, source)
        elif answered:
            settle(source.result, result_of_future(answer))  # it may be the only one to hear of it

    def _cancel(self, number: int, source: Source) -> None:
        """Somebody has cancelled the task behind a port's ref, and means the launch."""
        with self._lock:
            unsent = self._ledger.withdraw(number)
        if unsent:
            settle(source.result, failed("exit port closed (the launch was cancelled)"))
        else:
            self.send("cancel", number, about=(number,))
