//! Memory that will be needed soon.

/// So many bytes are brought at once by the processors that we know.
const LINE: usize = 64;

/// Lets the processor bring what is at a place near, if it can.
#[inline(always)]
pub fn bring<T>(place: &T) {
    bring_line(std::ptr::from_ref(place).cast());
}

/// The same, for all of a stretch.
pub fn bring_all<T>(stretch: &[T]) {
    let begin = stretch.as_ptr().cast::<u8>();
    for place in (0..size_of_val(stretch)).step_by(LINE) {
        bring_line(begin.wrapping_add(place));
    }
}

#[inline(always)]
fn bring_line(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it reads nothing, and any address will do.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
