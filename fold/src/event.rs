//! Events: the quick way from a record's bytes to a checked event (contract, section 2).
//!
//! `parse` accepts only what is certain to be an event that `ledger/codec.py` accepts: plain ASCII, no
//! escapes, each form in its usual shape. Whatever else there is, the codec judges; what it accepts
//! comes back as fields (`Fields::set`).

use crate::amount::Amount;

macro_rules! names {
    ($($name:ident = $text:literal),* $(,)?) => {
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Name { $($name),* }

        impl Name {
            const ALL: &'static [Name] = &[$(Name::$name),*];

            fn text(self) -> &'static [u8] {
                match self { $(Name::$name => $text),* }
            }

            pub fn of(text: &[u8]) -> Option<Name> {
                $(if text == $text { return Some(Name::$name); })*
                None
            }
        }
    };
}

names! {
    Type = b"type",
    EventId = b"event_id",
    Account = b"account",
    OccurredAt = b"occurred_at",
    OrderId = b"order_id",
    Instrument = b"instrument",
    Side = b"side",
    Price = b"price",
    Quantity = b"quantity",
    Fee = b"fee",
    FeeAsset = b"fee_asset",
    Liquidity = b"liquidity",
    FillId = b"fill_id",
    TradeId = b"trade_id",
    QuoteQuantity = b"quote_quantity",
    OrderType = b"order_type",
    LimitPrice = b"limit_price",
    Reserve = b"reserve",
    Reason = b"reason",
    TransferId = b"transfer_id",
    Asset = b"asset",
    Amount = b"amount",
    Version = b"version",
    Revision = b"revision",
}

const fn bit(name: Name) -> u32 {
    1 << name as usize
}

const fn bits(names: &[Name]) -> u32 {
    let mut mask = 0;
    let mut n = 0;
    while n < names.len() {
        mask |= bit(names[n]);
        n += 1;
    }
    mask
}

/// The fields of one event, by name.
#[derive(Default)]
pub struct Fields<'a> {
    texts: [&'a str; 22],
    given: u32,
    revision: i64,
}

impl<'a> Fields<'a> {
    pub fn set(&mut self, name: Name, text: &'a str) {
        self.given |= bit(name);
        self.texts[name as usize] = text;
    }

    pub fn set_number(&mut self, name: Name, number: i64) {
        self.given |= bit(name);
        if name == Name::Revision {
            self.revision = number;
        }
    }

    fn has(&self, name: Name) -> bool {
        self.given & bit(name) != 0
    }

    fn text(&self, name: Name) -> &'a str {
        self.texts[name as usize]
    }

    fn optional(&self, name: Name) -> Option<&'a str> {
        self.has(name).then(|| self.text(name))
    }
}

pub struct Event<'a> {
    pub account: &'a str,
    pub occurred_at: &'a str,
    pub kind: Kind<'a>,
}

/// What an order may be told anew; each as it was stated.
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    pub quantity: Option<&'a str>,
    pub limit_price: Option<&'a str>,
    pub reserve: Option<&'a str>,
}

pub struct Placed<'a> {
    pub order_id: &'a str,
    pub instrument: &'a str,
    pub side: &'a str,
    pub order_type: &'a str,
    pub terms: Terms<'a>,
}

pub struct Filled<'a> {
    pub order_id: &'a str,
    pub fill_id: &'a str,
    pub trade_id: &'a str,
    pub instrument: &'a str,
    pub side: &'a str,
    pub price: &'a str,
    pub quantity: &'a str,
    pub quote_quantity: Option<&'a str>,
    pub fee: &'a str,
    pub fee_asset: &'a str,
    pub liquidity: &'a str,
}

pub struct Busted<'a> {
    pub order_id: &'a str,
    pub fill_id: &'a str,
    pub trade_id: &'a str,
    pub instrument: &'a str,
    pub reason: &'a str,
}

/// `kind` is the event's type: deposited, withdrawn or adjusted.
pub struct Transfer<'a> {
    pub kind: &'a str,
    pub transfer_id: &'a str,
    pub asset: &'a str,
    pub amount: &'a str,
    pub fee: Option<&'a str>,
    pub reason: Option<&'a str>,
}

