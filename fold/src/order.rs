//! One order: the facts known of it, in whatever order they came, and the hold that they make.
//!
//! Everything is a function of the set of facts, so an early fill or cancel needs no special case. An
//! order holds its first `INLINE` fills and amendments itself; later ones are entries of their own, so
//! that an order with a million fills costs no more per fill than one with ten.
//!
//! A stored order is a list of twelve parts (`ledger/projections/orders.py` names them), of which those
//! at the end that say nothing are left out: most orders are a fill or two, or are open and have none.

use crate::amount::{Amount, ZERO};
use crate::digest::Sum;
use crate::event;
use crate::fact::{self, Fact};
use crate::journal::{split_instrument, Trade};
use crate::json::{write_integer, write_string, Damaged, Reader};
use smallvec::SmallVec;
use std::cmp::Ordering;

/// How many fills, and how many amendments, an order holds itself. Part of the state's form.
pub const INLINE: usize = 16;

/// A fill and its bust, either of which may come first.
#[derive(Default)]
pub struct Execution {
    pub fill: Option<Fact>,
    pub bust: Option<Fact>,
}

impl Execution {
    pub fn decode(value: &[u8]) -> Result<Execution, Damaged> {
        let mut reader = Reader::new(value);
        let execution = Execution::read(&mut reader)?;
        reader.end()?;
        Ok(execution)
    }

    fn read(reader: &mut Reader) -> Result<Execution, Damaged> {
        reader.expect(b'[')?;
        let fill = optional_fact(reader)?;
        let bust = if reader.take(b',') { optional_fact(reader)? } else { None };
        reader.expect(b']')?;
        Ok(Execution { fill, bust })
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        write_fact(self.fill.as_ref(), out);
        if self.bust.is_some() {
            out.push(b',');
            write_fact(self.bust.as_ref(), out);
        }
        out.push(b']');
    }
}

fn optional_fact(reader: &mut Reader) -> Result<Option<Fact>, Damaged> {
    Ok(if reader.null() { None } else { Some(reader.raw()?.into()) })
}

fn write_fact(fact: Option<&Fact>, out: &mut Vec<u8>) {
    out.extend_from_slice(fact.map_or(b"null", |fact| fact));
}

/// The terms with which an order was placed.
pub struct Placed {
    pub fact: Fact,
    instrument: Box<str>,
    side: Side,
    is_limit: bool,
    quantity: Option<Amount>,
    limit_price: Option<Amount>,
    reserve: Option<Amount>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Buy,
    Sell,
}

impl Side {
    fn of(text: &str) -> Side {
        if text == "buy" {
            Side::Buy
        } else {
            Side::Sell
        }
    }
}

impl Placed {
    pub fn of_event(fact: Fact, event: &event::Placed) -> Placed {
        Placed {
            fact,
            instrument: event.instrument.into(),
            side: Side::of(event.side),
            is_limit: event.order_type == "limit",
            quantity: event.terms.quantity.map(event::amount),
            limit_price: event.terms.limit_price.map(event::amount),
            reserve: event.terms.reserve.map(event::amount),
        }
    }

    fn decode(fact: &[u8]) -> Result<Placed, Damaged> {
        let texts = fact::texts(fact)?;
        let text = |place: usize| texts.get(place).and_then(|text| text.as_deref());
        let stated = |place: usize| match text(place) {
            Some(text) => Amount::parse(text).map(Some).ok_or(Damaged),
            None => Ok(None),
        };
        Ok(Placed {
            fact: fact.into(),
            instrument: text(0).filter(|text| event::is_instrument(text)).ok_or(Damaged)?.into(),
            side: Side::of(text(1).ok_or(Damaged)?),
            is_limit: text(2) == Some("limit"),
            quantity: stated(3)?,
            limit_price: stated(4)?,
            reserve: stated(5)?,
        })
    }
}

/// The highest revision that names a term, and what it says.
struct Term {
    revision: i64,
    text: Box<str>,
    amount: Amount,
}

/// What amendments named.
#[derive(Default)]
struct Terms {
    quantity: Option<Term>,
    limit_price: Option<Term>,
    reserve: Option<Term>,
}

