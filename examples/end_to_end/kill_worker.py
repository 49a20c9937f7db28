"""Kills one worker of a fleet while it refines, as a machine's memory or an operator might.

    python examples/end_to_end/kill_worker.py http://127.0.0.1:8265

Prints one line: who was killed. Ends without a kill when no worker comes up within three minutes.
"""

import os
import signal
import sys
import time

from ray.util.state import list_actors

SECONDS_TO_WAIT = 180
SECONDS_AT_WORK = 8  # before it is killed: long enough to have read its clips and begun


def main(address: str) -> None:
    until = time.monotonic() + SECONDS_TO_WAIT
    seen: dict[str, float] = {}  # workers that are alive, and since when
    while time.monotonic() < until:
        alive = [("class_name", "=", "Refiner"), ("state", "=", "ALIVE")]
        now = time.monotonic()
        actors = {actor.actor_id: actor.pid for actor in list_actors(address=address, filters=alive, detail=True)}
        seen = {actor: seen.get(actor, now) for actor in actors}
        for actor, since in seen.items():
            if now - since >= SECONDS_AT_WORK:
                os.kill(actors[actor], signal.SIGKILL)
                print(f"process {actors[actor]}, a worker of the fleet, was killed while it worked")
                return
        time.sleep(0.5)
    sys.exit("no worker of a fleet came up")


if __name__ == "__main__":
    main(sys.argv[1])
