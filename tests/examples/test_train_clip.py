"""The trainer of CLIPs: captions, pairs, what is found, and runs that resume to the last bit."""

from __future__ import annotations

import gzip
import io
import json
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trimtab as tt
from examples import fashion_mnist, train_clip
from examples.captions import ATTRIBUTES, describe, levels, measure
from examples.clip import CLIP, Bytes, ConvNet, TextTransformer, Words, named
from examples.clip_learning import numbers_of_batches, share_of_rate
from examples.pairs import Classes, FashionMNIST, Folder, Shards, open_pairs
from examples.retrieval import recall, retrieval, zero_shot
from tests.dist.launch import run_ranks

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (128, 128, 128)}
SMALL = ["--columns", "8", "--side", "16", "--batch", "8", "--epochs", "2", "--warm-up", "2", "--rate", "0.01"]


def images(num: int) -> list[tuple[str, Image.Image]]:
    """Return squares of a colour on white, each with a caption that says which and how large."""
    rng, found = np.random.default_rng(7), []
    for k in range(num):
        colour, side = list(COLOURS)[k % 4], int(rng.integers(4, 20))
        pixels = np.full((20, 24, 3), 255, np.uint8)
        pixels[:side, :side] = COLOURS[colour]
        found.append((f"a {colour} square of {side}", Image.fromarray(pixels)))
    return found


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pairs"
    for k, (caption, image) in enumerate(images(26)):
        part = path / str(k % 2)
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{k:03}.png").write_bytes(png(image))
        (part / f"{k:03}.txt").write_text(caption + "\n")
    Image.new("RGB", (5, 5)).save(path / "alone.png")
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    path = tmp_path / "shards"
    path.mkdir()
    for shard in (1, 0):
        with tarfile.open(path / f"{shard}.tar", "w") as tar:
            for k, (caption, image) in [*enumerate(images(26))][13 * shard : 13 * shard + 13]:
                if k % 3:
                    add(tar, f"./{k:03}.v1.txt", b"a file of another name")
                    add(tar, f"./{k:03}.txt", caption.encode())
                else:
                    add(tar, f"./{k:03}.json", json.dumps({"caption": caption, "width": 24}).encode())
                add(tar, f"./{k:03}.PNG", png(image))
            add(tar, f"no text {shard}.png", png(image))
    return path


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the files of Fashion-MNIST: 60 images of noise to train on, and 20 for tests."""
    rng = np.random.default_rng(0)
    for split, num in {"train": 60, "t10k": 20}.items():
        for name, shape in {"images-idx3": (num, 28, 28), "labels-idx1": (num,)}.items():
            head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
            data = rng.integers(0, 10 if len(shape) == 1 else 256, shape, np.uint8)
            (tmp_path / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(head + data.tobytes()))
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))


def test_captions_say_what_is_there():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 2:12, 4:10] = 210
    found = {name: float(value[0]) for name, value in measure(image).items()}
    assert found["brightness"] == 210 and found["contrast"] == 0
    assert (found["width"], found["height"], found["fullness"]) == (6, 10, 1)
    assert found["top"] == found["left"] == 1
    assert found["texture"] == pytest.approx(210 * 2 * (6 + 10) / (210 * 60))
    own = dict(zip(ATTRIBUTES, levels(image)[0], strict=True))
    assert list(own.values()) == [4, 0, 1, 0, 0, 3, 2, 2]
    caption = describe(image, ["bag"])[0]
    assert "bag" in caption
    assert sum(any(word in caption for word in ATTRIBUTES[name].words[level]) for name, level in own.items()) >= 5


def test_a_caption_depends_on_the_seed_and_its_own_image():
    noise = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    names = ["coat"] * 40
    assert describe(noise[:7], names[:7], seed=3) == describe(noise, names, seed=3)[:7]
    assert describe(noise, names, seed=3) != describe(noise, names, seed=4)
    assert levels(noise[:0]).shape == (0, len(ATTRIBUTES))


def test_folders_and_shards_hold_the_same_pairs(folder: Path, shards: Path):
    one, two = open_pairs(folder, 16), open_pairs(shards, 16)
    assert isinstance(one, Folder) and isinstance(two, Shards)
    assert len(one) == len(two) == 26
    assert two.captions(range(26)) == [caption for caption, _ in images(26)]
    order = [*range(0, 26, 2), *range(1, 26, 2)]  # of the folder: that of its paths
    assert one.captions(range(26)) == two.captions(order)
    assert torch.equal(one.images(range(26)), two.images(order))
    assert one.images([0]).shape == (1, 3, 16, 16)
    crops = [two.images([3], [np.random.default_rng(k)]) for k in (0, 0, 1)]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[1], crops[2])
    assert Shards([shards / "0.tar"], 16).captions([12]) == two.captions([12]), "shards behind it change no number"


def test_what_cannot_be_read_is_named(folder: Path, shards: Path, tmp_path: Path):
    (folder / "0" / "000.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"000\.png"):
        Folder(folder, 16).images([0])
    (tmp_path / "packed.tar").write_bytes(gzip.compress((shards / "0.tar").read_bytes()))
    with pytest.raises(ValueError, match="uncompressed tar"):
        open_pairs(tmp_path / "packed.tar", 16)
    with pytest.raises(ValueError, match="no images"):
        open_pairs(tmp_path / "shards", 16) if (shards / "0.tar").unlink() else Folder(shards, 16)
    with pytest.raises(ValueError, match="there is no"):
        open_pairs(tmp_path / "nowhere", 16)


def test_fashion_mnist(fashion: None):
    pairs = FashionMNIST("train", start=10, limit=20)
    pixels, labels = fashion_mnist.read("train")
    assert len(pairs) == 20 and pairs.labels.tolist() == labels[10:30].tolist()
    assert torch.equal(pairs.images([4]), torch.from_numpy(pixels[14][None, None]).float() / 127.5 - 1)
    moved = pairs.images([4] * 200, [np.random.default_rng(k) for k in range(200)])
    assert len(moved.unique(dim=0)) == 9
    assert any(torch.equal(one, pairs.images([4])[0]) for one in moved)
    assert torch.equal(moved[:, 0, 9:12, 9:12].amin(), pairs.images([4])[0, 0, 8:13, 8:13].amin())


def test_recall_counts_equal_captions_as_one_and_ties_as_lost():
    torch.manual_seed(0)
    queries, found = torch.randn(700, 4), torch.randn(700, 4)
    captions = [f"caption {k % 650}" for k in range(700)]
    scores, hits = queries @ found.T, 0
    for k in range(700):
        best = scores[k].argsort(descending=True)[:5]
        hits += any(captions[j] == captions[k] for j in best)
    assert recall(queries, found, captions)["R@5"] == pytest.approx(hits / 700)
    same = torch.ones(700, 4)
    assert recall(same, same, captions) == {"R@1": 0, "R@5": 0, "R@10": 0}
    assert recall(found[:9] * 0 + torch.eye(9, 4), torch.eye(9, 4), ["one"] * 9)["R@1"] == 1


def test_zero_shot_finds_the_class_whose_prompts_are_nearest(tmp_path: Path):
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.new("RGB", (9, 9), COLOURS[name]).save(tmp_path / name / f"{k}.png")
    labelled = Classes(tmp_path, 8)
    assert labelled.names == ["blue", "red"] and labelled.labels.tolist() == [0] * 3 + [1] * 3

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))[:, [2, 0]] + 1

    class Named(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.stack([(tokens == Words()([name])[0, 0]).any(1) for name in ("blue", "red")], 1).float()

    assert zero_shot(CLIP(Mean(), Named()), labelled, labelled.names, Words()) == 1
    assert zero_shot(CLIP(Mean(), Named()), labelled, ["red", "blue"], Words()) == 0


def test_tokens():
    words = Words(vocabulary=1000, context=4)
    tokens = words(["A dog, a cat", "dog"])
    assert tokens.shape == (2, 4) and tokens[1].tolist() == [tokens[0, 1].item(), 0, 0, 0]
    assert ((tokens >= 0) & (tokens < 1000)).all() and words([""]).tolist() == [[0]]
    assert Bytes(context=3)(["abcd", "é"]).tolist() == [[98, 99, 100], [196, 170, 0]]


def test_padding_changes_no_features():
    torch.manual_seed(0)
    encoder = TextTransformer(50, 12, 8).eval()
    tokens = torch.randint(1, 50, (3, 5))
    padded = torch.cat([tokens, torch.zeros(3, 7, dtype=torch.int64)], 1)
    torch.testing.assert_close(encoder(tokens), encoder(padded))
    assert encoder(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()
    for shape in ((1, 28, 28), (3, 224, 200), (1, 3, 3)):
        assert ConvNet(shape, 8)(torch.zeros(2, *shape)).shape == (2, 8)


def test_every_pair_is_seen_once_an_epoch():
    batches = numbers_of_batches(50, 8, seed=1, epoch=0)
    assert batches.shape == (6, 8) and len(batches.unique()) == 48
    assert not torch.equal(batches, numbers_of_batches(50, 8, seed=1, epoch=1))
    shares = [share_of_rate(step, 100, 10) for step in range(100)]
    assert shares[0] == 0.1 and max(shares) == shares[9] == shares[10] == 1 and 0 < shares[-1] < 0.001


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    train_clip.main([*SMALL, "--json", *map(str, arguments)])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def state(path: Path) -> dict[str, np.ndarray]:
    saved = tt.load(path)
    return {name: saved[name] for name in saved}


def assert_same(one: Path, two: Path) -> None:
    left, right = state(one), state(two)
    assert left.keys() == right.keys()
    for name in left:
        assert np.array_equal(left[name], right[name], equal_nan=True), name
    assert tt.load(one).report["metadata"] == tt.load(two).report["metadata"]


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(version, shards, tmp_path, capsys):
    """Steps 1 to 6 of two epochs, at once and in three pieces, one of them within an epoch."""
    common = ["--train", shards, "--test", shards / "1.tar", "--version", version]
    common += ["--image-encoder", f"{__name__}:dropping" if version == "v3" else "examples.clip:ConvNet"]
    whole = run(capsys, *common, "--checkpoint", tmp_path / "whole.tt")
    assert [found["step"] for found in whole] == [3, 6]
    assert whole[1]["image_to_text"].keys() == {"R@1", "R@5", "R@10"}
    parts = [
        run(capsys, *common, "--checkpoint", tmp_path / "parts.tt", "--stop-at", step, "--workers", workers)
        for step, workers in ((2, 0), (4, 1), (6, 0))
    ]
    assert [found for part in parts for found in part] == whole
    assert_same(tmp_path / "whole.tt", tmp_path / "parts.tt")
    assert any("log_u" in name for name in state(tmp_path / "whole.tt"))


def dropping(shape: tuple[int, int, int], columns: int) -> torch.nn.Module:
    """Return an encoder that draws from torch's generator."""
    return torch.nn.Sequential(ConvNet(shape, columns), torch.nn.Dropout(0.2))


