//! Events: the quick way from a record's bytes to a checked event (contract, section 2).
//!
//! `parse` accepts only what is certain to be an event that `ledger/codec.py` accepts: plain ASCII, no
//! escapes, each form in its usual shape. Whatever else there is, the codec judges; what it accepts
//! comes back as fields (`Fields::set`).

use crate::amount::Amount;
use crate::words;

macro_rules! names {
    ($($name:ident = $text:literal),* $(,)?) => {
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Name { $($name),* }

        impl Name {
            const ALL: &'static [Name] = &[$(Name::$name),*];

            const fn text(self) -> &'static [u8] {
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

/// A name in its quotes: short enough for one number, so that one comparison tells it.
struct Quoted {
    bytes: u128, // the first one lowest
    mask: u128,
    length: usize,
}

const QUOTED: [Quoted; Name::ALL.len()] = {
    let mut all = [const { Quoted { bytes: 0, mask: 0, length: 0 } }; Name::ALL.len()];
    let mut n = 0;
    while n < all.len() {
        let text = Name::ALL[n].text();
        let length = text.len() + 2;
        let mut bytes = b'"' as u128 | (b'"' as u128) << (8 * (length - 1));
        let mut place = 0;
        while place < text.len() {
            bytes |= (text[place] as u128) << (8 * (place + 1));
            place += 1;
        }
        all[n] = Quoted { bytes, mask: u128::MAX >> (128 - 8 * length), length };
        n += 1;
    }
    all
};

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
    negative: u32, // of the amounts
    zero: u32,
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

/// `is_plain`: all texts are printable ASCII without quotes or backslashes.
pub struct Event<'a> {
    pub is_plain: bool,
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

#[derive(Clone, Copy)]
enum Type {
    Placed,
    Amended,
    Cancelled,
    Rejected,
    Filled,
    Busted,
    Deposited,
    Withdrawn,
    Adjusted,
}

impl Type {
    fn of(text: &str) -> Option<Type> {
        Some(match text {
            "order_filled" => Type::Filled,
            "order_placed" => Type::Placed,
            "order_cancelled" => Type::Cancelled,
            "order_amended" => Type::Amended,
            "order_rejected" => Type::Rejected,
            "fill_busted" => Type::Busted,
            "deposited" => Type::Deposited,
            "withdrawn" => Type::Withdrawn,
            "adjusted" => Type::Adjusted,
            _ => return None,
        })
    }

    /// Returns the topic of a type, the fields that it must have, and those that it may have.
    fn shape(self) -> (&'static str, u32, u32) {
        match self {
            Type::Filled => ("fills", FILLED, bit(Name::QuoteQuantity)),
            Type::Placed => (
                "orders",
                bits(&[Name::OrderId, Name::Instrument, Name::Side, Name::OrderType]),
                TERMS,
            ),
            Type::Cancelled => {
                ("orders", bits(&[Name::OrderId, Name::Reason]), bit(Name::Instrument))
            }
            Type::Amended => ("orders", bits(&[Name::OrderId, Name::Revision]), TERMS),
            Type::Rejected => ("orders", bits(&[Name::OrderId, Name::Reason]), 0),
            Type::Busted => (
                "fills",
                bits(&[Name::FillId, Name::OrderId, Name::TradeId, Name::Instrument, Name::Reason]),
                0,
            ),
            Type::Deposited => ("transfers", TRANSFER, 0),
            Type::Withdrawn => ("transfers", TRANSFER, bit(Name::Fee)),
            Type::Adjusted => ("transfers", TRANSFER | bit(Name::Reason), 0),
        }
    }

    /// Returns the amounts that may be negative.
    fn signed(self) -> u32 {
        match self {
            Type::Filled => bit(Name::Fee),
            Type::Adjusted => bit(Name::Amount),
            _ => 0,
        }
    }
}

/// The amounts that are never 0.
const NONZERO: u32 = bits(&[Name::Quantity, Name::Price, Name::LimitPrice, Name::Amount]);

/// Returns the event that a record of a topic holds, or None where the codec has to look at it.
pub fn parse<'a>(topic: &str, value: &'a [u8], usual: &mut Usual) -> Option<Event<'a>> {
    let fields = scan(value, usual)?;
    let kind = Type::of(fields.text(Name::Type))?;
    let (right, required, optional) = kind.shape();
    let required = required | EVERY;
    if right != topic
        || fields.given & required != required
        || fields.given & !(required | optional) != 0
        || fields.negative & !kind.signed() != 0
        || fields.zero & NONZERO != 0
    {
        return None;
    }
    let is_sure = match kind {
        Type::Placed => {
            let limit = fields.text(Name::OrderType) == "limit";
            (fields.has(Name::Quantity) || fields.has(Name::Reserve))
                && limit == fields.has(Name::LimitPrice)
        }
        Type::Amended => fields.given & TERMS != 0,
        _ => true,
    };
    is_sure.then(|| event(kind, &fields, true))
}

/// Returns the event with these fields, which the codec has checked.
pub fn build<'a>(fields: &Fields<'a>) -> Option<Event<'a>> {
    Some(event(Type::of(fields.text(Name::Type))?, fields, false))
}