pub enum Kind<'a> {
    Placed(Placed<'a>),
    Amended { order_id: &'a str, revision: i64, terms: Terms<'a> },
    Cancelled { order_id: &'a str, reason: &'a str, instrument: Option<&'a str> },
    Rejected { order_id: &'a str, reason: &'a str },
    Filled(Filled<'a>),
    Busted(Busted<'a>),
    Transfer(Transfer<'a>),
}

impl<'a> Kind<'a> {
    pub fn order_id(&self) -> Option<&'a str> {
        match self {
            Kind::Placed(event) => Some(event.order_id),
            Kind::Amended { order_id, .. }
            | Kind::Cancelled { order_id, .. }
            | Kind::Rejected { order_id, .. } => Some(order_id),
            Kind::Filled(event) => Some(event.order_id),
            Kind::Busted(event) => Some(event.order_id),
            Kind::Transfer(_) => None,
        }
    }
}

const EVERY: u32 =
    bits(&[Name::Type, Name::Version, Name::EventId, Name::Account, Name::OccurredAt]);
const TERMS: u32 = bits(&[Name::Quantity, Name::LimitPrice, Name::Reserve]);
const FILLED: u32 = bits(&[
    Name::FillId,
    Name::TradeId,
    Name::OrderId,
    Name::Instrument,
    Name::Side,
    Name::Price,
    Name::Quantity,
    Name::Fee,
    Name::FeeAsset,
    Name::Liquidity,
]);
const TRANSFER: u32 = bits(&[Name::TransferId, Name::Asset, Name::Amount]);

/// Returns the topic of a type, the fields that it must have, and those that it may have.
fn shape(kind: &str) -> Option<(&'static str, u32, u32)> {
    Some(match kind {
        "order_filled" => ("fills", FILLED, bit(Name::QuoteQuantity)),
        "order_placed" => {
            ("orders", bits(&[Name::OrderId, Name::Instrument, Name::Side, Name::OrderType]), TERMS)
        }
        "order_cancelled" => {
            ("orders", bits(&[Name::OrderId, Name::Reason]), bit(Name::Instrument))
        }
        "order_amended" => ("orders", bits(&[Name::OrderId, Name::Revision]), TERMS),
        "order_rejected" => ("orders", bits(&[Name::OrderId, Name::Reason]), 0),
        "fill_busted" => (
            "fills",
            bits(&[Name::FillId, Name::OrderId, Name::TradeId, Name::Instrument, Name::Reason]),
            0,
        ),
        "deposited" => ("transfers", TRANSFER, 0),
        "withdrawn" => ("transfers", TRANSFER, bit(Name::Fee)),
        "adjusted" => ("transfers", TRANSFER | bit(Name::Reason), 0),
        _ => return None,
    })
}

/// Returns the event that a record of a topic holds, or None where the codec has to look at it.
pub fn parse<'a>(topic: &str, value: &'a [u8], usual: &mut Usual) -> Option<Event<'a>> {
    let fields = scan(value, usual)?;
    let kind = fields.text(Name::Type);
    let (right, required, optional) = shape(kind)?;
    let required = required | EVERY;
    if right != topic
        || fields.given & required != required
        || fields.given & !(required | optional) != 0
    {
        return None;
    }
    are_sure(&fields, kind).then(|| build(&fields)).flatten()
}

/// Returns the event with these fields, which the codec has checked.
pub fn build<'a>(fields: &Fields<'a>) -> Option<Event<'a>> {
    let text = |name| fields.text(name);
    let terms = Terms {
        quantity: fields.optional(Name::Quantity),
        limit_price: fields.optional(Name::LimitPrice),
        reserve: fields.optional(Name::Reserve),
    };
    let order_id = text(Name::OrderId);
    let kind = match text(Name::Type) {
        "order_placed" => Kind::Placed(Placed {
            order_id,
            instrument: text(Name::Instrument),
            side: text(Name::Side),
            order_type: text(Name::OrderType),
            terms,
        }),
        "order_amended" => Kind::Amended { order_id, revision: fields.revision, terms },
        "order_cancelled" => Kind::Cancelled {
            order_id,
            reason: text(Name::Reason),
            instrument: fields.optional(Name::Instrument),
        },
        "order_rejected" => Kind::Rejected { order_id, reason: text(Name::Reason) },
        "order_filled" => Kind::Filled(Filled {
            order_id,
            fill_id: text(Name::FillId),
            trade_id: text(Name::TradeId),
            instrument: text(Name::Instrument),
            side: text(Name::Side),
            price: text(Name::Price),
            quantity: text(Name::Quantity),
            quote_quantity: fields.optional(Name::QuoteQuantity),
            fee: text(Name::Fee),
            fee_asset: text(Name::FeeAsset),
            liquidity: text(Name::Liquidity),
        }),
        "fill_busted" => Kind::Busted(Busted {
            order_id,
            fill_id: text(Name::FillId),
            trade_id: text(Name::TradeId),
            instrument: text(Name::Instrument),
            reason: text(Name::Reason),
        }),
        kind @ ("deposited" | "withdrawn" | "adjusted") => Kind::Transfer(Transfer {
            kind,
            transfer_id: text(Name::TransferId),
            asset: text(Name::Asset),
            amount: text(Name::Amount),
            fee: fields.optional(Name::Fee),
            reason: fields.optional(Name::Reason),
        }),
        _ => return None,
    };
    Some(Event { account: text(Name::Account), occurred_at: text(Name::OccurredAt), kind })
}

