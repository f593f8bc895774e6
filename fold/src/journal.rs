//! The posting rules: which debits and credits one event makes (contract, section 3).
//!
//! A journal entry is a list of pairs, each a debit of one account and an equal credit of another in
//! one asset. So an entry cannot be unbalanced.

use crate::amount::{Amount, ZERO};
use crate::event::{amount, is_asset, is_instrument, Filled, Transfer};
use crate::fact;
use crate::json::Damaged;
use arrayvec::ArrayVec;
use std::borrow::Cow;
use std::cmp::Ordering;

/// Whose account is debited or credited: the event's own, or one that closes every entry.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Party {
    Clearing,
    Fees,
    External,
    Adjustments,
    Customer,
}

impl Party {
    /// How many system accounts there are; their numbers come first.
    pub const SYSTEM: usize = 4;

    /// Returns the account's name.
    pub fn name(self, customer: &str) -> &str {
        match self {
            Party::Customer => customer,
            Party::Clearing => "@clearing",
            Party::Fees => "@fees",
            Party::External => "@external",
            Party::Adjustments => "@adjustments",
        }
    }
}

use Party::{Adjustments, Clearing, Customer, External, Fees};

/// A debit posting and the credit posting that closes it; the amount is at least 0.
pub struct Pair<'a> {
    pub debit: Party,
    pub credit: Party,
    pub asset: &'a str,
    pub amount: Amount,
}

pub type Entry<'a> = ArrayVec<Pair<'a>, 3>;

fn pair(debit: Party, credit: Party, asset: &str, amount: Amount) -> Pair<'_> {
    Pair { debit, credit, asset, amount }
}

/// Returns base and quote asset.
pub fn split_instrument(instrument: &str) -> (&str, &str) {
    instrument.split_once('-').unwrap_or((instrument, ""))
}

/// Returns what a fill moves in quote: what the venue settled, else price x quantity.
pub fn notional(price: &str, quantity: &str, quote_quantity: Option<&str>) -> Amount {
    match quote_quantity {
        Some(settled) => amount(settled),
        None => amount(price).multiply(&amount(quantity)),
    }
}

/// What one side of a trade moved.
pub struct Trade<'a> {
    pub instrument: &'a str,
    pub side: &'a str,
    pub quantity: Amount,
    pub notional: Amount,
    pub fee: Amount,
    pub fee_asset: &'a str,
}

impl<'a> Trade<'a> {
    pub fn of_event(event: &Filled<'a>) -> Trade<'a> {
        Trade {
            instrument: event.instrument,
            side: event.side,
            quantity: amount(event.quantity),
            notional: notional(event.price, event.quantity, event.quote_quantity),
            fee: amount(event.fee),
            fee_asset: event.fee_asset,
        }
    }

    /// Returns what a stored fill moved; `texts` are those of its fact.
    pub fn of_texts(texts: &'a [Option<Cow<'a, str>>]) -> Result<Trade<'a>, Damaged> {
        let text = |place: usize| texts.get(place).and_then(|text| text.as_deref());
        let stated = |place: usize| text(place).and_then(Amount::parse).ok_or(Damaged);
        let (price, quantity) = (stated(3)?, stated(4)?);
        let notional = match text(5) {
            Some(settled) => Amount::parse(settled).ok_or(Damaged)?,
            None => price.multiply(&quantity),
        };
        let (instrument, fee_asset) = (text(1).ok_or(Damaged)?, text(7).ok_or(Damaged)?);
        if !is_instrument(instrument) || !is_asset(fee_asset) {
            return Err(Damaged);
        }
        Ok(Trade {
            instrument,
            side: text(2).ok_or(Damaged)?,
            quantity,
            notional,
            fee: stated(6)?,
            fee_asset,
        })
    }

    /// Returns the entry of this side of a trade.
    pub fn entry(&self) -> Entry<'a> {
        let (base, quote) = split_instrument(self.instrument);
        let (quantity, notional) = (self.quantity.clone(), self.notional.clone());
        let mut entry = Entry::new();
        if self.side == "buy" {
            entry.push(pair(Customer, Clearing, quote, notional));
            entry.push(pair(Clearing, Customer, base, quantity));
        } else {
            entry.push(pair(Clearing, Customer, quote, notional));
            entry.push(pair(Customer, Clearing, base, quantity));
        }
        match self.fee.sign() {
            Ordering::Greater => entry.push(pair(Customer, Fees, self.fee_asset, self.fee.clone())),
            Ordering::Less => entry.push(pair(Fees, Customer, self.fee_asset, self.fee.negated())),
            Ordering::Equal => {}
        }
        entry
    }

    /// Returns what it took of its order's hold asset, a fee in that asset included.
    pub fn taken(&self) -> Amount {
        let (base, quote) = split_instrument(self.instrument);
        let (asset, amount) =
            if self.side == "buy" { (quote, &self.notional) } else { (base, &self.quantity) };
        if self.fee_asset == asset {
            amount.add(&self.fee)
        } else {
            amount.clone()
        }
    }
}

/// Calls `use_it` with what a stored fill moved.
pub fn with_stored<T>(fill: &[u8], use_it: impl FnOnce(&Trade) -> T) -> Result<T, Damaged> {
    let texts = fact::texts(fill)?;
    Ok(use_it(&Trade::of_texts(&texts)?))
}

/// Returns the entry of a deposit, a withdrawal or an adjustment.
pub fn transfer_entry<'a>(event: &Transfer<'a>) -> Entry<'a> {
    let moved = amount(event.amount);
    let mut entry = Entry::new();
    match event.kind {
        "deposited" => entry.push(pair(External, Customer, event.asset, moved)),
        "withdrawn" => {
            entry.push(pair(Customer, External, event.asset, moved));
            let fee = event.fee.map_or(ZERO, amount);
            if !fee.is_zero() {
                entry.push(pair(Customer, Fees, event.asset, fee));
            }
        }
        _ if moved.sign() == Ordering::Greater => {
            entry.push(pair(Adjustments, Customer, event.asset, moved));
        }
        _ => entry.push(pair(Customer, Adjustments, event.asset, moved.negated())),
    }
    entry
}

/// Exchanges debit and credit: what a bust posts.
pub fn reverse(entry: &mut Entry) {
    for pair in entry {
        std::mem::swap(&mut pair.debit, &mut pair.credit);
    }
}
