//! Memory that will be needed soon.

/// So many bytes are brought at once by the processors that we know.
const LINE: usize = 64;

/// Lets the processor bring what is at a place near, if it can.
#[inline(always)]
pub fn bring<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it reads nothing, and any address will do.
    unsafe {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// The same, for all of a stretch.
pub fn bring_all(bytes: &[u8]) {
    bytes.chunks(LINE).for_each(|line| bring(&line[0]));
}