fn event<'a>(kind: Type, fields: &Fields<'a>, is_plain: bool) -> Event<'a> {
    let text = |name| fields.text(name);
    let terms = Terms {
        quantity: fields.optional(Name::Quantity),
        limit_price: fields.optional(Name::LimitPrice),
        reserve: fields.optional(Name::Reserve),
    };
    let order_id = text(Name::OrderId);
    let kind = match kind {
        Type::Placed => Kind::Placed(Placed {
            order_id,
            instrument: text(Name::Instrument),
            side: text(Name::Side),
            order_type: text(Name::OrderType),
            terms,
        }),
        Type::Amended => Kind::Amended { order_id, revision: fields.revision, terms },
        Type::Cancelled => Kind::Cancelled {
            order_id,
            reason: text(Name::Reason),
            instrument: fields.optional(Name::Instrument),
        },
        Type::Rejected => Kind::Rejected { order_id, reason: text(Name::Reason) },
        Type::Filled => Kind::Filled(Filled {
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
        Type::Busted => Kind::Busted(Busted {
            order_id,
            fill_id: text(Name::FillId),
            trade_id: text(Name::TradeId),
            instrument: text(Name::Instrument),
            reason: text(Name::Reason),
        }),
        Type::Deposited | Type::Withdrawn | Type::Adjusted => Kind::Transfer(Transfer {
            kind: text(Name::Type),
            transfer_id: text(Name::TransferId),
            asset: text(Name::Asset),
            amount: text(Name::Amount),
            fee: fields.optional(Name::Fee),
            reason: fields.optional(Name::Reason),
        }),
    };
    Event { is_plain, account: text(Name::Account), occurred_at: text(Name::OccurredAt), kind }
}

// -- JSON

/// The names of an event's fields in the order in which the last one had them: most are alike.
#[derive(Default)]
pub struct Usual(Vec<Name>);

impl Usual {
    /// Reads the name of the field at a place among an event's.
    fn name(&mut self, place: usize, text: &mut Text) -> Option<Name> {
        text.skip_blanks();
        if let Some(name) = self.0.get(place) {
            let quoted = &QUOTED[*name as usize];
            let next = text.text.as_bytes()[text.place..].first_chunk();
            if next.is_some_and(|next| u128::from_le_bytes(*next) & quoted.mask == quoted.bytes) {
                text.place += quoted.length;
                return Some(*name);
            }
        }
        let name = Name::of(text.string()?.as_bytes())?;
        self.0.truncate(place);
        self.0.push(name);
        Some(name)
    }
}

/// JSON in which every string is as it stands, and how far it was read.
struct Text<'a> {
    text: &'a str,
    place: usize,
}

impl<'a> Text<'a> {
    /// Returns None where there is an escape, or anything but printable ASCII.
    fn plain(value: &'a [u8]) -> Option<Text<'a>> {
        // One pass that compilers make wide.
        let odd = value
            .iter()
            .fold(false, |odd, byte| odd | (*byte < b' ') | (*byte > b'~') | (*byte == b'\\'));
        // SAFETY: then it is ASCII.
        (!odd).then(|| Text { text: unsafe { std::str::from_utf8_unchecked(value) }, place: 0 })
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.place).copied()
    }

    fn skip_blanks(&mut self) {
        while self.peek() == Some(b' ') {
            self.place += 1;
        }
    }

    /// Returns the next byte that is no blank, and goes past it.
    fn next(&mut self) -> Option<u8> {
        self.skip_blanks();
        let found = self.peek()?;
        self.place += 1;
        Some(found)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let rest = &self.text[self.place..];
        let length = words::find(rest.as_bytes(), b'"')?;
        self.place += length + 1;
        Some(&rest[..length])
    }

    /// Reads an integer from 1 to 18 digits.
    fn number(&mut self) -> Option<i64> {
        self.skip_blanks();
        let rest = &self.text[self.place..];
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        let digits = &rest[..length];
        if digits.starts_with('0') || length > 18 {
            return None;
        }
        self.place += length;
        digits.parse().ok()
    }
}

/// Returns the fields of an event, each of which has the form that `ledger/events.py` wants.
fn scan<'a>(value: &'a [u8], usual: &mut Usual) -> Option<Fields<'a>> {
    let mut text = Text::plain(value)?;
    let mut fields = Fields::default();
    text.expect(b'{')?;
    for place in 0.. {
        let name = usual.name(place, &mut text)?;
        if fields.has(name) {
            return None;
        }
        text.expect(b':')?;
        match name {
            Name::Version => {
                text.expect(b'1')?;
                fields.set_number(name, 1);
            }
            Name::Revision => fields.set_number(name, text.number()?),
            _ => {
                let found = text.string()?;
                match sure(name, found)? {
                    Sign::Positive => {}
                    Sign::Zero => fields.zero |= bit(name),
                    Sign::Negative => fields.negative |= bit(name),
                }
                fields.set(name, found);
            }
        }
        match text.next()? {
            b',' => {}
            b'}' => {
                text.skip_blanks();
                return text.peek().is_none().then_some(fields);
            }
            _ => return None,
        }
    }
    None
}

// -- forms

/// Returns the sign of a text (that of an amount, else positive) if it has the form of its field.
fn sure(name: Name, text: &str) -> Option<Sign> {
    let is_sure = match name {
        Name::Quantity
        | Name::Price
        | Name::LimitPrice
        | Name::Reserve
        | Name::QuoteQuantity
        | Name::Fee
        | Name::Amount => return sign_of(text),
        Name::Type => true,
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
        Name::Version | Name::Revision => unreachable!("these are numbers"),
    };
    is_sure.then_some(Sign::Positive)
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
    let (mut point, mut is_zero) = (None, true);
    for (place, byte) in unsigned.iter().enumerate() {
        match byte {
            b'0' => {}
            b'1'..=b'9' => is_zero = false,
            b'.' if point.is_none() => point = Some(place),
            _ => return None,
        }
    }
    let whole = point.unwrap_or(unsigned.len());
    if !(1..=20).contains(&whole) || (unsigned[0] == b'0' && whole > 1) {
        return None;
    }
    if point.is_some_and(|point| !(1..=18).contains(&(unsigned.len() - point - 1))) {
        return None;
    }
    match (is_zero, unsigned.len() < text.len()) {
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
