//! Records of one partition as they lie in Kafka's batches, without an object for each.
//!
//! A client says where batches begin and decompresses them. Their check sums are compared here, and
//! the keys and values of their records found (the message format, version 2).

use crate::fold::Record;
use std::ops::Range;

/// How many bytes a batch's head has; its records follow.
const HEAD: usize = 61;

/// The bytes are not in the form that Kafka writes.
#[derive(Debug)]
pub struct Malformed;

/// Returns what is wrong with a whole batch, if anything is. Nothing of it is to be used before.
pub fn problem(batch: &[u8]) -> Option<&'static str> {
    let Some(head) = batch.get(..HEAD) else { return Some("it is too short") };
    if head[16] != 2 {
        return Some("it is of a form that no Kafka writes any more");
    }
    let sum = u32::from_be_bytes(head[17..21].try_into().expect("four bytes"));
    (sum != crc32c::crc32c(&batch[21..])).then_some("it fails its check sum")
}

/// Bytes that stay where they are as long as their owner lives.
pub trait Buffer {
    fn bytes(&self) -> &[u8];
}

struct Span {
    buffer: usize,
    offset: u64,
    key: Option<(usize, usize)>,
    value: Option<(usize, usize)>,
}

pub struct Records<B> {
    buffers: Vec<B>,
    spans: Vec<Span>,
}

impl<B: Buffer> Records<B> {
    pub fn new() -> Records<B> {
        Records { buffers: Vec::new(), spans: Vec::new() }
    }

    /// Adds the records of a batch without a `problem`, in offset order; those outside of `wanted`
    /// are left out.
    ///
    /// `payload` is what follows the head, decompressed, where that is not as it stands in `batch`.
    pub fn add(
        &mut self,
        wanted: &Range<u64>,
        batch: B,
        payload: Option<B>,
    ) -> Result<(), Malformed> {
        let head = batch.bytes().get(..HEAD).ok_or(Malformed)?;
        let base_offset = u64::from_be_bytes(head[..8].try_into().unwrap());
        let count = u32::from_be_bytes(head[57..].try_into().unwrap());
        let (buffer, begin) = match payload {
            Some(payload) => (payload, 0),
            None => (batch, HEAD),
        };
        let mut reader = Reader { bytes: buffer.bytes(), place: begin };
        for _ in 0..count {
            let length = reader.length()?;
            let end = reader.place.checked_add(length).ok_or(Malformed)?;
            reader.skip(1)?; // attributes, of which there are none
            reader.varint()?; // the time, relative to the batch's
            let delta = u64::try_from(reader.varint()?).map_err(|_| Malformed)?;
            let offset = base_offset.checked_add(delta).ok_or(Malformed)?;
            let (key, value) = (reader.bytes()?, reader.bytes()?);
            if end > reader.bytes.len() || reader.place > end {
                return Err(Malformed);
            }
            reader.place = end; // past the headers
            if wanted.contains(&offset) {
                self.spans.push(Span { buffer: self.buffers.len(), offset, key, value });
            }
        }
        self.buffers.push(buffer);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn get(&self, place: usize) -> Option<Record<'_>> {
        let span = self.spans.get(place)?;
        let bytes = self.buffers[span.buffer].bytes();
        let slice = |(begin, end): (usize, usize)| &bytes[begin..end];
        Some(Record { offset: span.offset, key: span.key.map(slice), value: span.value.map(slice) })
    }

    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len()).filter_map(|place| self.get(place))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl Reader<'_> {
    fn skip(&mut self, count: usize) -> Result<(), Malformed> {
        self.place = self.place.checked_add(count).ok_or(Malformed)?;
        if self.place > self.bytes.len() {
            return Err(Malformed);
        }
        Ok(())
    }

    /// Reads an integer of variable length, zigzag coded.
    fn varint(&mut self) -> Result<i64, Malformed> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.place).ok_or(Malformed)?;
            self.place += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
            }
        }
        Err(Malformed)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.varint()?).map_err(|_| Malformed)
    }

    /// Goes past bytes that begin with their length, -1 for none; returns where they are.
    fn bytes(&mut self) -> Result<Option<(usize, usize)>, Malformed> {
        let length = self.varint()?;
        if length == -1 {
            return Ok(None);
        }
        let begin = self.place;
        self.skip(usize::try_from(length).map_err(|_| Malformed)?)?;
        Ok(Some((begin, self.place)))
    }
}