struct Sums {
    filled: Amount,
    used: Amount,
    held: Amount,
}

const NO_SUMS: Sums = Sums { filled: ZERO, used: ZERO, held: ZERO };

/// What is known of an order.
///
/// `filled` is the base quantity of the fills that count, `used` what they took of the hold asset
/// (before it is cut off at 0): those not busted, of the order's own instrument and side. `held` is
/// what the order adds to its account's hold now, `element` belongs to its stored entry.
///
/// What seldom is there is kept apart, because orders are moved often.
#[derive(Default)]
pub struct Order {
    pub placed: Option<Box<Placed>>,
    pub cancelled: Option<Fact>,
    pub rejected: Option<Fact>,
    terms: Option<Box<Terms>>,
    sums: Option<Box<Sums>>,
    pub fills: SmallVec<[(Box<str>, Execution); 1]>, // most orders have one
    pub amendments: Vec<(i64, Fact)>,
    pub more_fills: u64,
    pub more_amendments: u64,
    pub element: Option<Box<Sum>>,
    pub dirty: bool,
}

impl Order {
    /// Returns the order that a store has.
    pub fn stored(key: &[u8], value: &[u8]) -> Result<Order, Damaged> {
        let mut order = Order::decode(value)?;
        order.element = Some(Box::new(Sum::of_entry(key, value)));
        Ok(order)
    }

    pub fn decode(value: &[u8]) -> Result<Order, Damaged> {
        let mut order = Order::default();
        let mut reader = Reader::new(value);
        reader.expect(b'[')?;
        reader.expect(b'{')?;
        while !reader.take(b'}') {
            let fill_id = reader.string()?.into();
            reader.expect(b':')?;
            order.fills.push((fill_id, Execution::read(&mut reader)?));
            reader.take(b',');
        }
        let mut part = 1;
        while reader.take(b',') {
            order.read_part(part, &mut reader)?;
            part += 1;
        }
        reader.expect(b']')?;
        reader.end()?;
        if order.placed.is_some() {
            order.set_held(order.hold());
        }
        Ok(order)
    }

    fn read_part(&mut self, part: usize, reader: &mut Reader) -> Result<(), Damaged> {
        match part {
            1 => {
                if let Some(fact) = optional_fact(reader)? {
                    self.placed = Some(Box::new(Placed::decode(&fact)?));
                }
            }
            2 => self.sums().filled = Amount::parse(&reader.string()?).ok_or(Damaged)?,
            3 => self.sums().used = Amount::parse(&reader.string()?).ok_or(Damaged)?,
            4 => self.cancelled = optional_fact(reader)?,
            5 => self.rejected = optional_fact(reader)?,
            6 => self.terms().quantity = read_term(reader)?,
            7 => self.terms().limit_price = read_term(reader)?,
            8 => self.terms().reserve = read_term(reader)?,
            9 => {
                reader.expect(b'{')?;
                while !reader.take(b'}') {
                    let revision = reader.string()?.parse().map_err(|_| Damaged)?;
                    reader.expect(b':')?;
                    self.amendments.push((revision, reader.raw()?.into()));
                    reader.take(b',');
                }
            }
            10 => self.more_fills = u64::try_from(reader.integer()?).map_err(|_| Damaged)?,
            11 => self.more_amendments = u64::try_from(reader.integer()?).map_err(|_| Damaged)?,
            _ => return Err(Damaged),
        }
        Ok(())
    }

