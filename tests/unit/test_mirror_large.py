"""A large file is told in a thread of its own where that is asked for: it holds up nothing else."""

from __future__ import annotations

import json
import os
import threading
import time

from jupyter_mlops.runtime import mirror
from jupyter_mlops.runtime.jobfolder import JobFolder, private_folder

SIZE = 40 * mirror.PIECE


def test_what_is_small_overtakes_it(tmp_path):
    folder = JobFolder(private_folder(str(tmp_path / "job")))
    for place in (folder.attempt(1).path, folder.journal, folder.outputs):
        private_folder(place)
    big = os.path.join(folder.outputs, "big")
    with open(big, "wb") as f:
        f.truncate(SIZE)
    os.utime(big, (1.0, 1.0))  # nobody writes to it any more
    told_end, here_begin = os.pipe()
    hear_end, said_begin = os.pipe()
    with (open(here_begin, "wb") as out, open(told_end, "rb") as told, open(hear_end, "rb") as hear,
          open(said_begin, "wb", buffering=0) as say):
        one = mirror.Mirror(folder.path, 1, out)
        one.aside = True
        threading.Thread(target=one.listen, args=(iter(hear.readline, b""),), daemon=True).start()
        running = threading.Thread(target=one.run, daemon=True)
        running.start()
        pieces, order, count = [], [], 0
        until = time.monotonic() + 60
        while len(pieces) < SIZE // mirror.PIECE or "journal/x.bin" not in order:
            assert time.monotonic() < until
            head, body = mirror.HEAD.unpack(told.read(mirror.HEAD.size))
            header = json.loads(told.read(head))
            told.read(body)
            count += 1
            order.append(header.get("file"))
            if header.get("file") == "outputs/big":
                pieces.append(header["at"])
                if len(pieces) == 3:
                    with open(os.path.join(folder.journal, "x.bin"), "wb") as f:
                        f.write(b"x" * mirror.BURST)
                time.sleep(0.02)
            say.write(b'{"got": %d}\n' % count)
        assert pieces == list(range(0, SIZE, mirror.PIECE)), "each piece once, and in order"
        assert order.index("journal/x.bin") < len(order) - 5, "it did not wait for the end of the file"
        say.write(b'{"ping": true}\n')
        while "pong" not in header:
            head, body = mirror.HEAD.unpack(told.read(mirror.HEAD.size))
            header = json.loads(told.read(head))
            told.read(body)
        say.close()
        running.join(10)
        assert not running.is_alive() and one.have["outputs/big"][0] == SIZE
