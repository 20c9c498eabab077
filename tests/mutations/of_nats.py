"""The safeguards of the NATS engine."""

from __future__ import annotations

from safeguard import Safeguard

__all__ = ["OF_NATS"]

APPEND = "storage/_nats_append.py"
LINK = "storage/_nats_link.py"
MESSAGE = "storage/_nats_message.py"
READER = "storage/_nats_reader.py"
RECORDS = "storage/_nats_records.py"
STORE = "storage/_nats.py"
STREAM = "storage/_nats_stream.py"
VERIFY = "storage/_nats_verify.py"
AWAY = ("tests/test_nats_away.py",)
SERVER = ("tests/test_nats_server.py",)
CONTRACT = ("tests/test_conformance_nats.py",)


OF_NATS = (
    # -- compare and append ------------------------------------------------------------------------------------------
    Safeguard(
        "a message that got in while nobody heard of it is found",
        APPEND,
        "        if stored.body == body:  # its id is in it\n            return stored.seq\n",
        "",
        AWAY,
    ),
    Safeguard(
        "an answer that did not come leaves a doubt",
        APPEND,
        "                in_doubt, reason = True, str(error)\n",
        "                reason = str(error)\n",
        AWAY,
    ),
    Safeguard(
        "what was refused by what was known is asked about again",
        APPEND,
        "            newer = state if is_fresh else self._reader.tail(session_id, deadline)\n",
        "            newer = state\n",
        CONTRACT,
    ),
    Safeguard(
        "nothing is written behind a part that is in doubt",
        APPEND,
        "                if failed is not None:\n",
        "                if False:\n",
        AWAY,
    ),
    Safeguard(
        "ids that others have written are read",
        APPEND,
        "        if ids.covered < state.at:\n",
        "        if not ids.covered:\n",
        CONTRACT,
    ),
    Safeguard(
        "an id in the pruned part of a message is a new one",
        APPEND,
        " and seq >= state.first_available",
        "",
        SERVER,
    ),
    # -- what counts -------------------------------------------------------------------------------------------------
    Safeguard(
        "an orphan does not count",
        MESSAGE,
        '        if members["after"] != stored.expected:\n            return None\n',
        "",
        SERVER,
    ),
    Safeguard("a clone does not count", MESSAGE, "if stored.expected is None or", "if", SERVER),
    Safeguard("rows are checked", MESSAGE, '!= members["rows"]:', '== "":', SERVER),
    Safeguard(
        "a log that has become shorter is noticed",
        READER,
        "            if state.at >= before.at and state.through >= before.through:\n                known.note",
        "            if True:\n                known.note",
        AWAY,
    ),
    Safeguard(
        "missing events are reported",
        READER,
        "            raise damage or self._missing(session_id, wanted, last)\n",
        "            return\n",
        SERVER,
    ),
    Safeguard(
        "what lies before a number is not read",
        READER,
        "            at = low + 1 + max(0, min(share, span - 1))\n",
        "            at = low + 1\n",
        SERVER,
    ),
    Safeguard(
        "a repair gives no number again",
        VERIFY,
        "        scan.missing.append((scan.state.through + 1, through))\n",
        "        pass\n",
        AWAY,
    ),
    Safeguard(
        "a record that was replaced is not replaced unseen",
        RECORDS,
        "            if found != version:\n",
        "            if False:\n",
        CONTRACT,
    ),
    Safeguard("what is pruned is removed", STORE, "before=first or state.said_at)", "before=1)", SERVER),
    # -- the connection ----------------------------------------------------------------------------------------------
    Safeguard(
        "who waits on a lost connection is told",
        LINK,
        "        self._fail_questions(_reason(error))\n",
        "",
        AWAY,
    ),
    Safeguard(
        "a server that answers nothing is left",
        LINK,
        " and self._heard_at < question.sent_at:\n",
        " and False:\n",
        AWAY,
    ),
    Safeguard(
        "hints are asked for on every connection",
        LINK,
        "                    await _subscribe(client, subject, self._hint)\n",
        "                    pass\n",
        AWAY,
    ),
    Safeguard(
        "after a lost connection anything may have been missed",
        LINK,
        "        self._tell(None)\n        return client\n",
        "        return client\n",
        AWAY,
    ),
    Safeguard(
        "a child lets go of the connection",
        LINK,
        "                os.dup2(nothing, side.fileno())\n",
        "                pass\n",
        AWAY,
    ),
    # -- settings ----------------------------------------------------------------------------------------------------
    Safeguard(
        "a server that does not sync is refused",
        STREAM,
        '            if not settings.get("sync_always"):\n',
        "            if False:\n",
        SERVER,
    ),
)
