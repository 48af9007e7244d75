"""The text machine: turns the model's "a new word may begin" into text tokens, word by word (family.md 2.3).

The model never chooses words. At every step it samples one token, and all that counts is whether this is NEW_WORD or
PAD; the machine answers with the token that is spoken and read instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class TokenIds:
    """Text tokens with a meaning. `card` counts the rows of the text embedding: tokenizer size plus the initial token."""

    card: int
    new_word: int = 0
    pad: int = 3
    main: int = 1
    other: int = 2
    zero: int = -1
    ungenerated: int = -2


@dataclass
class Entry:
    """A word, or without `tokens` a pause, whose `text` is how it was written. No new entry begins for `padding` steps once this one did."""

    tokens: list[int]
    text: str
    padding: int = 0


@dataclass
class State:
    """Where one utterance is.

    `entries` wait to be spoken; `queued` and `lookahead_queued` are tokens on their way into the two text streams;
    `remaining_padding` PADs may still follow each other, `forced_padding` must. `consumption_times` has the step of every
    entry, pauses included, `transcript` word and step, `pauses` the same of those that say how they were written. `end_step` is the step at which the text was found finished.
    """

    entries: deque[Entry]
    remaining_padding: int
    forced_padding: int
    queued: deque[int] = field(default_factory=deque)
    lookahead_queued: deque[int] = field(default_factory=deque)
    end_step: int | None = None
    consumption_times: list[int] = field(default_factory=list)
    transcript: list[tuple[str, int]] = field(default_factory=list)
    pauses: list[tuple[str, int]] = field(default_factory=list)

    def get_tokens_ahead(self, lookahead: int) -> list[int]:
        """Tokens of the `lookahead`-th word still waiting, pauses not counted; none if there are fewer."""
        for entry in self.entries:
            if entry.tokens:
                lookahead -= 1
                if not lookahead:
                    return entry.tokens
        return []

    def may_consume(self) -> bool:
        """Whether the next step may take an entry, whatever the model samples."""
        return not self.queued and self.forced_padding <= 0

    def knows_enough(self, lookahead: int) -> bool:
        """Whether taking an entry now gives what it would give with the whole text known (family.md 2.8)."""
        if self.entries and not self.entries[0].tokens:
            return True
        words = 0
        for entry in self.entries:
            words += bool(entry.tokens)
            if words > lookahead:
                return True
        return False


@dataclass
class StateMachine:
    """The rules. `second_stream_ahead`: words of look-ahead in a second text stream, 0 for models without one."""

    token_ids: TokenIds
    second_stream_ahead: int = 0
    max_padding: int = 6
    initial_padding: int = 2

    def new_state(self, entries: Iterable[Entry]) -> State:
        return State(deque(entries), self.initial_padding, self.initial_padding)

    def process(self, step: int, state: State, token: int) -> tuple[int, bool]:
        """The token read and spoken in place of the sampled `token`, and whether an entry was taken. Changes `state`."""
        ids = self.token_ids
        begins = token == ids.new_word
        if not state.may_consume():
            begins = False
        elif state.remaining_padding <= 0:
            begins = True

        consumed = begins and bool(state.entries)
        if begins:
            if consumed:
                begins = self._consume(step, state)
            else:
                # The end is marked once, and only models with a second stream were taught to see the mark.
                begins = bool(self.second_stream_ahead) and state.end_step is None
                if state.end_step is None:
                    state.end_step = step
        return self._output(state, begins), consumed

    def _consume(self, step: int, state: State) -> bool:
        """Take the next entry; true for a word, false for a pause."""
        entry = state.entries.popleft()
        state.consumption_times.append(step)
        if entry.tokens:
            state.transcript.append((entry.text, step))
            state.queued.extend(entry.tokens)
            if self.second_stream_ahead:
                state.lookahead_queued.extend(state.get_tokens_ahead(self.second_stream_ahead))
            state.remaining_padding = self.max_padding
        elif entry.text:
            state.pauses.append((entry.text, step))
        state.forced_padding = entry.padding
        return bool(entry.tokens)

    def _output(self, state: State, begins: bool) -> int:
        ids = self.token_ids
        if not begins:
            state.remaining_padding = max(0, state.remaining_padding - 1)
            state.forced_padding = max(0, state.forced_padding - 1)
        if not self.second_stream_ahead:
            return ids.new_word if begins else self._next_token(state)
        # Two streams in one integer (lm.md 2.3): NEW_WORD goes into the second one, so that the word begins at once.
        main, second = self._next_token(state), -1
        if begins:
            second = ids.new_word
        elif state.lookahead_queued:
            second = state.lookahead_queued.popleft()
        return (second + 1) * ids.card + main

    def _next_token(self, state: State) -> int:
        return state.queued.popleft() if state.queued else self.token_ids.pad
