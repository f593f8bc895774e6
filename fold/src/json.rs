//! JSON as state is stored in it: written as msgspec writes it, and read back.

use crate::words;
use std::borrow::Cow;

/// Stored bytes are not what was written.
#[derive(Debug)]
pub struct Damaged;

pub fn write_string(text: &str, out: &mut Vec<u8>) {
    if is_plain(text) {
        return write_plain(text, out);
    }
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            control if control < b' ' => {
                out.extend_from_slice(format!("\\u{control:04x}").as_bytes());
            }
            other => out.push(other),
        }
    }
    out.push(b'"');
}

/// Returns whether a text is written as it is.
fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| (byte >= b' ') & (byte != b'"') & (byte != b'\\');
    let bytes = text.as_bytes();
    let Some(last) = bytes.last_chunk() else {
        return bytes.iter().all(|byte| plain(*byte));
    };
    words::of(bytes).chain([u64::from_le_bytes(*last)]).all(|word| {
        !words::has_less(word, b' ') && !words::has(word, b'"') && !words::has(word, b'\\')
    })
}

/// Writes a string that is written as it stands.
pub fn write_plain(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

pub fn write_integer(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Reads compact JSON that was written here or by msgspec.
pub struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, place: 0 }
    }

    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.place).copied()
    }

    /// Goes past a byte that must be next.
    pub fn expect(&mut self, byte: u8) -> Result<(), Damaged> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(Damaged)
        }
    }

    /// Goes past a byte if it is next; returns whether it was.
    pub fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.place += usize::from(found);
        found
    }

    pub fn end(&self) -> Result<(), Damaged> {
        if self.place == self.bytes.len() {
            Ok(())
        } else {
            Err(Damaged)
        }
    }

    pub fn null(&mut self) -> bool {
        let found = self.bytes[self.place..].starts_with(b"null");
        self.place += if found { 4 } else { 0 };
        found
    }

    pub fn integer(&mut self) -> Result<i64, Damaged> {
        let begin = self.place;
        while self.peek().is_some_and(|byte| byte == b'-' || byte.is_ascii_digit()) {
            self.place += 1;
        }
        let text = std::str::from_utf8(&self.bytes[begin..self.place]).map_err(|_| Damaged)?;
        text.parse().map_err(|_| Damaged)
    }

    pub fn optional_string(&mut self) -> Result<Option<Cow<'a, str>>, Damaged> {
        if self.null() {
            Ok(None)
        } else {
            self.string().map(Some)
        }
    }

    pub fn string(&mut self) -> Result<Cow<'a, str>, Damaged> {
        self.expect(b'"')?;
        let rest = &self.bytes[self.place..];
        let length = memchr::memchr2(b'"', b'\\', rest).ok_or(Damaged)?;
        let plain = std::str::from_utf8(&rest[..length]).map_err(|_| Damaged)?;
        self.place += length;
        if self.take(b'"') {
            return Ok(Cow::Borrowed(plain));
        }
        let mut text = plain.to_owned();
        loop {
            let rest = &self.bytes[self.place..];
            let length = memchr::memchr2(b'"', b'\\', rest).ok_or(Damaged)?;
            text.push_str(std::str::from_utf8(&rest[..length]).map_err(|_| Damaged)?);
            self.place += length;
            if self.take(b'"') {
                return Ok(Cow::Owned(text));
            }
            self.place += 1;
            text.push(self.escaped()?);
        }
    }

    fn escaped(&mut self) -> Result<char, Damaged> {
        let letter = self.peek().ok_or(Damaged)?;
        self.place += 1;
        Ok(match letter {
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'u' => {
                let digits = self.bytes.get(self.place..self.place + 4).ok_or(Damaged)?;
                self.place += 4;
                let digits = std::str::from_utf8(digits).map_err(|_| Damaged)?;
                let code = u32::from_str_radix(digits, 16).map_err(|_| Damaged)?;
                char::from_u32(code).ok_or(Damaged)?
            }
            b'"' | b'\\' | b'/' => letter as char,
            _ => return Err(Damaged),
        })
    }

    /// Goes past one value of any kind, and returns its bytes.
    pub fn raw(&mut self) -> Result<&'a [u8], Damaged> {
        let begin = self.place;
        let mut depth = 0;
        loop {
            match self.peek().ok_or(Damaged)? {
                b'"' => {
                    self.string()?;
                }
                b'[' | b'{' => {
                    depth += 1;
                    self.place += 1;
                }
                b']' | b'}' => {
                    depth -= 1;
                    self.place += 1;
                }
                _ => self.place += 1,
            }
            let at_end = match self.peek() {
                None | Some(b',' | b']' | b'}') => true,
                Some(_) => matches!(self.bytes[self.place - 1], b']' | b'}' | b'"'),
            };
            if depth == 0 && at_end {
                return Ok(&self.bytes[begin..self.place]);
            }
        }
    }
}
