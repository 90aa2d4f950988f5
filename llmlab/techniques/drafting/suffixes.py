"""Every pattern of a text that grows: what suffix matching looks things up in."""

from __future__ import annotations

WALK = 64
"""Patterns counted per token, longest first; a text that says one word all the time has as many as tokens."""


class Suffixes:
    """Every pattern of a text, how often it occurs and what follows it: a suffix automaton (Blumer et al., 1985).

    It grows by a token in constant time, on average. A state stands for the patterns that end at the same places, of
    which the longest has `length` tokens; its `link` is the longest shorter pattern that ends in more places. State 0
    is the empty pattern.
    """

    def __init__(self) -> None:
        self.length, self.link, self.count, self.seen = [0], [-1], [0], [0]
        self.next: list[dict[int, int]] = [{}]
        self.last = 0

    def _state(self, length: int, link: int, count: int, after: dict[int, int]) -> int:
        self.length.append(length)
        self.link.append(link)
        self.count.append(count)
        self.seen.append(0)
        self.next.append(after)
        return len(self.length) - 1

    def append(self, token: int) -> None:
        s, new = self.last, self._state(self.length[self.last] + 1, 0, 0, {})
        while s >= 0 and token not in self.next[s]:
            self.next[s][token] = new
            s = self.link[s]
        if s >= 0:
            known = self.next[s][token]
            if self.length[known] > self.length[s] + 1:  # its shorter patterns now end in one place more: part them
                twin = self._state(self.length[s] + 1, self.link[known], self.count[known], dict(self.next[known]))
                while s >= 0 and self.next[s].get(token) == known:
                    self.next[s][token] = twin
                    s = self.link[s]
                self.link[known] = known = twin
            self.link[new] = known
        s, self.last = new, new
        for _ in range(WALK):
            if s <= 0:
                break
            self.count[s] += 1
            self.seen[s] = self.length[new]
            s = self.link[s]

    def patterns(self, least: int) -> list[int]:
        """The ends of the text that occur earlier too, longest first, none shorter than `least` tokens."""
        found: list[int] = []
        s = self.link[self.last]
        while s > 0 and self.length[s] >= least and len(found) < WALK:
            found.append(s)
            s = self.link[s]
        return found
