"""The kernels for GPUs: equal to tiles where Triton's interpreter runs them on this CPU, whole for the GPUs that are about, and
equal on a GPU where there is one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from notan.losses import fused
from notan.losses.info_nce import info_nce, info_nce_bank, symmetric_info_nce

LOSSES = {
    "one way": lambda q, k, tau: info_nce(q, k, tau=tau, positive=torch.arange(len(q), device=q.device)).mean(),
    "rows count unequally": lambda q, k, tau: (info_nce(q, k, tau=tau, positive=torch.arange(len(q), device=q.device).flip(0))
                                               * torch.linspace(-1, 2, len(q), device=q.device)).sum(),
    "bank": lambda q, k, tau: info_nce_bank(q, k[: len(q)], k, tau=tau).mean(),
    "both ways": lambda q, k, tau: symmetric_info_nce(q, k[: len(q)], tau=tau).mean(),
}
SHAPES = [(3, 5, 4), (70, 131, 24), (33, 64, 128), (17, 40, 300)]       # N, M, D: none of whole blocks, and both sizes of block


def compared(device: str, *dtypes: torch.dtype) -> None:
    """Values and gradients by kernels and in float64 by tiles."""
    for n, m, d in SHAPES:
        for dtype in dtypes:
            for name, loss in LOSSES.items():
                for tau in (0.02, 0.5):
                    g = torch.Generator().manual_seed(n)
                    q, k = (torch.randn(rows, d, generator=g).to(device, dtype) for rows in (n, m))
                    q[1] = 0
                    with torch.no_grad():
                        k[0] = q[0]                                     # a pair that is found
                    given = [q.requires_grad_(), k.requires_grad_(), torch.tensor(tau, device=device, requires_grad=True)]
                    exact = [x.detach().double().requires_grad_() for x in given]
                    a, b = loss(*given), loss(*exact)
                    assert a.item() == pytest.approx(b.item(), rel=1e-4, abs=1e-4), (name, n, m, d, dtype, tau)
                    for x, y in zip(torch.autograd.grad(a, given), torch.autograd.grad(b, exact)):
                        assert (x.double() - y).abs().max() <= 0.01 * y.abs().max() + 1e-6, (name, n, m, d, dtype, tau)


def test_the_kernels_equal_tiles_in_the_interpreter():
    pytest.importorskip("triton")                                     # its interpreter takes bfloat16 for whole numbers
    script = ("import torch\nfrom notan.losses import fused\nimport test_losses_fused as t\n"
              "fused.pays = lambda x, y: x.dtype in fused.HALF\nt.compared('cpu', torch.float16)\nprint('equal')\n")
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=Path(__file__).parent,
                          capture_output=True, text=True, timeout=600)
    assert done.stdout.endswith("equal\n"), done.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("d", [64, 256, 1024])
def test_the_kernels_compile_for_gpus(capability, d):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from notan.losses import kernels

    shape = fused.blocks(d)
    warps = shape.pop("num_warps")
    for kernel, more in ((kernels.log_sums, {}), (kernels.pulls, {"BY_ROWS": True, "BY_COLUMNS": True})):
        constants = {**shape, **more}
        types = {name: "constexpr" if name in constants else "*bf16" if name in "xy" else "i32" if name in "NMD" else "*fp32"
                 for name in kernel.arg_names}
        made = triton.compile(ASTSource(kernel, types, constexprs=constants), target=GPUTarget("cuda", capability, 32),
                              options={"num_warps": warps})
        assert made.metadata.shared <= 99 * 1024 and len(made.asm["ptx"]) > 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_kernels_equal_tiles_on_a_gpu():
    pytest.importorskip("triton")
    assert fused.pays(*(torch.zeros(2, 4, dtype=torch.float16, device="cuda"),) * 2)
    compared("cuda", torch.float16, torch.bfloat16)


def test_tiles_do_it_elsewhere():
    q = torch.zeros(2, 4, dtype=torch.float16)
    assert not fused.pays(q, q)
