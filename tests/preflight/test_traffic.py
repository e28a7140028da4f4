"""Bytes of device memory that a program moves, against XLA's own count and against programs made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from binwrn_jax.preflight.traffic import moved_bytes


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return jax.jit(function).lower(*arguments).compile()


def convolutions(x, kernel):
    for _ in range(3):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.maximum(x - jnp.mean(x, (0, 1, 2), keepdims=True), 0)
    return jnp.sum(x, (1, 2))


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x: jnp.sin(x) + 1, [((1000, 1000), np.float32)]),
        (lambda x, y: x @ y, [((300, 400), np.float32), ((400, 500), np.float32)]),
        (convolutions, [((8, 32, 32, 16), np.float32), ((3, 3, 16, 16), np.float32)]),
    ],
)
def test_the_count_is_that_of_xla(function, shapes):
    program = compiled(function, *shapes)
    assert moved_bytes(program.as_text()) == pytest.approx(
        program.cost_analysis()["bytes accessed"], rel=0.03
    )


def test_a_batch_that_is_selected_is_not_the_whole_set():
    def step(data, indices):
        return data[indices].astype(jnp.float32) * 2

    program = compiled(step, ((50_000, 3072), np.uint8), ((128,), np.int32))
    batch = 128 * 3072
    assert 5 * batch <= moved_bytes(program.as_text()) < 12 * batch < 50_000 * 3072


def test_loops_count_for_each_round():
    def loop(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(y @ y), x)

    once, often = (
        moved_bytes(compiled(f, ((200, 200), np.float32)).as_text()) for f in (lambda x: jnp.sin(x @ x), loop)
    )
    assert 6.5 * once < often < 9.5 * once


TEXT = """HloModule step

%fused (p.0: f32[100,10], p.1: s32[]) -> f32[1,10] {
  %p.0 = f32[100,10]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,10]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,10}
}

%body (state: (s32[], f32[100,10])) -> (s32[], f32[100,10]) {
  %state = (s32[], f32[100,10]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %all = f32[100,10]{1,0} get-tuple-element(%state), index=1
  %select = f32[1,10]{1,0} fusion(%all, %i), kind=kLoop, calls=%fused
  ROOT %next = (s32[], f32[100,10]{1,0}) tuple(%i, %all)
}

ENTRY %main (a: f32[100,10]) -> f32[100,10] {
  %a = f32[100,10]{1,0} parameter(0)
  %start = s32[] constant(0)
  %t = (s32[], f32[100,10]{1,0}) tuple(%start, %a)
  %conv = (f32[100,10]{1,0}, u8[64]{0}) custom-call(%a, %a), custom_call_target="__cudnn$convForward"
  ROOT %loop = (s32[], f32[100,10]{1,0}) while(%t), condition=%less, body=%body
}
"""


def test_a_program_made_by_hand():
    convolution = 2 * 4000 + 4000 + 64
    one_round = 40 + 40 + 4  # the row, read and written, and its number
    assert moved_bytes(TEXT, rounds=5) == convolution + 5 * one_round
    known = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert moved_bytes(known, rounds=5) == convolution + 3 * one_round
