"""A sink that keeps what it is given."""

from collections import defaultdict


class Recorder:
    "Keeps every result."

    def __init__(self):
        self.results, self.closed = [], 0

    def write(self, result):
        self.results.append(result)

    def close(self):
        self.closed += 1

    def by_source(self):
        found = defaultdict(list)
        for r in self.results:
            found[r.frame.source_id].append(r)
        return found
