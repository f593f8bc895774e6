//! Facts: what a record stated, as state keeps it (`ledger/projections/entries.py`).
//!
//! In memory a fact is its stored form: a JSON array of the record's offset, the venue's time and the
//! texts of the event. Few facts are ever looked into again.

use crate::amount::Amount;
use crate::event::{Busted, Filled, Placed, Terms, Transfer};
use crate::json::{write_plain, write_string, Damaged, Reader};
use std::borrow::Cow;

pub type Fact = Box<[u8]>;

#[derive(Clone, Copy)]
enum Part<'a> {
    Text(&'a str),
    Optional(Option<&'a str>),
}

use Part::{Optional, Text};

/// What all facts have: the record's offset and the venue's time.
///
/// `is_plain`: all texts are known to be written as they stand.
#[derive(Clone, Copy)]
pub struct Stated<'a> {
    pub offset: u64,
    pub time: &'a str,
    pub is_plain: bool,
}

fn fact(stated: Stated, parts: &[Part]) -> Fact {
    let size = |part: &Part| match part {
        Text(text) | Optional(Some(text)) => text.len() + 3,
        Optional(None) => 5,
    };
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(stated.offset).as_bytes();
    let sizes: usize = parts.iter().map(size).sum();
    // Mostly it is just as long, and so nothing of it is moved, or wasted, in the end.
    let mut out = Vec::with_capacity(digits.len() + stated.time.len() + sizes + 5);
    let write = if stated.is_plain { write_plain } else { write_string };
    out.push(b'[');
    out.extend_from_slice(digits);
    out.push(b',');
    write(stated.time, &mut out);
    for part in parts {
        out.push(b',');
        match part {
            Text(text) | Optional(Some(text)) => write(text, &mut out),
            Optional(None) => out.extend_from_slice(b"null"),
        }
    }
    out.push(b']');
    out.into_boxed_slice()
}

pub fn placed(stated: Stated, event: &Placed) -> Fact {
    fact(
        stated,
        &[
            Text(event.instrument),
            Text(event.side),
            Text(event.order_type),
            Optional(event.terms.quantity),
            Optional(event.terms.limit_price),
            Optional(event.terms.reserve),
        ],
    )
}

pub fn amended(stated: Stated, terms: &Terms) -> Fact {
    fact(stated, &[Optional(terms.quantity), Optional(terms.limit_price), Optional(terms.reserve)])
}

pub fn closed(stated: Stated, reason: &str, instrument: Option<&str>) -> Fact {
    fact(stated, &[Text(reason), Optional(instrument)])
}

pub fn filled(stated: Stated, event: &Filled) -> Fact {
    fact(
        stated,
        &[
            Text(event.trade_id),
            Text(event.instrument),
            Text(event.side),
            Text(event.price),
            Text(event.quantity),
            Optional(event.quote_quantity),
            Text(event.fee),
            Text(event.fee_asset),
            Text(event.liquidity),
        ],
    )
}

pub fn busted(stated: Stated, event: &Busted) -> Fact {
    fact(stated, &[Text(event.trade_id), Text(event.instrument), Text(event.reason)])
}

pub fn transfer(stated: Stated, event: &Transfer) -> Fact {
    fact(
        stated,
        &[
            Text(event.kind),
            Text(event.asset),
            Text(event.amount),
            Optional(event.fee),
            Optional(event.reason),
        ],
    )
}

/// Which facts are compared, and so which of their texts are amounts (places after the time).
#[derive(Clone, Copy)]
pub enum Shape {
    Placed,
    Amended,
    Closed,
    Fill,
    Bust,
    Transfer,
}

impl Shape {
    fn amounts(self) -> &'static [usize] {
        match self {
            Shape::Placed => &[3, 4, 5],
            Shape::Amended => &[0, 1, 2],
            Shape::Closed | Shape::Bust => &[],
            Shape::Fill => &[3, 4, 5, 6],
            Shape::Transfer => &[2, 3],
        }
    }

    /// Returns the place of the fee, of which none is the same as 0.
    fn fee(self) -> Option<usize> {
        match self {
            Shape::Fill => Some(6),
            Shape::Transfer => Some(3),
            _ => None,
        }
    }
}

/// Returns the offset of the record that stated a fact.
pub fn offset(fact: &[u8]) -> Result<i64, Damaged> {
    let mut reader = Reader::new(fact);
    reader.expect(b'[')?;
    reader.integer()
}

/// Returns whether two facts of one identity say the same (contract, section 4).
///
/// Offsets and times do not count; amounts are compared by value.
pub fn same_content(shape: Shape, stored: &[u8], other: &[u8]) -> Result<bool, Damaged> {
    Ok(content(shape, stored)? == content(shape, other)?)
}

fn content(shape: Shape, fact: &[u8]) -> Result<Vec<Option<String>>, Damaged> {
    let mut found = texts(fact)?;
    let amounts = shape.amounts();
    let fee = shape.fee();
    found
        .drain(..)
        .enumerate()
        .map(|(place, text)| match text {
            Some(text) if amounts.contains(&place) => {
                Amount::parse(&text).map(|amount| Some(amount.plain())).ok_or(Damaged)
            }
            None if fee == Some(place) => Ok(Some("0".to_owned())),
            text => Ok(text.map(Cow::into_owned)),
        })
        .collect()
}

/// Returns the texts of a fact after its time.
pub fn texts(fact: &[u8]) -> Result<Vec<Option<Cow<'_, str>>>, Damaged> {
    let mut reader = Reader::new(fact);
    reader.expect(b'[')?;
    reader.integer()?;
    reader.expect(b',')?;
    reader.string()?;
    let mut found = Vec::with_capacity(9);
    while reader.take(b',') {
        found.push(reader.optional_string()?);
    }
    reader.expect(b']')?;
    reader.end()?;
    Ok(found)
}