    /// Writes the stored entry: the fills, and the other parts up to the last that says anything.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"[{");
        for (place, (fill_id, execution)) in self.fills.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            write_string(fill_id, out);
            out.push(b':');
            execution.write(out);
        }
        out.push(b'}');
        for part in 1..=self.last_part() {
            out.push(b',');
            self.write_part(part, out);
        }
        out.push(b']');
    }

    fn last_part(&self) -> usize {
        let [quantity, limit_price, reserve] = self.amended_terms();
        let says = [
            true,
            self.placed.is_some(),
            !self.filled().is_zero(),
            !self.used().is_zero(),
            self.cancelled.is_some(),
            self.rejected.is_some(),
            quantity.is_some(),
            limit_price.is_some(),
            reserve.is_some(),
            !self.amendments.is_empty(),
            self.more_fills > 0,
            self.more_amendments > 0,
        ];
        says.iter().rposition(|says| *says).expect("the fills always count")
    }

    fn write_part(&self, part: usize, out: &mut Vec<u8>) {
        let write_sum = |sum: &Amount, out: &mut Vec<u8>| {
            out.push(b'"');
            sum.write(out);
            out.push(b'"');
        };
        match part {
            1 => write_fact(self.placed.as_ref().map(|placed| &placed.fact), out),
            2 => write_sum(self.filled(), out),
            3 => write_sum(self.used(), out),
            4 => write_fact(self.cancelled.as_ref(), out),
            5 => write_fact(self.rejected.as_ref(), out),
            6..=8 => write_term(self.amended_terms()[part - 6], out),
            9 => {
                out.push(b'{');
                for (place, (revision, amended)) in self.amendments.iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    out.push(b'"');
                    write_integer(*revision, out);
                    out.extend_from_slice(b"\":");
                    out.extend_from_slice(amended);
                }
                out.push(b'}');
            }
            10 => write_integer(self.more_fills, out),
            _ => write_integer(self.more_amendments, out),
        }
    }

    /// Returns quantity, limit price and reserve as amendments named them.
    fn amended_terms(&self) -> [Option<&Term>; 3] {
        let terms = self.terms.as_ref();
        [
            terms.and_then(|terms| terms.quantity.as_ref()),
            terms.and_then(|terms| terms.limit_price.as_ref()),
            terms.and_then(|terms| terms.reserve.as_ref()),
        ]
    }

    fn terms(&mut self) -> &mut Terms {
        self.terms.get_or_insert_with(Box::default)
    }

    // -- terms

    pub fn filled(&self) -> &Amount {
        self.sums.as_ref().map_or(&ZERO, |sums| &sums.filled)
    }

    pub fn used(&self) -> &Amount {
        self.sums.as_ref().map_or(&ZERO, |sums| &sums.used)
    }

    pub fn held(&self) -> &Amount {
        self.sums.as_ref().map_or(&ZERO, |sums| &sums.held)
    }

    pub fn set_held(&mut self, held: Amount) {
        self.sums().held = held;
    }

    fn sums(&mut self) -> &mut Sums {
        self.sums.get_or_insert_with(|| Box::new(NO_SUMS))
    }

    /// Returns the base quantity ordered, or None where the order has only a reserve.
    pub fn term_quantity(&self) -> Option<&Amount> {
        let placed = self.placed.as_ref().and_then(|placed| placed.quantity.as_ref());
        let [term, _, _] = self.amended_terms();
        term.map(|term| &term.amount).or(placed)
    }

    /// Returns the limit price in quote per base, or None.
    pub fn term_limit_price(&self) -> Option<&Amount> {
        let placed = self.placed.as_ref().and_then(|placed| placed.limit_price.as_ref());
        let [_, term, _] = self.amended_terms();
        term.map(|term| &term.amount).or(placed)
    }

    /// Returns the most that the order may use of its hold asset, or None.
    pub fn term_reserve(&self) -> Option<&Amount> {
        let placed = self.placed.as_ref().and_then(|placed| placed.reserve.as_ref());
        let [_, _, term] = self.amended_terms();
        term.map(|term| &term.amount).or(placed)
    }

    /// Lets an amendment's terms count where no higher revision names them.
    pub fn amend(&mut self, revision: i64, terms: &event::Terms) {
        let known = self.terms();
        for (term, text) in [
            (&mut known.quantity, terms.quantity),
            (&mut known.limit_price, terms.limit_price),
            (&mut known.reserve, terms.reserve),
        ] {
            let Some(text) = text else { continue };
            if term.as_ref().is_none_or(|known| revision > known.revision) {
                *term = Some(Term { revision, text: text.into(), amount: event::amount(text) });
            }
        }
    }

    // -- fills

    /// Returns whether a fill is of this order's own instrument and side.
    pub fn counts(&self, fill: &Trade) -> bool {
        self.placed.as_ref().is_some_and(|placed| {
            *placed.instrument == *fill.instrument && placed.side == Side::of(fill.side)
        })
    }

    /// Adds a fill that counts to `filled` and `used`.
    pub fn count(&mut self, fill: &Trade) {
        let sums = self.sums();
        sums.filled.increase(&fill.quantity);
        sums.used.increase(&fill.taken());
    }

    /// Takes a busted fill out of `filled` and `used` again.
    pub fn discount(&mut self, fill: &Trade) {
        let sums = self.sums();
        sums.filled = sums.filled.subtract(&fill.quantity);
        sums.used = sums.used.subtract(&fill.taken());
    }

    // -- what follows from them

    /// Returns whether the whole quantity is filled.
    pub fn is_complete(&self) -> bool {
        self.term_quantity()
            .is_some_and(|quantity| self.filled().compare(quantity) != Ordering::Less)
    }

    /// Returns whether the order is placed and not closed (contract, section 3).
    pub fn is_open(&self) -> bool {
        self.placed.is_some()
            && self.cancelled.is_none()
            && self.rejected.is_none()
            && !self.is_complete()
    }

    /// Returns the asset that this order holds: quote for buys, base for sells.
    pub fn hold_asset(&self) -> Option<&str> {
        self.placed.as_ref().map(|placed| {
            let (base, quote) = split_instrument(&placed.instrument);
            if placed.side == Side::Buy {
                quote
            } else {
                base
            }
        })
    }

    /// Returns the base quantity not yet filled, never below 0; None without a quantity.
    pub fn remaining(&self) -> Option<Amount> {
        self.term_quantity().map(|quantity| quantity.subtract(self.filled()).at_least_zero())
    }

    /// Returns what the order holds of its hold asset now; 0 when it is not open.
    pub fn hold(&self) -> Amount {
        let Some(placed) = &self.placed else {
            return ZERO;
        };
        if !self.is_open() {
            return ZERO;
        }
        if let Some(reserve) = self.term_reserve() {
            return reserve.subtract(&self.used().clone().at_least_zero()).at_least_zero();
        }
        let Some(remaining) = self.remaining() else {
            return ZERO;
        };
        if placed.side == Side::Sell {
            return remaining;
        }
        match self.term_limit_price() {
            Some(limit_price) if placed.is_limit => remaining.multiply(limit_price),
            _ => ZERO,
        }
    }
}

