"""Every bound of a gateway, in one place."""

from __future__ import annotations

import dataclasses

from ..protocol import InvalidArgument

__all__ = ["GatewayLimits"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """The bounds of one gateway; units are the last word of each name.

    Raises:
        InvalidArgument: a bound is not positive (``history_pause_s`` may be 0).
    """

    connections_max: int = 2048
    """Sockets at a time, those that have not said hello included; a further one is closed at once."""
    principal_connections_max: int = 1024
    """Connections of one principal."""
    principal_sessions_max: int = 16_384
    """Sessions of one principal that are connected or can be resumed (section 14 of the ARCP draft)."""
    principal_jobs_max: int = 1024
    """Jobs of one principal that have not ended."""
    session_subscriptions_max: int = 256
    """Jobs that one session follows at a time."""
    handshake_wait_s: float = 10.0
    """Longest wait for the opening handshake, and again for ``session.hello``."""
    frame_bytes_max: int = 1024 * 1024
    """Bytes of one incoming frame."""
    depth_max: int = 60
    """Nesting of containers in one incoming payload."""
    event_bytes_max: int = 1024 * 1024 - 16 * 1024
    """JSON bytes of one event's payload; published clients refuse frames of 1 MiB."""
    chunk_bytes_max: int = 48 * 1024
    """Bytes of ``data`` in one ``result_chunk``: the line stays under the 64 KiB that clients read over stdio."""
    result_bytes_max: int = 256 * 1024 * 1024
    """Bytes of one streamed result (section 14)."""
    list_jobs_max: int = 1000
    """Jobs in one ``session.jobs``."""
    list_bytes_max: int = 512 * 1024
    """Bytes of the jobs in one ``session.jobs``."""
    control_frames_max: int = 1024
    """Control frames that wait for a slow reader; one more and it is disconnected."""
    control_bytes_max: int = 8 * 1024 * 1024
    """Bytes of these frames."""
    queue_events_max: int = 512
    """Events held in memory for one connection; beyond it, it reads from the log."""
    queue_bytes_max: int = 1024 * 1024
    """Bytes of these events."""
    send_buffer_bytes: int = 64 * 1024
    """Send buffer of the operating system for one socket: what a control frame can stand behind."""
    stall_wait_s: float = 10.0
    """Longest time that one frame may take to be written; then the client is disconnected and may resume."""
    heartbeat_interval_s: float = 30.0
    """Interval of section 6.4 of the ARCP draft; after two silent ones the connection is given up."""
    resume_window_s: float = 600.0
    """How long a session can be resumed after its connection has ended."""
    retention_s: float = 24 * 3600.0
    """How long ended jobs and their idempotency keys are remembered."""
    facts_max: int = 16_384
    """Facts of one principal before what still matters is written anew, so that a start has little to read."""
    history_pause_s: float = 0.02
    """Pause between ``job.subscribed`` and the events behind it; published clients drop what comes in one burst."""
    lag_events_max: int = 1000
    """Events that an acknowledging client may be behind before a ``back_pressure`` status says so."""
    jobs_running_max: int = 32
    """Threads that run agents."""
    jobs_queued_max: int = 1024
    """Jobs that wait for one of them."""
    jobs_abandoned_max: int = 64
    """Further threads, for agents that run on behind the end of their jobs."""
    cancel_grace_s: float = 1.0
    """How long a cancelled agent may take to return before its job ends without it."""
    forward_threads_max: int = 2
    """Threads that copy the events of subscribed jobs."""
    forward_events_max: int = 256
    """Events copied in one append."""
    tick_interval_s: float = 0.25
    """How often deadlines, heartbeats and other processes' facts are looked at."""
    instance_beat_s: float = 5.0
    """How often a process with running jobs says that it lives, for those who cannot see it."""
    instance_silence_s: float = 20.0
    """After which silence a process on another host counts as dead, and its jobs are ended."""
    close_wait_s: float = 10.0
    """Longest wait of ``Gateway.close`` for running jobs."""

    def __post_init__(self) -> None:
        """Refuse bounds that are not positive."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            wanted = float if field.name.endswith("_s") else int
            least_ok = value == 0 if field.name == "history_pause_s" else False
            if isinstance(value, bool) or not isinstance(value, wanted | int) or not (value > 0 or least_ok):
                message = f"GatewayLimits.{field.name} must be a positive {wanted.__name__}, not {value!r}"
                raise InvalidArgument(message)
        if self.instance_silence_s < 2 * self.instance_beat_s:
            raise InvalidArgument("GatewayLimits.instance_silence_s must be at least twice instance_beat_s")
