//! The little mathematics a moving picture needs.

use core::arch::x86_64::{_mm_cvtss_f32, _mm_set_ss, _mm_sqrt_ss};

/// Square root.
pub fn sqrt(value: f32) -> f32 {
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(value))) }
}

/// Sine of an angle in turns, good to a thousandth.
pub fn sin(turns: f32) -> f32 {
    // Into [-0.5, 0.5), then a parabola, bent towards the sine.
    let whole = (turns + 0.5) as i32 as f32;
    let whole = if turns + 0.5 < whole { whole - 1.0 } else { whole };
    let t = turns - whole;
    let parabola = 8.0 * t - 16.0 * t * t.abs();
    parabola + 0.225 * (parabola * parabola.abs() - parabola)
}

/// Cosine of an angle in turns.
pub fn cos(turns: f32) -> f32 {
    sin(turns + 0.25)
}