// -- JSON

/// The names of an event's fields in the order in which the last one had them: most are alike.
#[derive(Default)]
pub struct Usual(Vec<Name>);

impl Usual {
    /// Returns the name at the start of a text, and what follows it.
    fn name<'a>(&mut self, place: usize, text: &'a str) -> Option<(Name, &'a str)> {
        if let Some(name) = self.0.get(place) {
            let length = name.text().len();
            let bytes = text.as_bytes();
            let is_it = bytes.len() > length + 1
                && bytes[0] == b'"'
                && bytes[1..].starts_with(name.text())
                && bytes[length + 1] == b'"';
            if is_it {
                return Some((*name, &text[length + 2..]));
            }
        }
        let (found, after) = string(text)?;
        let name = Name::of(found.as_bytes())?;
        self.0.truncate(place);
        self.0.push(name);
        Some((name, after))
    }
}

fn scan<'a>(value: &'a [u8], usual: &mut Usual) -> Option<Fields<'a>> {
    // One pass that compilers make wide: from here on every string is plain.
    let odd = value
        .iter()
        .fold(false, |odd, byte| odd | (*byte < b' ') | (*byte > b'~') | (*byte == b'\\'));
    if odd {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?;
    let mut fields = Fields::default();
    let mut rest = skip_blanks(text).strip_prefix('{')?;
    for place in 0.. {
        let (name, after) = usual.name(place, skip_blanks(rest))?;
        if fields.has(name) {
            return None;
        }
        rest = skip_blanks(skip_blanks(after).strip_prefix(':')?);
        match name {
            Name::Version => {
                rest = rest.strip_prefix('1')?;
                fields.set_number(name, 1);
            }
            Name::Revision => {
                let end = rest.bytes().take_while(u8::is_ascii_digit).count();
                let digits = &rest[..end];
                if digits.starts_with('0') || end > 18 {
                    return None;
                }
                fields.set_number(name, digits.parse().ok()?);
                rest = &rest[end..];
            }
            _ => {
                let (text, after) = string(rest)?;
                fields.set(name, text);
                rest = after;
            }
        }
        rest = skip_blanks(rest);
        match rest.as_bytes().first()? {
            b',' => rest = &rest[1..],
            b'}' => return skip_blanks(&rest[1..]).is_empty().then_some(fields),
            _ => return None,
        }
    }
    None
}

fn skip_blanks(text: &str) -> &str {
    let blanks = text.bytes().take_while(|byte| *byte == b' ').count();
    &text[blanks..]
}

fn string(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('"')?;
    let end = memchr::memchr(b'"', text.as_bytes())?;
    Some((&text[..end], &text[end + 1..]))
}

// -- forms

