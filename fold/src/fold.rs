//! The fold: one partition's records become its state.
//!
//! State is a pure function of which records were applied, not of how the three topics interleaved.
//! Nothing here waits, logs or reads a clock. Entries that changed, or that are likely to be asked for
//! again, are kept decoded; the store is asked for all others.

use crate::account::Account;
use crate::amount::Amount;
use crate::digest::{self, Chain, Sum};
use crate::event::{Busted, Event, Filled, Kind, Placed as PlacedEvent, Terms, Transfer};
use crate::fact::{self, Fact, Shape};
use crate::journal::{self, Entry, Trade};
use crate::json::Damaged;
use crate::keys;
use crate::order::{Execution, Order, Placed, INLINE};
use indexmap::IndexMap;
use std::borrow::Cow;

type Map<K, V> = IndexMap<K, V, ahash::RandomState>;
type Key = Box<[u8]>;

/// A record as Kafka has it.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    pub offset: u64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// What a record holds, before the state is asked.
pub enum Content<'a> {
    Event(Event<'a>),
    /// Why it is none: a short word and a sentence.
    Invalid(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    Applied,
    Duplicate,
    Conflict,
    Invalid,
}

/// A record that was not applied: its place among those given, whether it was in conflict, and why.
pub struct Refusal {
    pub place: usize,
    pub conflict: bool,
    pub detail: String,
}

/// What became of records.
pub struct Outcome {
    pub verdicts: Vec<Verdict>,
    pub refusals: Vec<Refusal>,
    pub log_digest: Option<Chain>,
}

/// Why records could not be applied; state is not to be used any more.
pub enum Trouble<E> {
    /// A stored entry cannot be read.
    Damaged(Vec<u8>),
    /// The store failed.
    Store(E),
}

impl<E> From<E> for Trouble<E> {
    fn from(error: E) -> Trouble<E> {
        Trouble::Store(error)
    }
}

/// Stored entries, of which the fold asks for those that it does not have.
pub trait Shelf {
    type Error;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;
    fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, Self::Error>;
    /// Returns the entries whose key begins with `prefix`.
    fn scan(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Self::Error>;
}

type Found<T, S> = Result<T, Trouble<<S as Shelf>::Error>>;

fn readable<T, E>(read: Result<T, Damaged>, key: &[u8]) -> Result<T, Trouble<E>> {
    read.map_err(|Damaged| Trouble::Damaged(key.to_vec()))
}

/// An entry that is written once, or seldom: a transfer, a later fill, a later amendment.
enum Loose {
    Fact(Fact),
    Execution(Execution),
}

struct LooseEntry {
    value: Loose,
    element: Option<Box<Sum>>,
    dirty: bool,
}

impl LooseEntry {
    fn new(value: Loose) -> LooseEntry {
        LooseEntry {
            value,
            element: None,
            dirty: true,
        }
    }

    fn encode(&self) -> Vec<u8> {
        match &self.value {
            Loose::Fact(fact) => fact.to_vec(),
            Loose::Execution(execution) => {
                let mut out = Vec::with_capacity(256);
                execution.write(&mut out);
                out
            }
        }
    }
}

/// Where an order keeps a fill.
enum Place {
    Inline(usize),
    Loose(Key),
    Nowhere,
}

pub struct Fold {
    number: u32,
    partitions: u32,
    accounts: Map<Box<str>, Account>,
    orders: Map<Key, Order>,
    loose: Map<Key, LooseEntry>,
    dirty_accounts: Vec<usize>,
    dirty_orders: Vec<usize>,
    total: Sum,
    cached_entries: usize,
    conflict: String,
}

/// An entry to be stored, or to be deleted where there is no value.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

impl Fold {
    /// Returns the fold of a partition whose stored entries add up to `total`.
    ///
    /// As many unchanged accounts, and as many open orders, stay decoded as `cached_entries` says.
    pub fn new(number: u32, partitions: u32, total: Sum, cached_entries: usize) -> Fold {
        Fold {
            number,
            partitions,
            accounts: Map::default(),
            orders: Map::default(),
            loose: Map::default(),
            dirty_accounts: Vec::new(),
            dirty_orders: Vec::new(),
            total,
            cached_entries,
            conflict: String::new(),
        }
    }

    pub fn total(&self) -> Sum {
        self.total
    }

    // -- applying

    /// Returns what is wrong with a record's key, if anything is.
    pub fn key_problem(&self, key: Option<&[u8]>, account: &str) -> Option<String> {
        let Some(key) = key else {
            return Some("key: the record has no key; it must be the account".to_owned());
        };
        if key != account.as_bytes() {
            return Some(format!("key: the key is not the account '{account}'"));
        }
        let right = partition_of(key, self.partitions);
        (right != self.number).then(|| format!("partition: the key belongs to partition {right}"))
    }

    /// Applies records of one topic, in offset order, whose contents were found before.
    pub fn apply<S: Shelf>(
        &mut self,
        records: &[Record],
        contents: Vec<Content>,
        log_digest: Option<Chain>,
        shelf: &S,
    ) -> Found<Outcome, S> {
        let transfers = self.prefetch(&contents, shelf)?;
        let mut outcome = Outcome {
            verdicts: Vec::with_capacity(records.len()),
            refusals: Vec::new(),
            log_digest,
        };
        for (place, (record, content)) in records.iter().zip(contents).enumerate() {
            if let Some(digest) = &mut outcome.log_digest {
                *digest = digest::chain(&*digest, record.offset, record.key, record.value);
            }
            let verdict = match content {
                Content::Invalid(detail) => {
                    outcome.refusals.push(Refusal {
                        place,
                        conflict: false,
                        detail,
                    });
                    Verdict::Invalid
                }
                Content::Event(event) => {
                    let verdict = self.judge(&event, record.offset, &transfers, shelf)?;
                    if verdict == Verdict::Conflict {
                        let detail = std::mem::take(&mut self.conflict);
                        outcome.refusals.push(Refusal {
                            place,
                            conflict: true,
                            detail,
                        });
                    }
                    verdict
                }
            };
            outcome.verdicts.push(verdict);
        }
        Ok(outcome)
    }

    /// Loads what events will ask for and is not in memory, by one question to the store.
    ///
    /// Returns the stored transfers.
    fn prefetch<S: Shelf>(
        &mut self,
        contents: &[Content],
        shelf: &S,
    ) -> Found<Map<Vec<u8>, Option<Vec<u8>>>, S> {
        enum Wanted<'a> {
            Account(&'a str),
            Order,
            Transfer,
        }
        let mut wanted: Map<Vec<u8>, Wanted> = Map::default();
        for content in contents {
            let Content::Event(event) = content else {
                continue;
            };
            let account = event.account;
            if !self.accounts.contains_key(account) {
                wanted
                    .entry(keys::balances(account))
                    .or_insert(Wanted::Account(account));
            }
            match &event.kind {
                Kind::Transfer(transfer) => {
                    let key = keys::transfer(account, transfer.transfer_id);
                    if !self.loose.contains_key(&*key) {
                        wanted.entry(key).or_insert(Wanted::Transfer);
                    }
                }
                other => {
                    let order_id = other.order_id().expect("all but transfers have an order");
                    let key = keys::order(account, order_id);
                    if !self.orders.contains_key(&*key) {
                        wanted.entry(key).or_insert(Wanted::Order);
                    }
                }
            }
        }
        let mut transfers = Map::default();
        if wanted.is_empty() {
            return Ok(transfers);
        }
        let (keys, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let values = shelf.get_many(&keys)?;
        for ((key, what), value) in keys.into_iter().zip(wanted).zip(values) {
            match what {
                Wanted::Account(name) => {
                    self.accounts.insert(name.into(), account_of(&key, value)?);
                }
                Wanted::Order => {
                    let order = order_of(&key, value)?;
                    self.orders.insert(key.into(), order);
                }
                Wanted::Transfer => {
                    transfers.insert(key, value);
                }
            }
        }
        Ok(transfers)
    }

    fn judge<S: Shelf>(
        &mut self,
        event: &Event,
        offset: u64,
        transfers: &Map<Vec<u8>, Option<Vec<u8>>>,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let (account, time) = (event.account, event.occurred_at);
        if let Kind::Transfer(transfer) = &event.kind {
            return self.transferred(account, time, transfer, offset, transfers, shelf);
        }
        let order_id = event
            .kind
            .order_id()
            .expect("all but transfers have an order");
        let key = keys::order(account, order_id);
        let order = match self.orders.get_index_of(&*key) {
            Some(order) => order,
            None => {
                let found = order_of(&key, shelf.get(&key)?)?;
                self.orders.insert_full(key.into(), found).0
            }
        };
        match &event.kind {
            Kind::Placed(event) => self.placed(order, account, time, event, offset, shelf),
            Kind::Amended {
                order_id,
                revision,
                terms,
            } => {
                let key = keys::amendment(account, order_id, *revision);
                self.amended(order, account, time, *revision, terms, key, offset, shelf)
            }
            Kind::Cancelled {
                reason, instrument, ..
            } => {
                let fact = fact::closed(offset, time, reason, *instrument);
                self.closed(order, account, fact, true, shelf)
            }
            Kind::Rejected { reason, .. } => {
                let fact = fact::closed(offset, time, reason, None);
                self.closed(order, account, fact, false, shelf)
            }
            Kind::Filled(event) => self.filled(order, account, time, event, offset, shelf),
            Kind::Busted(event) => self.busted(order, account, time, event, offset, shelf),
            Kind::Transfer(_) => unreachable!("transfers have no order"),
        }
    }

    /// Returns the verdict on a record whose identity is already known.
    fn compare<E>(
        conflict: &mut String,
        shape: Shape,
        stored: &[u8],
        new: &[u8],
        kind: &str,
    ) -> Result<Verdict, Trouble<E>> {
        if readable(fact::same_content(shape, stored, new), stored)? {
            return Ok(Verdict::Duplicate);
        }
        let offset = readable(fact::offset(stored), stored)?;
        *conflict = format!(
            "another {kind} with this identity stands at offset {offset} and says otherwise"
        );
        Ok(Verdict::Conflict)
    }

    fn placed<S: Shelf>(
        &mut self,
        index: usize,
        account: &str,
        time: &str,
        event: &PlacedEvent,
        offset: u64,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let fact = fact::placed(offset, time, event);
        let order = &mut self.orders[index];
        if let Some(placed) = &order.placed {
            let shape = Shape::Placed;
            return Self::compare(
                &mut self.conflict,
                shape,
                &placed.fact,
                &fact,
                "order_placed",
            );
        }
        order.placed = Some(Placed::of_event(fact, event));
        // Fills that came before the order now count.
        if !order.fills.is_empty() {
            self.count_early_fills(index, account, event.order_id, shelf)?;
        }
        self.changed(index, account, shelf)?;
        Ok(Verdict::Applied)
    }

    fn count_early_fills<S: Shelf>(
        &mut self,
        index: usize,
        account: &str,
        order_id: &str,
        shelf: &S,
    ) -> Found<(), S> {
        let order = &mut self.orders[index];
        let mut standing: Vec<Fact> = Vec::new();
        let mut add = |execution: &Execution| {
            if let Execution {
                fill: Some(fill),
                bust: None,
            } = execution
            {
                standing.push(fill.clone());
            }
        };
        order.fills.iter().for_each(|(_, execution)| add(execution));
        if order.more_fills > 0 {
            let prefix = keys::fills(account, order_id);
            for (key, value) in shelf.scan(&prefix)? {
                if !self.loose.contains_key(&*key) {
                    add(&readable(Execution::decode(&value), &key)?);
                }
            }
            for (key, entry) in &self.loose {
                if let Loose::Execution(execution) = &entry.value {
                    if key.starts_with(&prefix) {
                        add(execution);
                    }
                }
            }
        }
        for fill in standing {
            let counted = journal::with_stored(&fill, |trade| {
                if order.counts(trade) {
                    order.count(trade);
                }
            });
            readable(counted, &fill)?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn amended<S: Shelf>(
        &mut self,
        index: usize,
        account: &str,
        time: &str,
        revision: i64,
        terms: &Terms,
        key: Vec<u8>,
        offset: u64,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let fact = fact::amended(offset, time, terms);
        let order = &mut self.orders[index];
        let inline = order
            .amendments
            .iter()
            .find(|(known, _)| *known == revision);
        let known = match inline {
            Some((_, fact)) => Some(Cow::Borrowed(&**fact)),
            None if order.more_amendments > 0 => {
                loose_fact(&self.loose, &key, shelf)?.map(Cow::Owned)
            }
            None => None,
        };
        if let Some(known) = known {
            let shape = Shape::Amended;
            return Self::compare(&mut self.conflict, shape, &known, &fact, "order_amended");
        }
        if order.amendments.len() < INLINE {
            order.amendments.push((revision, fact));
        } else {
            order.more_amendments += 1;
            self.loose
                .insert(key.into(), LooseEntry::new(Loose::Fact(fact)));
        }
        order.amend(revision, terms);
        self.changed(index, account, shelf)?;
        Ok(Verdict::Applied)
    }

    fn closed<S: Shelf>(
        &mut self,
        index: usize,
        account: &str,
        fact: Fact,
        cancel: bool,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let order = &mut self.orders[index];
        let (known, kind) = if cancel {
            (&mut order.cancelled, "order_cancelled")
        } else {
            (&mut order.rejected, "order_rejected")
        };
        if let Some(known) = known {
            return Self::compare(&mut self.conflict, Shape::Closed, known, &fact, kind);
        }
        *known = Some(fact);
        self.changed(index, account, shelf)?;
        Ok(Verdict::Applied)
    }

    fn filled<S: Shelf>(
        &mut self,
        index: usize,
        account: &str,
        time: &str,
        event: &Filled,
        offset: u64,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let place = self.locate(index, account, event.order_id, event.fill_id, shelf)?;
        let fact = fact::filled(offset, time, event);
        let known = self.execution(index, &place);
        if let Some(stored) = known.and_then(|execution| execution.fill.as_ref()) {
            let stored = stored.clone();
            return Self::compare(
                &mut self.conflict,
                Shape::Fill,
                &stored,
                &fact,
                "order_filled",
            );
        }
        let is_busted = known.is_some_and(|execution| execution.bust.is_some());
        let trade = Trade::of_event(event);
        let mut entry = trade.entry(account);
        self.post(&entry, shelf)?;
        if is_busted {
            journal::reverse(&mut entry);
            self.post(&entry, shelf)?;
        } else {
            let order = &mut self.orders[index];
            if order.counts(&trade) {
                order.count(&trade);
            }
        }
        self.keep(
            index,
            account,
            event.order_id,
            event.fill_id,
            place,
            |execution| {
                execution.fill = Some(fact);
            },
        );
        self.changed(index, account, shelf)?;
        Ok(Verdict::Applied)
    }

    fn busted<S: Shelf>(
        &mut self,
        index: usize,
        account: &str,
        time: &str,
        event: &Busted,
        offset: u64,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let place = self.locate(index, account, event.order_id, event.fill_id, shelf)?;
        let fact = fact::busted(offset, time, event);
        let known = self.execution(index, &place);
        if let Some(stored) = known.and_then(|execution| execution.bust.as_ref()) {
            let stored = stored.clone();
            return Self::compare(
                &mut self.conflict,
                Shape::Bust,
                &stored,
                &fact,
                "fill_busted",
            );
        }
        if let Some(fill) = known.and_then(|execution| execution.fill.clone()) {
            let texts = readable(fact::texts(&fill), &fill)?;
            let trade = readable(Trade::of_texts(&texts), &fill)?;
            let mut entry = trade.entry(account);
            journal::reverse(&mut entry);
            self.post(&entry, shelf)?;
            let order = &mut self.orders[index];
            if order.counts(&trade) {
                order.discount(&trade);
            }
        }
        self.keep(
            index,
            account,
            event.order_id,
            event.fill_id,
            place,
            |execution| {
                execution.bust = Some(fact);
            },
        );
        self.changed(index, account, shelf)?;
        Ok(Verdict::Applied)
    }

    fn transferred<S: Shelf>(
        &mut self,
        account: &str,
        time: &str,
        event: &Transfer,
        offset: u64,
        transfers: &Map<Vec<u8>, Option<Vec<u8>>>,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let fact = fact::transfer(offset, time, event);
        let key = keys::transfer(account, event.transfer_id);
        let known = match (self.loose.get(&*key), transfers.get(&*key)) {
            (None, Some(stored)) => stored.clone(),
            _ => loose_fact(&self.loose, &key, shelf)?,
        };
        if let Some(known) = known {
            let shape = Shape::Transfer;
            return Self::compare(&mut self.conflict, shape, &known, &fact, event.kind);
        }
        self.loose
            .insert(key.into(), LooseEntry::new(Loose::Fact(fact)));
        self.post(&journal::transfer_entry(account, event), shelf)?;
        Ok(Verdict::Applied)
    }

    // -- entries in memory

    fn post<S: Shelf>(&mut self, entry: &Entry, shelf: &S) -> Found<(), S> {
        for pair in entry {
            let row = self.account(pair.debit, shelf)?.row(pair.asset);
            row.debits = row.debits.add(&pair.amount);
            let row = self.account(pair.credit, shelf)?.row(pair.asset);
            row.credits = row.credits.add(&pair.amount);
        }
        Ok(())
    }

    /// Returns an account that is about to change.
    fn account<S: Shelf>(&mut self, name: &str, shelf: &S) -> Found<&mut Account, S> {
        let index = match self.accounts.get_index_of(name) {
            Some(index) => index,
            None => {
                let key = keys::balances(name);
                let account = account_of(&key, shelf.get(&key)?)?;
                self.accounts.insert_full(name.into(), account).0
            }
        };
        let account = &mut self.accounts[index];
        if !account.dirty {
            account.dirty = true;
            self.dirty_accounts.push(index);
        }
        Ok(account)
    }

    /// Notes that an order changed, and lets its account's hold follow.
    fn changed<S: Shelf>(&mut self, index: usize, account: &str, shelf: &S) -> Found<(), S> {
        let order = &mut self.orders[index];
        if !order.dirty {
            order.dirty = true;
            self.dirty_orders.push(index);
        }
        if order.placed.is_none() {
            return Ok(());
        }
        let hold = order.hold();
        let change = hold.subtract(order.held());
        if change.is_zero() {
            return Ok(());
        }
        let asset = order
            .hold_asset()
            .expect("a placed order holds an asset")
            .to_owned();
        order.held = Some(hold);
        let row = self.account(account, shelf)?.row(&asset);
        row.hold = row.hold.add(&change);
        Ok(())
    }

    /// Returns where an order keeps a fill and its bust.
    fn locate<S: Shelf>(
        &mut self,
        index: usize,
        account: &str,
        order_id: &str,
        fill_id: &str,
        shelf: &S,
    ) -> Found<Place, S> {
        let order = &self.orders[index];
        if let Some(place) = order
            .fills
            .iter()
            .position(|(known, _)| **known == *fill_id)
        {
            return Ok(Place::Inline(place));
        }
        if order.more_fills == 0 {
            return Ok(Place::Nowhere);
        }
        let key = keys::fill(account, order_id, fill_id);
        if !self.loose.contains_key(&*key) {
            let Some(value) = shelf.get(&key)? else {
                return Ok(Place::Nowhere);
            };
            let execution = readable(Execution::decode(&value), &key)?;
            let entry = LooseEntry {
                value: Loose::Execution(execution),
                element: Some(Box::new(Sum::of_entry(&key, &value))),
                dirty: false,
            };
            self.loose.insert(key.clone().into(), entry);
        }
        Ok(Place::Loose(key.into()))
    }

    fn execution(&self, index: usize, place: &Place) -> Option<&Execution> {
        match place {
            Place::Inline(place) => Some(&self.orders[index].fills[*place].1),
            Place::Loose(key) => match &self.loose[key].value {
                Loose::Execution(execution) => Some(execution),
                Loose::Fact(_) => None,
            },
            Place::Nowhere => None,
        }
    }

    /// Changes an execution where it is kept, and finds a place for one that is new.
    fn keep(
        &mut self,
        index: usize,
        account: &str,
        order_id: &str,
        fill_id: &str,
        place: Place,
        change: impl FnOnce(&mut Execution),
    ) {
        let order = &mut self.orders[index];
        match place {
            Place::Inline(place) => change(&mut order.fills[place].1),
            Place::Loose(key) => {
                let entry = &mut self.loose[&key];
                if let Loose::Execution(execution) = &mut entry.value {
                    change(execution);
                }
                entry.dirty = true;
            }
            Place::Nowhere => {
                let mut execution = Execution::default();
                change(&mut execution);
                if order.fills.len() < INLINE {
                    order.fills.push((fill_id.into(), execution));
                } else {
                    order.more_fills += 1;
                    let key = keys::fill(account, order_id, fill_id);
                    let entry = LooseEntry::new(Loose::Execution(execution));
                    self.loose.insert(key.into(), entry);
                }
            }
        }
    }

    /// Returns the stored form of a fill and its bust as of now, if either is known.
    pub fn execution_of<S: Shelf>(
        &mut self,
        account: &str,
        order_id: &str,
        fill_id: &str,
        shelf: &S,
    ) -> Found<Option<Vec<u8>>, S> {
        let key = keys::order(account, order_id);
        let index = match self.orders.get_index_of(&*key) {
            Some(index) => index,
            None => {
                let order = order_of(&key, shelf.get(&key)?)?;
                self.orders.insert_full(key.into(), order).0
            }
        };
        let place = self.locate(index, account, order_id, fill_id, shelf)?;
        Ok(self.execution(index, &place).map(|execution| {
            let mut out = Vec::new();
            execution.write(&mut out);
            out
        }))
    }

    // -- freezing and settling

    /// Returns what changed since the last freeze; `settle` has to come before the next.
    ///
    /// Changed accounts are first, as many as the number returned with them.
    pub fn freeze(&mut self) -> (Vec<Change>, usize) {
        let count = self.dirty_accounts.len() + self.dirty_orders.len() + self.loose.len();
        let mut changes = Vec::with_capacity(count);
        for index in self.dirty_accounts.drain(..) {
            let (name, account) = self.accounts.get_index_mut(index).expect("dirty ones stay");
            let key = keys::balances(name);
            let value = account.encode();
            account.dirty = false;
            replace(
                &mut self.total,
                &mut account.element,
                &key,
                value.as_deref(),
            );
            changes.push((key, value));
        }
        let accounts = changes.len();
        for index in self.dirty_orders.drain(..) {
            let (key, order) = self.orders.get_index_mut(index).expect("dirty ones stay");
            let value = order.encode();
            order.dirty = false;
            replace(&mut self.total, &mut order.element, key, Some(&value));
            changes.push((key.to_vec(), Some(value)));
        }
        for (key, entry) in self.loose.iter_mut().filter(|(_, entry)| entry.dirty) {
            let value = entry.encode();
            entry.dirty = false;
            replace(&mut self.total, &mut entry.element, key, Some(&value));
            changes.push((key.to_vec(), Some(value)));
        }
        (changes, accounts)
    }

    /// Forgets what need not be kept in memory: the last freeze is in the store.
    pub fn settle(&mut self) {
        self.loose.retain(|_, entry| entry.dirty);
        self.orders
            .retain(|_, order| order.dirty || !order.held().is_zero());
        if self.orders.len() > self.cached_entries {
            self.orders.retain(|_, order| order.dirty);
        }
        if self.accounts.len() > self.cached_entries {
            self.accounts.retain(|_, account| account.dirty);
        }
        let dirty = |(index, is_dirty): (usize, bool)| is_dirty.then_some(index);
        self.dirty_orders = self
            .orders
            .values()
            .map(|order| order.dirty)
            .enumerate()
            .filter_map(dirty)
            .collect();
        self.dirty_accounts = self
            .accounts
            .values()
            .map(|found| found.dirty)
            .enumerate()
            .filter_map(dirty)
            .collect();
    }
}

fn replace(total: &mut Sum, element: &mut Option<Box<Sum>>, key: &[u8], value: Option<&[u8]>) {
    if let Some(before) = element.take() {
        total.subtract(&before);
    }
    if let Some(value) = value {
        let after = Sum::of_entry(key, value);
        total.add(&after);
        *element = Some(Box::new(after));
    }
}

fn account_of<E>(key: &[u8], value: Option<Vec<u8>>) -> Result<Account, Trouble<E>> {
    let Some(value) = value else {
        return Ok(Account::default());
    };
    let mut account = readable(Account::decode(&value), key)?;
    account.element = Some(Box::new(Sum::of_entry(key, &value)));
    Ok(account)
}

fn order_of<E>(key: &[u8], value: Option<Vec<u8>>) -> Result<Order, Trouble<E>> {
    let Some(value) = value else {
        return Ok(Order::default());
    };
    let mut order = readable(Order::decode(&value), key)?;
    order.element = Some(Box::new(Sum::of_entry(key, &value)));
    Ok(order)
}

/// Returns a fact that is an entry of its own, or None.
fn loose_fact<S: Shelf>(
    loose: &Map<Key, LooseEntry>,
    key: &[u8],
    shelf: &S,
) -> Found<Option<Vec<u8>>, S> {
    match loose.get(key) {
        Some(entry) => Ok(Some(entry.encode())),
        None => Ok(shelf.get(key)?),
    }
}

/// Returns the partition (from 0) of a record's key: Kafka's default, murmur2.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    const MIX: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut chunks = key.chunks_exact(4);
    for chunk in &mut chunks {
        let mut word = u32::from_le_bytes(chunk.try_into().expect("four bytes"));
        word = word.wrapping_mul(MIX);
        word ^= word >> 24;
        hash = hash.wrapping_mul(MIX) ^ word.wrapping_mul(MIX);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(MIX);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MIX);
    hash ^= hash >> 15;
    (hash & 0x7fff_ffff) % partitions
}

/// Returns the amounts of an order that follow from its facts, for whoever reads a state.
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
        let terms = [
            order.term_quantity(),
            order.term_limit_price(),
            order.term_reserve(),
        ];
        Ok(OrderView {
            is_open: order.is_open(),
            is_complete: order.is_complete(),
            terms: terms.map(|term| term.cloned()),
            remaining: order.remaining(),
            hold: order.hold(),
        })
    }
}