def test_a_run_of_other_settings_is_not_resumed(shards, folder, tmp_path, capsys):
    path = tmp_path / "saved.tt"
    run(capsys, "--train", shards, "--checkpoint", path, "--stop-at", 1)
    for other in (["--train", folder], ["--train", shards, "--seed", 1], ["--train", shards, "--version", "v1"]):
        with pytest.raises(SystemExit, match="of another run: (seed|version|pairs) is"):
            run(capsys, *other, "--checkpoint", path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="train_clip"):
        run(capsys, "--train", shards, "--checkpoint", path)


def test_it_learns(folder, capsys):
    """Squares of four colours and sixteen sizes are told apart, far better than by chance."""
    found = run(capsys, "--train", folder, "--test", folder, "--epochs", 20, "--version", "v3", "--rho", 1)
    assert found[-1]["text_to_image"]["R@5"] > 0.6 and found[-1]["image_to_text"]["R@5"] > 0.6
    assert found[0]["loss"] != found[-1]["loss"]


def test_the_stand_in_needs_no_arguments(fashion, capsys):
    train_clip.main(["--epochs", "1", "--batch", "30", "--columns", "8", "--warm-up", "1"])
    said = capsys.readouterr()
    assert "zero-shot accuracy" in said.out and "R@10" in said.out and "pairs/s" in said.err
    model = CLIP(ConvNet((1, 28, 28), 8), TextTransformer(4096, 32, 8))
    found = retrieval(model, FashionMNIST("test"), Words())
    assert set(found) == {"image_to_text", "text_to_image"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image-encoder", "examples.clip:NoSuch"], "MODULE:NAME"),
        (["--batch", "1000"], "do not fill a batch"),
        (["--train", "/nowhere"], "there is no"),
        (["--rho", "nan"], "rho"),
    ],
)
def test_mistakes_are_told(arguments, words, folder, capsys):
    with pytest.raises(SystemExit, match=words):
        run(capsys, "--train", folder, *arguments)