fn read_term(reader: &mut Reader) -> Result<Option<Term>, Damaged> {
    if reader.null() {
        return Ok(None);
    }
    reader.expect(b'[')?;
    let revision = reader.integer()?;
    reader.expect(b',')?;
    let text: Box<str> = reader.string()?.into();
    reader.expect(b']')?;
    let amount = Amount::parse(&text).ok_or(Damaged)?;
    Ok(Some(Term { revision, text, amount }))
}

fn write_term(term: Option<&Term>, out: &mut Vec<u8>) {
    let Some(term) = term else {
        out.extend_from_slice(b"null");
        return;
    };
    out.push(b'[');
    write_integer(term.revision, out);
    out.push(b',');
    write_string(&term.text, out);
    out.push(b']');
}

/// The amounts of an order that follow from its facts, for whoever reads a state.
pub struct OrderView {
    pub is_open: bool,
    pub is_complete: bool,
    pub terms: [Option<Amount>; 3],
    pub remaining: Option<Amount>,
    pub hold: Amount,
}

impl OrderView {
    pub fn of(value: &[u8]) -> Result<OrderView, Damaged> {
        let order = Order::decode(value)?;
        let terms = [order.term_quantity(), order.term_limit_price(), order.term_reserve()];
        Ok(OrderView {
            is_open: order.is_open(),
            is_complete: order.is_complete(),
            terms: terms.map(|term| term.cloned()),
            remaining: order.remaining(),
            hold: order.hold(),
        })
    }
}
