from __future__ import annotations

import time

import pytest

from trimtab import waiting


def test_time_is_added_up():
    before = waiting.total_seconds()
    waiting.add(1.5)
    with waiting.for_data():
        time.sleep(0.01)
    assert waiting.total_seconds() - before == pytest.approx(1.51, abs=0.2)
    assert waiting.total_seconds() - before >= 1.51


def test_listeners_hear_the_beginning_and_the_end():
    heard: list[tuple[int, int]] = []
    stop = waiting.listen(lambda since, waited: heard.append((since, waited)))
    with pytest.raises(KeyError), waiting.for_data():
        assert len(heard) == 1
        assert heard[0][0] > 0
        raise KeyError
    assert heard[1][0] == 0
    assert heard[1][1] > 0
    stop()
    stop()
    waiting.add(1)
    assert len(heard) == 2
