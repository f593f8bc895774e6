//! Exact decimal amounts: an integer, and how many of its digits are a fraction. Nothing rounds.
//!
//! Amounts enter as text of at most 38 digits (contract, section 2), products have twice as many, and
//! sums grow without end. What fits 128 bits is computed there; the rest by big integers.

use num_bigint::{BigInt, Sign};
use std::cmp::Ordering;

const POWERS: [i128; 39] = {
    let mut powers = [1i128; 39];
    let mut n = 1;
    while n < 39 {
        powers[n] = powers[n - 1] * 10;
        n += 1;
    }
    powers
};

/// 10 to this power is the largest that 64 bits hold.
const SMALL_PLACES: u32 = 18;

/// Of so many bytes, a text has no more digits than 64 bits hold.
const SMALL_LENGTH: usize = SMALL_PLACES as usize;

/// The same of 128 bits.
const LARGEST_PLACES: usize = POWERS.len() - 1;

#[derive(Clone, Debug)]
pub enum Amount {
    /// `digits` / 10^`scale`.
    Small { digits: i128, scale: u32 },
    /// The same, for what does not fit.
    Large { digits: Box<BigInt>, scale: u32 },
}

pub const ZERO: Amount = Amount::Small { digits: 0, scale: 0 };

impl Amount {
    /// Returns the amount that a decimal text without exponent names, or None for any other text.
    pub fn parse(text: &str) -> Option<Amount> {
        let unsigned = text.strip_prefix('-').unwrap_or(text).as_bytes();
        let negative = unsigned.len() < text.len();
        if unsigned.len() <= SMALL_LENGTH {
            let mut digits = 0i64;
            let mut point = None;
            for (place, byte) in unsigned.iter().enumerate() {
                match byte {
                    b'0'..=b'9' => digits = digits * 10 + i64::from(byte - b'0'),
                    b'.' if point.is_none() => point = Some(place),
                    _ => return None,
                }
            }
            let scale = point.map_or(0, |point| unsigned.len() - point - 1);
            let has_digits = unsigned.len() > usize::from(point.is_some());
            let digits = i128::from(if negative { -digits } else { digits });
            return has_digits.then_some(Amount::Small { digits, scale: scale as u32 });
        }
        let point = memchr::memchr(b'.', unsigned).unwrap_or(unsigned.len());
        let (whole, fraction) = unsigned.split_at(point);
        let fraction = fraction.get(1..).unwrap_or_default();
        let all = whole.iter().chain(fraction);
        if !all.clone().all(u8::is_ascii_digit) {
            return None;
        }
        let scale = fraction.len() as u32;
        if whole.len() + fraction.len() <= LARGEST_PLACES {
            let digits = all.fold(0i128, |sum, byte| sum * 10 + i128::from(byte - b'0'));
            let digits = if negative { -digits } else { digits };
            return Some(Amount::Small { digits, scale });
        }
        let bytes: Vec<u8> = all.copied().collect();
        let digits = BigInt::parse_bytes(&bytes, 10)?;
        Some(Amount::of_big(if negative { -digits } else { digits }, scale))
    }

    fn of_big(digits: BigInt, scale: u32) -> Amount {
        match i128::try_from(&digits) {
            Ok(digits) => Amount::Small { digits, scale },
            Err(_) => Amount::Large { digits: Box::new(digits), scale },
        }
    }

    fn big(&self) -> (BigInt, u32) {
        match self {
            Amount::Small { digits, scale } => (BigInt::from(*digits), *scale),
            Amount::Large { digits, scale } => ((**digits).clone(), *scale),
        }
    }

    /// Returns both as integers of one scale, where they fit.
    fn aligned(&self, other: &Amount) -> Option<(i128, i128, u32)> {
        let (Amount::Small { digits: a, scale: s }, Amount::Small { digits: b, scale: t }) =
            (self, other)
        else {
            return None;
        };
        match s.cmp(t) {
            Ordering::Equal => Some((*a, *b, *s)),
            Ordering::Less => Some((scaled(*a, t - s)?, *b, *t)),
            Ordering::Greater => Some((*a, scaled(*b, s - t)?, *s)),
        }
    }

    fn aligned_big(&self, other: &Amount) -> (BigInt, BigInt, u32) {
        let ((a, s), (b, t)) = (self.big(), other.big());
        let scale = s.max(t);
        let ten = BigInt::from(10);
        (a * ten.pow(scale - s), b * ten.pow(scale - t), scale)
    }

