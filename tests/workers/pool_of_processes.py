"""Append from processes of ``multiprocessing``: ``pool_of_processes.py STORE METHOD PROCESSES APPENDS``.

The parent has a runtime on the same store open all the while. Prints every number that anybody was told.
All log to one file, STORE.log.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings

import logmark

warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
SESSION = "s"


def log_to(path: str) -> None:
    logmark.logs.configure(json=True, stream=open(path, "a", encoding="utf-8"))  # noqa: SIM115 - to the very end


def append(store: str, count: int) -> list[int]:
    log_to(f"{store}.log")
    with logmark.open(store) as runtime:
        session = runtime.session(SESSION)
        return [session.append("child", number) for number in range(count)]


def main() -> None:
    store, method, processes, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    log_to(f"{store}.log")
    with logmark.open(store) as runtime:
        session = runtime.session(SESSION)
        told = [session.append("parent")]
        with multiprocessing.get_context(method).Pool(processes) as pool:
            waiting = [pool.apply_async(append, (store, count)) for _ in range(processes)]
            told += [session.append("parent") for _ in range(count)]
            for each in waiting:
                told += each.get(60)
            pool.close()
            pool.join()
        told.append(session.append("parent"))
    sys.stdout.writelines(f"{seq}\n" for seq in told)


if __name__ == "__main__":
    main()