/// Returns whether all texts have the forms that `ledger/events.py` wants, and agree.
fn are_sure(fields: &Fields, kind: &str) -> bool {
    let all = Name::ALL.iter().filter(|name| fields.has(**name));
    for name in all {
        let text = if (*name as usize) < fields.texts.len() { fields.text(*name) } else { "" };
        let sure = match name {
            Name::Type | Name::Version | Name::Revision => true,
            Name::EventId | Name::OrderId | Name::FillId | Name::TradeId | Name::TransferId => {
                (1..=128).contains(&text.len())
            }
            Name::Account => {
                (1..=128).contains(&text.len())
                    && text
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'))
            }
            Name::OccurredAt => is_time(text.as_bytes()),
            Name::Instrument => is_instrument(text),
            Name::FeeAsset | Name::Asset => is_asset(text),
            Name::Side => matches!(text, "buy" | "sell"),
            Name::OrderType => matches!(text, "limit" | "market"),
            Name::Liquidity => matches!(text, "maker" | "taker"),
            Name::Reason => (1..=1024).contains(&text.len()),
            Name::Quantity | Name::Price | Name::LimitPrice => {
                matches!(sign_of(text), Some(Sign::Positive))
            }
            Name::Reserve | Name::QuoteQuantity => {
                matches!(sign_of(text), Some(Sign::Positive | Sign::Zero))
            }
            Name::Fee if kind == "order_filled" => sign_of(text).is_some(),
            Name::Fee => matches!(sign_of(text), Some(Sign::Positive | Sign::Zero)),
            Name::Amount if kind == "adjusted" => {
                matches!(sign_of(text), Some(Sign::Positive | Sign::Negative))
            }
            Name::Amount => matches!(sign_of(text), Some(Sign::Positive)),
        };
        if !sure {
            return false;
        }
    }
    match kind {
        "order_placed" => {
            let limit = fields.text(Name::OrderType) == "limit";
            (fields.has(Name::Quantity) || fields.has(Name::Reserve))
                && limit == fields.has(Name::LimitPrice)
        }
        "order_amended" => fields.given & TERMS != 0,
        _ => true,
    }
}

pub fn is_instrument(text: &str) -> bool {
    text.split_once('-').is_some_and(|(base, quote)| is_asset(base) && is_asset(quote))
}

pub fn is_asset(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'@' | b'_'))
}

enum Sign {
    Negative,
    Zero,
    Positive,
}

/// Returns the sign of an amount's text, or None where it has not the form of one, or is `-0`.
fn sign_of(text: &str) -> Option<Sign> {
    let unsigned = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let whole = unsigned.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=20).contains(&whole) || (unsigned[0] == b'0' && whole > 1) {
        return None;
    }
    if whole < unsigned.len() {
        let fraction = &unsigned[whole + 1..];
        let digits = (1..=18).contains(&fraction.len()) && fraction.iter().all(u8::is_ascii_digit);
        if unsigned[whole] != b'.' || !digits {
            return None;
        }
    }
    let zero = unsigned.iter().all(|byte| matches!(byte, b'0' | b'.'));
    match (zero, unsigned.len() < text.len()) {
        (true, true) => None,
        (true, false) => Some(Sign::Zero),
        (false, true) => Some(Sign::Negative),
        (false, false) => Some(Sign::Positive),
    }
}

/// Returns whether a text is an RFC 3339 time of a day that every month has, in years 1000 to 8999.
fn is_time(text: &[u8]) -> bool {
    if text.len() < 20 {
        return false;
    }
    let two = |place: usize| -> Option<u8> {
        let (a, b) = (*text.get(place)?, *text.get(place + 1)?);
        (a.is_ascii_digit() && b.is_ascii_digit()).then(|| (a - b'0') * 10 + (b - b'0'))
    };
    let at_most = |place: usize, most: u8| two(place).is_some_and(|number| number <= most);
    let separated = text[4] == b'-'
        && text[7] == b'-'
        && matches!(text[10], b'T' | b't')
        && text[13] == b':'
        && text[16] == b':';
    let dated = two(0).is_some_and(|century| (10..=89).contains(&century))
        && two(2).is_some()
        && two(5).is_some_and(|month| (1..=12).contains(&month))
        && two(8).is_some_and(|day| (1..=28).contains(&day));
    if !separated || !dated || !at_most(11, 23) || !at_most(14, 59) || !at_most(17, 59) {
        return false;
    }
    let mut place = 19;
    if text[place] == b'.' {
        let digits = text[place + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return false;
        }
        place += 1 + digits;
    }
    match text.get(place) {
        Some(b'Z' | b'z') => place + 1 == text.len(),
        Some(b'+' | b'-') => {
            place + 6 == text.len()
                && at_most(place + 1, 23)
                && text[place + 3] == b':'
                && at_most(place + 4, 59)
        }
        _ => false,
    }
}

/// Returns the amount in a text that was checked.
pub fn amount(text: &str) -> Amount {
    Amount::parse(text).expect("the text of an amount was checked")
}
