import pytest
import torch

from modegpt.study.bench.kernels import AttentionCase, by_kind, kind_of, linear_timing
from modegpt.study.bench.timing import Timing, timed

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", "matrix product"),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16, ...>", "matrix product"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, ...>", "matrix product"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::...)", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128", "attention"),
        ("void at::native::index_elementwise_kernel<128, 4, ...>", "gather, scatter"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy_contig<...>", "copy"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<...>>>", "reduction"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<...>>", "elementwise"),
        ("triton_red_fused_add_mean_mul_pow_rsqrt_0", "fused by torch.compile"),
    ],
)
def test_kernels_are_sorted_by_name(name, kind):
    assert kind_of(name) == kind


def test_kernels_are_summed_by_kind():
    found = by_kind([("nvjet_a", 2, 0.5), ("gemm_b", 1, 0.25), ("flash_fwd_kernel", 1, 1.0)])
    assert found["kinds"]["matrix product"] == {"count": 3, "seconds": 0.75}
    assert found["kernels"] == 4 and found["kernel_seconds"] == 1.75
    assert found["attention_kernels"] == ["flash_fwd_kernel"] and found["longest"][0]["name"] == "flash_fwd_kernel"


def test_a_timing_is_shared_out_over_its_parts():
    assert Timing(8.0, 2.0, 4.0, 12.0, 5).per(4) == Timing(2.0, 0.5, 1.0, 3.0, 5)


def test_a_run_is_repeated_until_its_budget_is_spent():
    calls = []
    assert timed(lambda: calls.append(sum(range(1000))), CPU, budget=1).repeats == 20 == len(calls) - 1
    assert timed(lambda: calls.append(sum(range(1000))), CPU, budget=0).repeats == 3
    timing = timed(lambda: sum(range(1000)), CPU)
    assert 0 < timing.fastest <= timing.seconds <= timing.slowest


def test_a_product_takes_longer_with_more_channels():
    narrow, wide = (linear_timing(64, 256, channels, CPU, torch.float32) for channels in (8, 2048))
    assert narrow.fastest < wide.fastest


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_attention_sees_all_but_the_unwritten_end_of_a_static_cache(phase):
    case = AttentionCase(phase, batch=2, heads=3, context=6, query_key=8, value=4)
    (query, key, value), options = case.inputs(CPU, torch.float32)
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    assert found.shape == (2, 3, 6 if phase == "prefill" else 1, 4)
    key[:, :, -1], value[:, :, -1] = 9.0, 9.0  # the last token sees itself in a prompt; nobody sees an empty slot
    changed = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    assert torch.equal(found[:, :, :-1], changed[:, :, :-1])
    assert torch.equal(found[:, :, -1], changed[:, :, -1]) == (phase == "decode")