    pub fn add(&self, other: &Amount) -> Amount {
        if let Some((a, b, scale)) = self.aligned(other) {
            if let Some(digits) = a.checked_add(b) {
                return Amount::Small { digits, scale };
            }
        }
        let (a, b, scale) = self.aligned_big(other);
        Amount::of_big(a + b, scale)
    }

    /// Adds to this amount.
    pub fn increase(&mut self, by: &Amount) {
        // Most sums have more places than what comes to them, or as many.
        if let (Amount::Small { digits, scale }, Amount::Small { digits: more, scale: places }) =
            (&mut *self, by)
        {
            let more = scale.checked_sub(*places).and_then(|places| scaled(*more, places));
            if let Some(sum) = more.and_then(|more| digits.checked_add(more)) {
                *digits = sum;
                return;
            }
        }
        *self = self.add(by);
    }

    pub fn subtract(&self, other: &Amount) -> Amount {
        self.add(&other.negated())
    }

    pub fn multiply(&self, other: &Amount) -> Amount {
        if let (Amount::Small { digits: a, scale: s }, Amount::Small { digits: b, scale: t }) =
            (self, other)
        {
            if let Some(digits) = a.checked_mul(*b) {
                return Amount::Small { digits, scale: s + t };
            }
        }
        let ((a, s), (b, t)) = (self.big(), other.big());
        Amount::of_big(a * b, s + t)
    }

    pub fn negated(&self) -> Amount {
        match self {
            Amount::Small { digits, scale } if *digits != i128::MIN => {
                Amount::Small { digits: -digits, scale: *scale }
            }
            _ => {
                let (digits, scale) = self.big();
                Amount::of_big(-digits, scale)
            }
        }
    }

    /// Returns how the amount compares to 0.
    pub fn sign(&self) -> Ordering {
        match self {
            Amount::Small { digits, .. } => digits.cmp(&0),
            Amount::Large { digits, .. } => match digits.sign() {
                Sign::Minus => Ordering::Less,
                Sign::NoSign => Ordering::Equal,
                Sign::Plus => Ordering::Greater,
            },
        }
    }

    pub fn is_zero(&self) -> bool {
        self.sign() == Ordering::Equal
    }

    pub fn compare(&self, other: &Amount) -> Ordering {
        if let Some((a, b, _)) = self.aligned(other) {
            return a.cmp(&b);
        }
        let (a, b, _) = self.aligned_big(other);
        a.cmp(&b)
    }

    /// Returns the amount, or 0 where it is below.
    pub fn at_least_zero(self) -> Amount {
        if self.sign() == Ordering::Less {
            ZERO
        } else {
            self
        }
    }

    /// Writes the one canonical text: no exponent, no trailing zeros, no `-0`.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Amount::Small { digits, scale } => {
                let mut buffer = itoa::Buffer::new();
                let magnitude = digits.unsigned_abs();
                let text = match u64::try_from(magnitude) {
                    Ok(small) => buffer.format(small),
                    Err(_) => buffer.format(magnitude),
                };
                write_digits(*digits < 0, text, *scale as usize, out);
            }
            Amount::Large { digits, scale } => {
                let text = digits.magnitude().to_str_radix(10);
                write_digits(digits.sign() == Sign::Minus, &text, *scale as usize, out);
            }
        }
    }

    pub fn plain(&self) -> String {
        let mut out = Vec::new();
        self.write(&mut out);
        String::from_utf8(out).expect("digits are ASCII")
    }
}

fn scaled(digits: i128, places: u32) -> Option<i128> {
    if places <= SMALL_PLACES {
        if let Ok(digits) = i64::try_from(digits) {
            // One multiplication, of which the product always fits.
            return Some(i128::from(digits) * i128::from(POWERS[places as usize] as i64));
        }
    }
    digits.checked_mul(*POWERS.get(places as usize)?)
}

fn write_digits(negative: bool, digits: &str, scale: usize, out: &mut Vec<u8>) {
    let trailing = digits.bytes().rev().take_while(|byte| *byte == b'0').count();
    let dropped = trailing.min(scale);
    if digits == "0" {
        out.push(b'0');
        return;
    }
    if negative {
        out.push(b'-');
    }
    let (digits, scale) = (&digits[..digits.len() - dropped], scale - dropped);
    if scale == 0 {
        out.extend_from_slice(digits.as_bytes());
    } else if digits.len() > scale {
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        out.extend_from_slice(whole.as_bytes());
        out.push(b'.');
        out.extend_from_slice(fraction.as_bytes());
    } else {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + scale - digits.len(), b'0');
        out.extend_from_slice(digits.as_bytes());
    }
}
