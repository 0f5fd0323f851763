"""What passes between the stages of a pipeline: in one process, and by real ranks under torch's own schedules."""

from __future__ import annotations

import pytest
import torch

from tests.dist.launch import run_ranks
from trimtab.codecs.taco import Float8
from trimtab.comm import PipelineReceive, PipelineSend
from trimtab.errors import PayloadError, ShapeError, UsageError

RANKS = "tests.comm.pipeline_ranks"
SHAPE = (3, 5, 7)


def boundary(**settings) -> tuple[PipelineSend, PipelineReceive]:
    return PipelineSend(SHAPE, **settings), PipelineReceive(SHAPE, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("codec", "allowed"), [("exact", 0.0), ("fp8", 0.05), ("int8", 0.02), (Float8(scales=1), 0.05)]
)
def test_values_and_gradients_pass(codec, allowed, dtype):
    send, receive = boundary(codec=codec, dtype=dtype)
    for seed in range(3):
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()
        message = send(x)
        arrived = message.detach().clone().requires_grad_()  # as on another rank
        assert message.dtype == torch.float32 and message.shape == send.example.shape == receive.example.shape
        y = receive(arrived)
        assert y.dtype == dtype and (y - x).norm() <= allowed * x.norm()
        gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(10 + seed)).to(dtype)
        y.backward(gradient)
        message.backward(arrived.grad)
        assert (x.grad - gradient).norm() <= allowed * gradient.norm()


def test_patterns_of_nan_pass_unchanged():
    send, receive = boundary(codec="exact", dtype=torch.float32)
    words = torch.randint(-(2**31), 2**31 - 1, SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    words[0, 0, :3] = torch.tensor([0x7F800001, 0x7FC12345, -0x7FFFFF])  # signalling, quiet, negative
    x = words.to(torch.int32).view(torch.float32).requires_grad_()
    arrived = send(x).detach().requires_grad_()
    y = receive(arrived)
    assert torch.equal(y.view(torch.int32), x.view(torch.int32))
    y.backward(x.detach())
    assert torch.equal(arrived.grad.view(torch.int32)[10:], arrived.view(torch.int32)[10:]), "the payload of both is x"


def test_messages_are_checked():
    send, receive = boundary()
    x = torch.ones(SHAPE)
    with pytest.raises(PayloadError, match="between stages 0 and 1 .*damaged.*input_args and output_args"):
        receive(torch.zeros(send.example.shape))
    receive = PipelineReceive(SHAPE)
    bits = send(x).view(torch.int32).clone()
    bits[12] ^= 1 << 7
    with pytest.raises(PayloadError, match="checksum"):
        receive(bits.view(torch.float32))
    with pytest.raises(PayloadError, match="sequence 1; expected 2"):
        receive(PipelineSend(SHAPE)(x))
    with pytest.raises(PayloadError, match="settings"):
        PipelineReceive(SHAPE, codec="fp8-1", group=64)(PipelineSend(SHAPE, codec="fp8", group=128)(x))
    with pytest.raises(ShapeError, match=r"\(3, 5, 7\)"):
        send(torch.ones(3, 5, 8))
    with pytest.raises(ShapeError, match="float64"):
        PipelineSend(SHAPE, dtype=torch.float64)
    with pytest.raises(UsageError, match="fp4"):
        PipelineSend(SHAPE, codec="fp4")
    assert "boundary=0" in repr(send)


def test_schedules(tmp_path):
    run_ranks(RANKS, 2, "schedules", str(tmp_path), folder=tmp_path)


@pytest.mark.slow
def test_tensor_data_and_pipeline(tmp_path):
    run_ranks(RANKS, 8, "cube", str(tmp_path), folder=tmp_path, timeout=280)
