"""Train a small byte-level GPT with FSDP2: an ordinary script, with nothing of trimtab in it.

    torchrun --nproc-per-node 4 examples/train_gpt.py --steps 300 --checkpoint run1

The guide to sharded training shows the two lines that make it send a fraction of the bytes. The text is the source of
Python's standard library, unless `--text` names a file. With `--checkpoint` the same command goes on where it stopped.
"""

import argparse
import os
import sysconfig
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F  # noqa: N812


class GPT(nn.Module):
    """A decoder of bytes, of PyTorch's own layers: ``[batch, tokens]`` to ``[batch, tokens, 256]``."""

    def __init__(self, width: int, num_layers: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.position = nn.Embedding(context, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // 32, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(x).float()


def read(path: Path | None) -> torch.Tensor:
    """Return the text as bytes."""
    paths = [path] if path else sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in paths)), dtype=torch.uint8)


def sequences(text: torch.Tensor, context: int, num_rows: int, seed: int) -> torch.Tensor:
    """Return random pieces of the text, one byte longer than the context."""
    starts = torch.randint(len(text) - context, (num_rows, 1), generator=torch.Generator().manual_seed(seed))
    return text[starts + torch.arange(context + 1)].long()


def loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of the next byte, in nats."""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def main() -> None:
    """Train, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a file to train on (default: Python's standard library)")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4, help="sequences a rank and step (default 4)")
    parser.add_argument("--context", type=int, default=128, help="bytes of a sequence (default 128)")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="folder to save to every 100 steps, and to go on from")
    args = parser.parse_args()

    dist.init_process_group("gloo" if not torch.cuda.is_available() else "nccl")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if torch.cuda.is_available():
        torch.set_default_device(f"cuda:{os.environ['LOCAL_RANK']}")
    torch.manual_seed(args.seed)
    model = GPT(args.width, args.layers, args.context)
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, mp_policy=precision)
    fully_shard(model, mp_policy=precision)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    text = read(args.text)
    train, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    step = 0
    if args.checkpoint and (saved := list(args.checkpoint.glob("*/.metadata"))):
        step = max(int(path.parent.name) for path in saved)
        weights, optim = get_state_dict(model, optimizer)
        state = {"model": weights, "optim": optim}
        dcp.load(state, checkpoint_id=args.checkpoint / str(step))
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])

    begun, first = time.perf_counter(), step
    while step < args.steps:
        rows = sequences(train, args.context, args.batch * world_size, seed=args.seed * 1_000_003 + step)
        value = loss(model, rows[rank::world_size])
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if rank == 0 and (step % 20 == 0 or step == args.steps):
            seconds = (time.perf_counter() - begun) / (step - first)
            print(f"step {step}: loss {value.item():.4f}, {seconds:.3f} s a step", flush=True)
        if args.checkpoint and (step % 100 == 0 or step == args.steps):
            weights, optim = get_state_dict(model, optimizer)
            dcp.save({"model": weights, "optim": optim}, checkpoint_id=args.checkpoint / str(step))

    with torch.no_grad():
        rows = sequences(held_out, args.context, 8 * world_size, seed=0)
        value = loss(model, rows[rank::world_size])
    dist.all_reduce(value)
    if rank == 0:
        print(f"validation loss {value.item() / world_size:.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
