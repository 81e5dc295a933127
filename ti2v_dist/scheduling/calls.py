"""Which call every worker with room gets next. Pure decisions, for the scheduler."""

from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.crew import Crew
from ti2v_dist.scheduling.kinds import Kinds
from ti2v_dist.scheduling.line import Line, Video

Call = events.Encode | events.Finish | events.Advance
SINGLES = (("complete", "finishing", events.Finish), ("new", "encoding", events.Encode))
"""Calls with one video: for which status, and what becomes of that."""


class Calls:
    """Takes videos from the line and hands them to the crew."""

    def __init__(self, crew: Crew, kinds: Kinds[Video], line: Line) -> None:
        self.crew, self.kinds, self.line = crew, kinds, line

    def dispatch(self) -> list[events.Command]:
        """Give every worker with room its next call, the emptiest worker first."""
        commands: list[events.Command] = []
        while self.line:
            # What one worker gets, any other of its kind with as many calls would get: to ask the first is enough.
            for place in self.crew.places:
                if call := self._next(place):
                    commands.append(call)
                    break
            else:
                break
        return commands

    def _next(self, place: tuple[str, int]) -> Call | None:
        """A call for the first worker of a kind that has so many and room for one more: its own videos come first."""
        number = self.crew.free(place)
        if number is None:
            return None
        kind, calls = place
        for status, becomes, single in SINGLES:
            video = self.line.first(status, kind) or self.line.first(status, None)
            if video and (status == "complete" or video.kind or self.kinds.has_room(kind)):
                return single(number, video.id) if self._give(number, [video], becomes) else None
        more_to_come = calls > 0 or bool(self.line.loading)
        batch = self.line.batch(kind, more_to_come) or self.line.batch(None, more_to_come)
        if not batch:
            return None
        ids = tuple(video.id for video in batch)
        return events.Advance(number, ids) if self._give(number, batch, "advancing") else None

    def _give(self, number: int, videos: list[Video], status: str) -> bool:
        """Put a call with these videos on a worker's list; False where they wait for a free one."""
        # A suspect is alone on its worker: a call queued beside its own would share the blame.
        suspects = any(video.is_suspect for video in videos)
        worker = self.crew.workers[number]
        if suspects and worker.calls:
            return False
        for video in videos:
            if video.kind != worker.kind:
                self.kinds.hold(video.id, worker.kind)
            self.line.put(video, status)
        self.crew.give(number, tuple(video.id for video in videos), alone=suspects)
        return True
