"""Our loader beside its peers, in one run: `python -m benchmarks.loader`, once `--setup` has installed them.

Every loader delivers the same thing: uint8 batches of 64 images, 3 x 224 x 224, after RandomResizedCrop and a flip,
from the same images on a warm page cache, with as many workers as there are cores. Each is measured in a fresh process,
round after round (A B C A B C ...), and compared with ours of the same round.

    environment.py   the peers' own environment        measure.py    one loader, in its own process
    dataset.py       the images, in each format        process.py    starting such a process, memory of its tree
    contest.py       what every loader implements      planning.py   10^9 samples, egress
    decoding.py      bytes -> pixels, theirs and ours  faults.py     worker killed, disk full, server gone
    fastest.py       the far limit of decoding         rows.py       what was measured so far
    peers/           one file a loader                 report.py     rows -> results/loader.md
"""
