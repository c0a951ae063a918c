"""Collectives read from compiled programs of which they are known, and from GPU programs' text."""

import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dongwu_jax.parallel.mesh import make_mesh
from dongwu_jax.plan.compiler_warnings import capture_stderr, compile_quietly
from dongwu_jax.plan.hlo import CollectiveTotal, read_collectives, summarize_collectives

MESH = make_mesh({"pipe": 2, "data": 1, "fsdp": 2, "context": 1, "tensor": 2})


def _totals(function, *arguments, in_specs, out_specs) -> dict:
    """(calls, operand bytes) a device by (kind, axes) of a function on shards."""
    mapped = jax.shard_map(
        function, mesh=MESH, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    text = jax.jit(mapped).lower(*arguments).compile().as_text()
    totals = summarize_collectives(read_collectives(text, MESH))
    return {(total.kind, total.axes): (total.calls, total.operand_bytes) for total in totals}


def test_a_sum_over_two_axes() -> None:
    totals = _totals(
        lambda x: jax.lax.psum(x, ("pipe", "tensor")),
        jnp.ones((8, 6)),
        in_specs=PartitionSpec("fsdp"),
        out_specs=PartitionSpec("fsdp"),
    )
    assert totals == {("all-reduce", ("pipe", "tensor")): (1, 4 * 6 * 4)}


def test_a_loop_counts_each_of_its_rounds() -> None:
    def gather_each(weights: jax.Array) -> jax.Array:
        def body(total: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
            return jnp.sin(total @ jax.lax.all_gather(weight, "fsdp", tiled=True)), None

        return jax.lax.scan(body, jnp.ones((16, 16)), weights)[0]

    totals = _totals(
        gather_each,
        jnp.ones((5, 16, 16)),
        in_specs=PartitionSpec(None, "fsdp"),
        out_specs=PartitionSpec(),
    )
    assert totals == {("all-gather", ("fsdp",)): (5, 5 * 8 * 16 * 4)}


def test_loops_in_loops_multiply() -> None:
    def shift(x: jax.Array) -> jax.Array:
        def inner(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.sin(jax.lax.ppermute(x, "pipe", [(0, 1), (1, 0)])), None

        def outer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jax.lax.scan(inner, x, None, length=3)[0], None

        return jax.lax.scan(outer, x, None, length=4)[0]

    spec = PartitionSpec("pipe")
    totals = _totals(shift, jnp.ones((2, 32)), in_specs=spec, out_specs=spec)
    assert totals == {("collective-permute", ("pipe",)): (12, 12 * 32 * 4)}


def test_scatter_and_exchange() -> None:
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (
            jax.lax.psum_scatter(x, "tensor", tiled=True),
            jax.lax.all_to_all(x, "fsdp", split_axis=1, concat_axis=0, tiled=True),
        )

    totals = _totals(both, jnp.ones((4, 6)), in_specs=PartitionSpec(), out_specs=PartitionSpec())
    assert totals == {
        ("reduce-scatter", ("tensor",)): (1, 96),
        ("all-to-all", ("fsdp",)): (1, 96),
    }


GPU_PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=8

%body (p: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %p = (s32[], /*index=1*/bf16[64,128]{1,0}) parameter(0)
  %a = bf16[64,128]{1,0} get-tuple-element(%p), index=1
  %b = f32[32]{0} bitcast(%a)
  %ag = ((bf16[64,128]{1,0}, f32[32]{0}), (bf16[128,128]{1,0}, f32[64]{0})) all-gather-start(%a, %b), channel_id=1, replica_groups=GATHER, dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(f)/while/all_gather" stack_frame_id=16}, backend_config={"collective_backend_config":{"is_sync":true}}
  %agd = (bf16[128,128]{1,0}, f32[64]{0}) all-gather-done(%ag)
  ROOT %t = (s32[], bf16[64,128]{1,0}) tuple(%i, %a)
}

%condition (p: (s32[], bf16[64,128])) -> pred[] {
  %p = (s32[], bf16[64,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%async_computation (x: bf16[64,128]) -> bf16[32,128] {
  %x = bf16[64,128]{1,0} parameter(0)
  ROOT %rs = bf16[32,128]{1,0} reduce-scatter(%x), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, to_apply=%add
}

ENTRY %main (x: bf16[64,128]) -> bf16[64,128] {
  %x = bf16[64,128]{1,0} parameter(0)
  %w = (s32[], bf16[64,128]{1,0}) while(%x), condition=%condition, body=%body
  %alone = bf16[64,128]{1,0} all-reduce(%x), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %p = (bf16[64,128]{1,0}, bf16[64,128]{1,0}) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,6},{6,2},{3,7},{7,3}}
  %pd = bf16[64,128]{1,0} collective-permute-done(%p)
  %as = ((bf16[64,128]{1,0}), bf16[32,128]{1,0}, s32[]) async-start(%x), calls=%async_computation
  ROOT %asd = bf16[32,128]{1,0} async-done(%as)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    "groups",
    [
        "{{0,2},{1,3},{4,6},{5,7}}",
        "[4,2]<=[2,2,2]T(0,2,1)",
        "mesh['pipe'=2,'fsdp'=2,'tensor'=2] {'fsdp'}",
        "mesh['a'=8] {'a':(2)2}",
        "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(2)2}",
        "mesh['a'=2,'b'=4], device_ids=(0,2,1,3,4,6,5,7) {'b':(2)2}",
    ],
)
def test_gpu_program(groups: str) -> None:
    totals = summarize_collectives(read_collectives(GPU_PROGRAM.replace("GATHER", groups), MESH))
    block = 64 * 128 * 2
    assert totals == [
        CollectiveTotal("all-gather", ("fsdp",), "bf16", 7, 7 * block, 14 * block, 7 * block),
        CollectiveTotal("collective-permute", ("pipe",), "bf16", 1, block, block, block),
        CollectiveTotal("reduce-scatter", ("tensor",), "bf16", 1, block, block // 2, block // 2),
        CollectiveTotal("all-gather", ("fsdp",), "f32", 7, 7 * 128, 7 * 256, 7 * 128),
    ]


def test_an_all_reduce_sends_everything_twice() -> None:
    text = GPU_PROGRAM.replace("{{0},{1},{2},{3},{4},{5},{6},{7}}", "{}")
    text = text.replace("GATHER", "[4,2]<=[8]")
    (found,) = [c for c in read_collectives(text, MESH) if c.kind == "all-reduce"]
    assert found.axes == ("pipe", "fsdp", "tensor")
    assert found.wire_bytes == 2 * 64 * 128 * 2 * 7 // 8


def test_a_text_that_is_no_program() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        read_collectives("HloModule jit_f", MESH)


def _complaints_of_a_lookup(*token_axes: str | tuple[str, ...] | None) -> list[str]:
    def across(*axes: str | tuple[str, ...] | None) -> NamedSharding:
        return NamedSharding(MESH, PartitionSpec(*axes))

    lookup = jax.jit(lambda table, tokens: table[tokens], out_shardings=across("pipe"))
    table = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=across(("pipe", "fsdp"), "tensor"))
    tokens = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=across(*token_axes))
    return compile_quietly(lookup.lower(table, tokens))[1]


def test_replicating_a_whole_array_is_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    complaints = _complaints_of_a_lookup(None, ("pipe", "fsdp"))
    assert complaints
    assert all("ull rematerialization" in complaint for complaint in complaints)
    assert _complaints_of_a_lookup("pipe") == []
    assert not capfd.readouterr().err


def _log_and_raise() -> None:
    with capture_stderr():
        os.write(2, b"the reason\n")
        raise RuntimeError


def test_what_was_caught_is_shown_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError):
        _log_and_raise()
    assert capfd.readouterr().err == "the reason\n"
