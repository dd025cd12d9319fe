"""Speed, memory and accuracy of jaxgrad beside its peers: `python -m benchmarks --help`, from the repository root.

Needs the extra `bench`; a peer that is not installed is named in the report and left out. A claim of speed is a
ratio to the best peer and to a limit of the machine, measured in the same rounds of the same process.

The kept results, all at once or a part at a time, and what is written from them, the README among it:

    python -m benchmarks --json benchmarks/results.json
    python -m benchmarks --json benchmarks/results.json --only newton head
    python -m benchmarks --readme

The kept report of accuracy, with every peer installed (`pip install '.[peers]'`):

    python -m benchmarks --only accuracy accuracy_divergences --markdown benchmarks/accuracy.md
"""
