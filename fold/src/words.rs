//! Bytes looked at eight at a time: most strings are so short that a call takes longer.

const EACH: u64 = u64::MAX / 0xff; // a one in each byte
const HIGHEST: u64 = EACH * 0x80;

/// Returns the whole words of bytes, their first byte lowest.
pub fn of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
}

/// Returns whether any byte of a word is below a limit of at most 0x80.
pub fn has_less(word: u64, limit: u8) -> bool {
    word.wrapping_sub(EACH * u64::from(limit)) & !word & HIGHEST != 0
}

/// Returns whether any byte of a word is this one.
pub fn has(word: u64, byte: u8) -> bool {
    has_less(word ^ (EACH * u64::from(byte)), 1)
}

/// Returns where a byte first is in ASCII.
pub fn find(ascii: &[u8], byte: u8) -> Option<usize> {
    for (place, word) in of(ascii).enumerate() {
        // Below 0x80 no byte carries into the next: the highest bit stays 0 where they are equal.
        let others = (word ^ (EACH * u64::from(byte))) + EACH * 0x7f;
        let equal = !others & HIGHEST;
        if equal != 0 {
            return Some(8 * place + equal.trailing_zeros() as usize / 8);
        }
    }
    let whole = ascii.len() - ascii.len() % 8;
    Some(whole + ascii[whole..].iter().position(|found| *found == byte)?)
}
