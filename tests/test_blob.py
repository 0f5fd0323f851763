import numpy as np
import pytest

from trimtab import blob


@pytest.mark.parametrize("size", [0, 5, blob._LARGE - 1, blob._LARGE, blob._LARGE + 4097])
def test_join_is_the_parts_one_after_another(size):
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    parts = [b"head", data[: size // 3].data, b"", data[size // 3 :].data]
    joined = blob.join(parts)
    assert type(joined) is bytes
    assert joined == b"".join(parts)
    assert hash(joined) == hash(b"".join(parts))


def test_join_holds_no_memory():
    resource = pytest.importorskip("resource")
    part = np.ones(blob._LARGE, np.uint8).data
    blob.join([part])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(200):
        blob.join([part])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB; a leak would be 800,000
