//! Records of one partition as they lie in Kafka's batches, without an object for each.
//!
//! A client reads a batch's head, compares its check sum and decompresses it. What is left is a row of
//! records (the message format, version 2), whose keys and values are found here.

use crate::fold::Record;

/// The records are not in the form that Kafka writes.
#[derive(Debug)]
pub struct Malformed;

struct Span {
    offset: u64,
    key: Option<(usize, usize)>,
    value: Option<(usize, usize)>,
}

#[derive(Default)]
pub struct Records {
    data: Vec<u8>,
    spans: Vec<Span>,
}

impl Records {
    /// Adds the records of a batch, in offset order; those before `start` are left out.
    pub fn add(
        &mut self,
        start: u64,
        base_offset: u64,
        count: usize,
        payload: &[u8],
    ) -> Result<(), Malformed> {
        let begin = self.data.len();
        self.data.extend_from_slice(payload);
        let mut reader = Reader { bytes: &self.data, place: begin };
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
            if offset >= start {
                self.spans.push(Span { offset, key, value });
            }
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn get(&self, place: usize) -> Option<Record<'_>> {
        let span = self.spans.get(place)?;
        let slice = |(begin, end): (usize, usize)| &self.data[begin..end];
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