def test_names():
    assert named("examples.clip:Words") is Words
    with pytest.raises(ValueError, match="MODULE:NAME"):
        named("Words")


@pytest.fixture
def ranks(shards, tmp_path, monkeypatch):
    """Run the example on two ranks; returns what rank 0 said."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)

    def start(path: Path, *arguments: str) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
        words = [*SMALL, "--train", str(shards), "--checkpoint", str(path), *arguments]
        return run_ranks("examples.train_clip", 2, *words, folder=tmp_path)[0]

    return start


def test_two_ranks_train_as_one_does(ranks, shards, tmp_path, capsys):
    """All but for rounding; and one does not go on where two stopped."""
    ranks(tmp_path / "two.tt", "--json")
    run(capsys, "--train", shards, "--checkpoint", tmp_path / "one.tt")
    alone, together = state(tmp_path / "one.tt"), state(tmp_path / "two.tt")
    for name in alone:
        if name.startswith("model/"):
            np.testing.assert_allclose(alone[name], together[name], rtol=1e-3, atol=1e-4, err_msg=name)
    with pytest.raises(SystemExit, match="ranks is 1 here and 2 there"):
        run(capsys, "--train", shards, "--checkpoint", tmp_path / "two.tt")


@pytest.mark.slow
def test_two_ranks_go_on_with_the_same_bits(ranks, tmp_path):
    whole, parts = tmp_path / "whole.tt", tmp_path / "parts.tt"
    ranks(whole)
    ranks(parts, "--stop-at", "4")
    assert "going on from step 4 of 6" in ranks(parts)
    assert_same(whole, parts)
