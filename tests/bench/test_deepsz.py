from __future__ import annotations

import copy
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from bench import deepsz, frontier, pruned
from bench.harness import Options
from bench.networks import RECIPES, Images, Split, Trained
from bench.tables import deepsz_tables
from trimtab.compact.pruning import keep_rates, prune


@pytest.fixture(scope="module")
def trained() -> Trained:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = RECIPES["LeNet-300-100"].make()
    sparse = copy.deepcopy(dense)
    prune(sparse, keep_rates(sparse, 0.05), None, 1)
    return Trained(dense.eval(), sparse.eval(), 1.0)


@pytest.fixture(scope="module")
def images(trained) -> Images:
    """Noise, labelled as the pruned network does."""
    x = torch.randn(1200, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        labels = trained.pruned(x).argmax(1)
    return Images(*(Split(x[a : a + 300], labels[a : a + 300]) for a in range(0, 1200, 300)))


def test_run_measures_everything(trained, images):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    record = deepsz.run({"LeNet-300-100": [trained]}, images, Options("deepsz", quick=True, num_rounds=1))
    torch.set_num_threads(threads)
    (case,) = record.data["subjects"]["LeNet-300-100"]["cases"]
    assert case["check_drop_pruned"] <= case["budget"] == deepsz.HEADLINE
    assert case["ratio"] == 266_610 * 4 / case["file_bytes"]
    assert record.metrics["LeNet-300-100/cases_within"].value == 1
    assert record.metrics["LeNet-300-100/rivals/Deep Compression_times"].value > 1
    assert len(record.bars) == 7
    tables = deepsz_tables(record)
    assert "| 0.3 pt |" in tables
    assert "Elias-Fano" in tables
    chart = ET.fromstring(frontier.draw(record))
    circles = [node for node in chart.iter() if node.tag.endswith("circle")]
    assert len(circles) == 2 + 2  # the key, and a case on two splits


def test_entropies():
    assert pruned.entropy_bytes(np.repeat([3, 5], 40)) == 10
    assert pruned.entropy_bytes(np.zeros(9)) == pruned.entropy_bytes(np.empty(0)) == 0
    mask = np.zeros((6, 64), bool)
    mask[:, ::8] = True
    assert pruned.gap_entropy_bytes(mask) < 2
    assert pruned.elias_fano_bytes(mask) == (48 * 3 + 48 + 48) / 8


def test_huffman_codes_are_the_shortest():
    assert pruned.huffman_bytes(np.repeat([0, 1, 2, 3], [8, 4, 2, 2]), 4) == (8 + 8 + 6 + 6 + 4 * 2 + 7) // 8
    assert pruned.huffman_bytes(np.zeros(80, int), 32) == 10 + 4
    symbols = np.random.default_rng(0).geometric(0.2, 5000)
    assert 0 <= pruned.huffman_bytes(symbols, 64) - 64 * 5 / 8 - pruned.entropy_bytes(symbols) < 0.03 * symbols.size / 8
    mask = np.zeros((6, 64), bool)
    mask[:, ::8] = True
    assert pruned.gap_huffman_bytes(mask) == (48 + 16) // 8  # gaps of 7 zeros, in 4 bits


def test_byte_gaps_hold_any_distance():
    mask = np.zeros(2000, bool)
    places = [0, 1, 256, 700, 1999]
    mask[places] = True
    found, at = [], -1
    for gap in pruned.byte_gaps(mask).tolist():
        at += gap if gap == 255 else gap + 1
        if gap != 255:
            found.append(at)
    assert found == places


def test_deep_compression_shares_few_values():
    x = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    x[abs(x) < 1] = 0
    ways = pruned.deep_compression({"w": x})
    coded = ways["entropies"]
    assert coded.value_bytes < ways["Huffman"].value_bytes < 1.05 * coded.value_bytes + 40
    assert coded.place_bytes < ways["Huffman"].place_bytes < 1.05 * coded.place_bytes + 40
    assert np.unique(coded.weights["w"]).size <= 33
    assert ((coded.weights["w"] != 0) == (x != 0)).all()
    assert abs(coded.weights["w"] - x).max() < 0.2
    assert coded.num_bytes < x.nbytes / 8
