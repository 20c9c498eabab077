"""The safeguards of rows, cursors, coalesced streams and upcasters."""

from __future__ import annotations

from safeguard import Safeguard

__all__ = ["OF_READERS"]

TABLE = "protocol/_row_table.py"
FOLD = "actors/_fold.py"
ACTOR = "actors/_rows.py"
ROWS = "src/logmark/_session_rows.py"
CURSOR = "src/logmark/_cursor.py"
COALESCING = "src/logmark/_coalescing.py"
UPCASTERS = "protocol/_upcasters.py"
POSITIONS = ("tests/test_row_positions.py",)
ROW_TABLE = ("tests/test_row_table.py",)
CURSORS = ("tests/test_durable_cursors.py",)
STREAMS = ("tests/test_coalescing.py",)
PAYLOADS = ("tests/test_upcasters.py",)


OF_READERS = (
    # -- rows ---------------------------------------------------------------------------------------------------------
    Safeguard(
        "a row of which only changes are kept stands where they say",
        TABLE,
        "        position = change.position\n        if position is None or self._is_taken(position):\n",
        "        position = None\n        if position is None:\n",
        POSITIONS,
    ),
    Safeguard(
        "no two rows stand in one place",
        TABLE,
        "        if position is None or self._is_taken(position):\n",
        "        if position is None:\n",
        ROW_TABLE,
    ),
    Safeguard(
        "a row that was pruned and is made again is a new one, also for who still knows the old one",
        TABLE,
        "            is_new = change.position is None and change.absent_at >= known.last_seq\n",
        "            is_new = False\n",
        POSITIONS,
    ),
    Safeguard(
        "who comes second in making a row does not make another",
        TABLE,
        "            is_new = change.position is None and change.absent_at >= known.last_seq\n",
        "            is_new = change.position is None\n",
        POSITIONS,
    ),
    Safeguard(
        "rows whose content was pruned are not shown",
        ROWS,
        "        index.prune(info.first_available, info.last_seq)\n",
        "",
        POSITIONS,
    ),
    Safeguard(
        "numbers that no event has are pruned with the others",
        TABLE,
        "self.last_seq < min(first_available - 1, through_seq):",
        "self.last_seq < first_available - 1:",
        POSITIONS,
    ),
    Safeguard(
        "rows from before the first that is known are shown in their places",
        TABLE,
        "        if self._late or self._has_gaps:\n",
        "        if self._has_gaps:\n",
        ROW_TABLE,
    ),
    Safeguard(
        "the place of a row that is gone is given up",
        TABLE,
        "        if self._late or self._has_gaps:\n",
        "        if self._late:\n",
        ROW_TABLE,
    ),
    Safeguard(
        "a row that is brought back is where it was",
        TABLE,
        "        return any(self._places.get(self._ids[place]) == place for place in places)\n",
        "        return len(places) > 0\n",
        ROW_TABLE,
    ),
    Safeguard(
        "where a row began outlives the event that began it",
        TABLE,
        "            if row.position < first_kept <= row.last_seq:\n",
        "            if False:\n",
        POSITIONS,
    ),
    Safeguard(
        "a pruning that fails leaves what the last one had kept",
        TABLE,
        "            elif row.position < first_available <= row.last_seq:\n",
        "            elif False:\n",
        POSITIONS,
    ),
    Safeguard(
        "a page includes every upsert that has returned",
        ROWS,
        "        if index is None or not index.includes(seq):\n",
        "        if index is None or not index.includes(0):\n",
        POSITIONS,
    ),
    Safeguard(
        "an upsert of a row that was just made knows of it",
        ROWS,
        "        if mark is None and through_seq < self._upserted_seq:",
        "        if False:",
        STREAMS,
    ),
    Safeguard(
        "an index that a failure has left behind is not used any more",
        ACTOR,
        "        self._index.retire()\n        self._index = RowIndex()\n",
        "        self._index = RowIndex()\n",
        POSITIONS,
    ),
    Safeguard(
        "the rows of a halted or deleted session are not shown from memory",
        ROWS,
        "        if info.halted is not None or info.deleted:\n",
        "        if False:\n",
        POSITIONS,
    ),
    Safeguard(
        "a page reads its own events and no others",
        ROWS,
        "_NEIGHBOURS_SEQS_MAX = 16",
        "_NEIGHBOURS_SEQS_MAX = 1 << 60",
        POSITIONS,
    ),
    Safeguard(
        "a cold open begins with what was kept",
        FOLD,
        "            kept = self._load_kept() if from_seq == 1 else None\n",
        "            kept = None\n",
        POSITIONS,
    ),
    Safeguard(
        "a fold that is behind a pruning goes on behind it",
        FOLD,
        "            except SeqPruned as pruned:\n",
        "            except ZeroDivisionError as pruned:\n",
        POSITIONS,
    ),
    # -- cursors ------------------------------------------------------------------------------------------------------
    Safeguard(
        "an acknowledgement never goes back",
        CURSOR,
        "        while seq > kept.seq:\n",
        "        while True:\n",
        CURSORS,
    ),
    Safeguard(
        "an acknowledgement that somebody overtakes looks again",
        CURSOR,
        "                kept = self._load()\n                continue\n",
        "                return seq\n",
        CURSORS,
    ),
    Safeguard(
        "nothing beyond the log is acknowledged",
        CURSOR,
        "        self._check_not_ahead(seq)\n        found_id",
        "        found_id",
        CURSORS,
    ),
    Safeguard(
        "a cursor ahead of the log is told so",
        CURSOR,
        "        self._check_not_ahead(kept.seq)\n",
        "",
        CURSORS,
    ),
    Safeguard(
        "a cursor of a log that has grown again is told so",
        CURSOR,
        "        if found_id is not None and found_id != kept.event_id:\n",
        "        if False:\n",
        CURSORS,
    ),
    Safeguard(
        "an event of another log is not acknowledged",
        CURSOR,
        "        if given_id is not None and found_id is not None and given_id != found_id:\n",
        "        if False:\n",
        CURSORS,
    ),
    Safeguard(
        "a subscription from a cursor does not skip what was pruned",
        CURSOR,
        "        if kept.seq + 1 < first_available:\n",
        "        if False:\n",
        CURSORS,
    ),
    # -- coalesced streams --------------------------------------------------------------------------------------------
    Safeguard(
        "the first change of a row is not left out",
        COALESCING,
        " and change.position is not None and not change.final:",
        " and not change.final:",
        STREAMS,
    ),
    Safeguard(
        "a final change of a row is not left out",
        COALESCING,
        " and change.position is not None and not change.final:",
        " and change.position is not None:",
        STREAMS,
    ),
    Safeguard(
        "a change of another job replaces nothing",
        COALESCING,
        "        change = None if job_id is not None and event.job_id != job_id else row_change(event)\n",
        "        change = row_change(event)\n",
        STREAMS,
    ),
    Safeguard(
        "what comes before damage is seen before it",
        COALESCING,
        "        except Exception as error:  # what came before the damage is to be seen before it\n",
        "        except ZeroDivisionError as error:\n",
        STREAMS,
    ),
    # -- upcasters ----------------------------------------------------------------------------------------------------
    Safeguard(
        "an upcaster that fails half-way is given the same again",
        UPCASTERS,
        "            payload = copy.deepcopy(payload)",
        "            pass",
        PAYLOADS,
    ),
    Safeguard(
        "what is shown says the version that it is shown in",
        UPCASTERS,
        "        return fields._replace(extensions={**fields.extensions, TYPE_VERSION: shown})\n",
        "        return fields\n",
        PAYLOADS,
    ),
    Safeguard(
        "no payload is upcast twice",
        UPCASTERS,
        "        if self._upcast:\n",
        "        if False:\n",
        PAYLOADS,
    ),
)
