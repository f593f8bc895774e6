//! Digests: the chain over a log, and the sum over a state's entries (`ledger/digests.py`).

use sha2::{Digest, Sha256};

pub type Chain = [u8; 32];

const WORDS: usize = 32;

/// Returns the log digest after one more record.
pub fn chain(previous: &Chain, offset: u64, key: Option<&[u8]>, value: Option<&[u8]>) -> Chain {
    let mut head = [0; 44];
    head[..32].copy_from_slice(previous);
    head[32..40].copy_from_slice(&offset.to_be_bytes());
    head[40..].copy_from_slice(&key.map_or(NONE, length));
    let mut hash = Sha256::new();
    hash.update(head);
    hash.update(key.unwrap_or_default());
    hash.update(value.map_or(NONE, length));
    hash.update(value.unwrap_or_default());
    hash.finalize().into()
}

const NONE: [u8; 4] = (-1i32).to_be_bytes();

fn length(bytes: &[u8]) -> [u8; 4] {
    i32::try_from(bytes.len()).expect("Kafka's own limit").to_be_bytes()
}

/// How many bytes are hashed before the key of an entry.
pub const BEFORE_KEY: usize = 4;

/// Writes an entry's key, and before it what is hashed there.
pub fn write_key(key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&length(key));
    out.extend_from_slice(key);
}

/// A number modulo 2^2048: the hash of one stored entry, or the sum of many.
#[derive(Clone, Copy)]
pub struct Sum([u64; WORDS]);

impl Sum {
    pub const ZERO: Sum = Sum([0; WORDS]);

    pub fn of_entry(key: &[u8], value: &[u8]) -> Sum {
        let mut entry = Vec::with_capacity(BEFORE_KEY + key.len() + value.len());
        write_key(key, &mut entry);
        entry.extend_from_slice(value);
        Sum::of_written(&entry)
    }

    /// Returns that of an entry that was written: by `write_key`, and its value behind it.
    pub fn of_written(entry: &[u8]) -> Sum {
        let mut bytes = [0u8; WORDS * 8];
        blake3::Hasher::new().update(entry).finalize_xof().fill(&mut bytes);
        Sum::of_bytes(&bytes)
    }

    fn of_bytes(bytes: &[u8; WORDS * 8]) -> Sum {
        let mut words = [0; WORDS];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        }
        Sum(words)
    }

    pub fn add(&mut self, other: &Sum) {
        let mut carry = false;
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            let (sum, first) = word.overflowing_add(*more);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*word, carry) = (sum, first | second);
        }
    }

    pub fn subtract(&mut self, other: &Sum) {
        let mut borrow = false;
        for (word, less) in self.0.iter_mut().zip(&other.0) {
            let (rest, first) = word.overflowing_sub(*less);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            (*word, borrow) = (rest, first | second);
        }
    }

    /// Returns the number in little-endian bytes.
    pub fn to_bytes(self) -> [u8; WORDS * 8] {
        let mut bytes = [0; WORDS * 8];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Sum> {
        Some(Sum::of_bytes(bytes.try_into().ok()?))
    }
}
