//! The fold: one partition's records become its state.
//!
//! State is a pure function of which records were applied, not of how the three topics interleaved.
//! Nothing here waits, logs or reads a clock. Entries that changed, or that are likely to be asked for
//! again, are kept decoded; the store is asked for all others.

use crate::account::{Account, Sought};
use crate::digest::{self, Chain, Sum, BEFORE_KEY};
use crate::event::{
    self, Busted, Event, Filled, Kind, Placed as PlacedEvent, Terms, Transfer, Usual,
};
use crate::fact::{self, Fact, Shape, Stated};
use crate::journal::{self, Entry, Party, Trade};
use crate::json::Damaged;
use crate::keys;
use crate::near;
use crate::order::{Execution, Order, Placed, INLINE};
use indexmap::map::Entry as MapEntry;
use indexmap::IndexMap;
use std::borrow::Cow;
use std::sync::OnceLock;

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
    /// The codec has to look at it.
    Unsure,
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

/// The values of keys, each None where there is none.
pub type Stored = Vec<Option<Vec<u8>>>;

/// A key and its value.
pub type StoredEntry = (Vec<u8>, Vec<u8>);

/// Stored entries, of which the fold asks for those that it does not have.
pub trait Shelf {
    type Error;

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;
    fn get_many(&self, keys: &[&[u8]]) -> Result<Stored, Self::Error>;
    /// Returns the entries whose key begins with `prefix`.
    fn scan(&self, prefix: &[u8]) -> Result<Vec<StoredEntry>, Self::Error>;
}

/// What is needed next is brought near so many steps before.
const SOON: usize = 4;

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
        LooseEntry { value, element: None, dirty: true }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match &self.value {
            Loose::Fact(fact) => out.extend_from_slice(fact),
            Loose::Execution(execution) => execution.write(out),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }
}

/// Where an order keeps a fill.
enum Keeping {
    Inline(usize),
    Loose(Key),
    Nowhere,
}

/// Where the entries that an event is about are in memory; a transfer is about no order.
#[derive(Clone, Copy)]
struct Entries {
    account: usize,
    order: Option<usize>,
}

impl Entries {
    fn order(self) -> usize {
        self.order.expect("all but transfers have an order")
    }
}

/// What all events have: whose they are, what they are about, when they were and where.
#[derive(Clone, Copy)]
struct Place<'a> {
    account: &'a str,
    entries: Entries,
    stated: Stated<'a>,
}

pub struct Fold {
    number: u32,
    partitions: u32,
    accounts: Map<Box<str>, Account>,
    orders: Map<Key, Box<Order>>, // apart, because a map moves what it holds
    loose: Map<Key, LooseEntry>,
    dirty_accounts: Vec<usize>,
    dirty_orders: Vec<usize>,
    system: [Option<usize>; Party::SYSTEM], // where their accounts are, once asked for
    total: Sum,
    cached_entries: usize,
    conflict: String,
}

/// Where in memory the entry of a change is.
enum Slot {
    Account(usize),
    Order(usize),
    Loose(usize),
}

/// An entry to be stored, or to be deleted where there is no value: a stretch of `Frozen::data`,
/// which begins with what is hashed before the key.
struct Change {
    begin: usize,
    key: usize,
    value: Option<usize>,      // both are lengths
    element: Option<Box<Sum>>, // of the entry that it replaces
    slot: Slot,
    is_kept: bool, // whether the entry may stay in memory when this is settled
}

/// What changed between two freezes.
pub struct Frozen {
    data: Vec<u8>,
    changes: Vec<Change>,
    total: Sum,
    hashed: OnceLock<Hashed>,
    sorted: OnceLock<Vec<usize>>,
}

struct Hashed {
    total: Sum,
    elements: Vec<Option<Box<Sum>>>,
}

impl Frozen {
    /// Returns the key of the change at a place in order of the keys, and the value if there is one.
    ///
    /// A store on disk takes neighbours sooner than what lies far apart.
    pub fn entry(&self, place: usize) -> Option<(&[u8], Option<&[u8]>)> {
        let next = self.sort().get(place..)?;
        if let Some(place) = next.get(2 * SOON) {
            near::bring(&self.changes[*place]);
        }
        if let Some(place) = next.get(SOON) {
            near::bring_all(self.written(&self.changes[*place]));
        }
        next.first().map(|place| self.entry_of(&self.changes[*place]))
    }

    /// Adds an entry, of which `write` writes the value; there is none where it writes nothing.
    fn add(
        &mut self,
        key: &[u8],
        write: impl FnOnce(&mut Vec<u8>),
        element: Option<Box<Sum>>,
        slot: Slot,
        is_kept: bool,
    ) {
        let begin = self.data.len();
        digest::write_key(key, &mut self.data);
        let value_begin = self.data.len();
        write(&mut self.data);
        let value = Some(self.data.len() - value_begin).filter(|length| *length > 0);
        self.changes.push(Change { begin, key: key.len(), value, element, slot, is_kept });
    }

    fn written(&self, change: &Change) -> &[u8] {
        &self.data[change.begin..][..BEFORE_KEY + change.key + change.value.unwrap_or(0)]
    }

    /// Sorts the changes by their keys, unless that is done.
    pub fn sort(&self) -> &[usize] {
        self.sorted.get_or_init(|| {
            sorted_places(self.changes.len(), |place| self.entry_of(&self.changes[place]).0)
        })
    }

    fn entry_of(&self, change: &Change) -> (&[u8], Option<&[u8]>) {
        let (key, rest) = self.written(change)[BEFORE_KEY..].split_at(change.key);
        (key, change.value.map(|_| rest))
    }

    /// Returns all keys, and the values if there are any.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.changes.iter().map(|change| self.entry_of(change))
    }

    /// Returns the names of the accounts that changed, from the one at a place on, and the stored
    /// entry if there is one.
    pub fn accounts(&self, from: usize) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let changes = self.changes[from..].iter(); // which begin with the accounts
        changes.map_while(|change| {
            let (key, value) = self.entry_of(change);
            Some((keys::account(key)?, value))
        })
    }

    /// Returns the sum over all entries after these changes.
    pub fn total(&self) -> Sum {
        self.hashed().total
    }

    /// Hashing takes longer than all else, so it is not done before it is needed, and may be done
    /// while the fold goes on.
    fn hashed(&self) -> &Hashed {
        self.hashed.get_or_init(|| {
            let mut total = self.total;
            let mut elements = Vec::with_capacity(self.changes.len());
            for change in &self.changes {
                if let Some(before) = &change.element {
                    total.subtract(before);
                }
                elements.push(change.value.and_then(|_| {
                    let after = Sum::of_written(self.written(change));
                    total.add(&after);
                    change.is_kept.then(|| Box::new(after))
                }));
            }
            Hashed { total, elements }
        })
    }
}

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
            system: [None; Party::SYSTEM],
            total,
            cached_entries,
            conflict: String::new(),
        }
    }

    pub fn total(&self) -> Sum {
        self.total
    }

    // -- applying

    /// Returns what a record of a topic holds, without the codec.
    pub fn content<'a>(&self, topic: &str, record: &Record<'a>, usual: &mut Usual) -> Content<'a> {
        match record.value.and_then(|value| event::parse(topic, value, usual)) {
            Some(event) => self.checked(record.key, event),
            None => Content::Unsure,
        }
    }

    /// Returns the event, if the key is its account and belongs here.
    pub fn checked<'a>(&self, key: Option<&[u8]>, event: Event<'a>) -> Content<'a> {
        match self.key_problem(key, event.account) {
            Some(problem) => Content::Invalid(problem),
            None => Content::Event(event),
        }
    }

    fn key_problem(&self, key: Option<&[u8]>, account: &str) -> Option<String> {
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
        contents: &[Content],
        log_digest: Option<Chain>,
        shelf: &S,
    ) -> Found<Outcome, S> {
        let found = self.find(contents, shelf)?;
        let mut judged = 0;
        let mut outcome = Outcome {
            verdicts: Vec::with_capacity(records.len()),
            refusals: Vec::new(),
            log_digest,
        };
        for (place, (record, content)) in records.iter().zip(contents).enumerate() {
            if let Some(digest) = &mut outcome.log_digest {
                *digest = digest::chain(digest, record.offset, record.key, record.value);
            }
            let verdict = match content {
                Content::Unsure => unreachable!("the codec has looked at it"),
                Content::Invalid(detail) => {
                    let detail = detail.clone();
                    outcome.refusals.push(Refusal { place, conflict: false, detail });
                    Verdict::Invalid
                }
                Content::Event(event) => {
                    self.approach(&found[judged..]);
                    let verdict = self.judge(event, found[judged], record.offset, shelf)?;
                    judged += 1;
                    if verdict == Verdict::Conflict {
                        let detail = std::mem::take(&mut self.conflict);
                        outcome.refusals.push(Refusal { place, conflict: true, detail });
                    }
                    verdict
                }
            };
            outcome.verdicts.push(verdict);
        }
        Ok(outcome)
    }

    /// Lets the processor bring near what the events that follow are about, of which most has long
    /// been displaced by others.
    fn approach(&self, entries: &[Entries]) {
        if let Some(entries) = entries.get(2 * SOON) {
            near::bring(&self.accounts[entries.account]);
            if let Some(order) = entries.order {
                near::bring(&self.orders[order]);
            }
        }
        if let Some(entries) = entries.get(SOON) {
            self.accounts[entries.account].approach();
            if let Some(order) = entries.order {
                near::bring_all(std::slice::from_ref(&*self.orders[order]));
            }
        }
    }

    /// Finds the entries that events are about; those not in memory by one question to the store.
    ///
    /// Returns where they are, for each event that there is.
    fn find<S: Shelf>(&mut self, contents: &[Content], shelf: &S) -> Found<Vec<Entries>, S> {
        let mut found = Vec::with_capacity(contents.len());
        let (mut accounts, mut orders, mut transfers) = (Vec::new(), Vec::new(), Vec::new());
        let events = contents.iter().filter_map(|content| match content {
            Content::Event(event) => Some(event),
            _ => None,
        });
        // One pass of look-ups alone, in which the processor does not wait for each.
        for event in events.clone() {
            let account = self.accounts.get_index_of(event.account).unwrap_or_else(|| {
                let index = self.accounts.insert_full(event.account.into(), Account::default()).0;
                accounts.push(index);
                index
            });
            found.push(Entries { account, order: None });
        }
        for (event, entries) in events.zip(&mut found) {
            entries.order = event.kind.order_id().map(|order_id| {
                let entry = self.orders.entry(keys::order(event.account, order_id).into());
                let index = entry.index();
                if let MapEntry::Vacant(entry) = entry {
                    entry.insert(Box::default());
                    orders.push(index);
                }
                index
            });
            if let Kind::Transfer(transfer) = &event.kind {
                let key = keys::transfer(event.account, transfer.transfer_id);
                if !self.loose.contains_key(&*key) {
                    transfers.push(key);
                }
            }
        }
        if accounts.is_empty() && orders.is_empty() && transfers.is_empty() {
            return Ok(found);
        }
        let names = accounts.iter().map(|index| &**self.accounts.get_index(*index).unwrap().0);
        let keys: Vec<_> = names.map(keys::balances).collect();
        let mut wanted: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
        wanted.extend(orders.iter().map(|index| &**self.orders.get_index(*index).unwrap().0));
        wanted.extend(transfers.iter().map(|key| &**key));
        let mut values = shelf.get_many(&wanted)?.into_iter();
        for (index, key) in accounts.into_iter().zip(&keys) {
            if let Some(value) = values.next().flatten() {
                self.accounts[index] = readable(Account::stored(key, &value), key)?;
            }
        }
        for index in orders {
            if let Some(value) = values.next().flatten() {
                let (key, order) = self.orders.get_index_mut(index).expect("it was just put there");
                **order = readable(Order::stored(key, &value), key)?;
            }
        }
        for key in transfers {
            if let Some(value) = values.next().flatten() {
                let element = Some(Box::new(Sum::of_entry(&key, &value)));
                let value = Loose::Fact(value.into());
                self.loose.insert(key.into(), LooseEntry { value, element, dirty: false });
            }
        }
        Ok(found)
    }

    fn judge<S: Shelf>(
        &mut self,
        event: &Event,
        entries: Entries,
        offset: u64,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let stated = Stated { offset, time: event.occurred_at, is_plain: event.is_plain };
        let at = Place { account: event.account, entries, stated };
        match &event.kind {
            Kind::Placed(event) => self.placed(at, event, shelf),
            Kind::Amended { order_id, revision, terms } => {
                self.amended(at, order_id, *revision, terms, shelf)
            }
            Kind::Cancelled { reason, instrument, .. } => {
                let fact = fact::closed(stated, reason, *instrument);
                self.closed(at, fact, true)
            }
            Kind::Rejected { reason, .. } => {
                let fact = fact::closed(stated, reason, None);
                self.closed(at, fact, false)
            }
            Kind::Filled(event) => self.filled(at, event, shelf),
            Kind::Busted(event) => self.busted(at, event, shelf),
            Kind::Transfer(event) => self.transferred(at, event, shelf),
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

    fn placed<S: Shelf>(&mut self, at: Place, event: &PlacedEvent, shelf: &S) -> Found<Verdict, S> {
        let fact = fact::placed(at.stated, event);
        let order = &mut self.orders[at.entries.order()];
        if let Some(placed) = &order.placed {
            let shape = Shape::Placed;
            return Self::compare(&mut self.conflict, shape, &placed.fact, &fact, "order_placed");
        }
        order.placed = Some(Box::new(Placed::of_event(fact, event)));
        // Fills that came before the order now count.
        if !order.fills.is_empty() {
            self.count_early_fills(at, event.order_id, shelf)?;
        }
        self.changed(at.entries);
        Ok(Verdict::Applied)
    }

    fn count_early_fills<S: Shelf>(
        &mut self,
        at: Place,
        order_id: &str,
        shelf: &S,
    ) -> Found<(), S> {
        let order = &mut self.orders[at.entries.order()];
        let mut standing: Vec<Fact> = Vec::new();
        let mut add = |execution: &Execution| {
            if let Execution { fill: Some(fill), bust: None } = execution {
                standing.push(fill.clone());
            }
        };
        order.fills.iter().for_each(|(_, execution)| add(execution));
        if order.more_fills > 0 {
            let prefix = keys::fills(at.account, order_id);
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

    fn amended<S: Shelf>(
        &mut self,
        at: Place,
        order_id: &str,
        revision: i64,
        terms: &Terms,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let fact = fact::amended(at.stated, terms);
        let order = &mut self.orders[at.entries.order()];
        let inline = order.amendments.iter().find(|(known, _)| *known == revision);
        let key = keys::amendment(at.account, order_id, revision);
        let known = match inline {
            Some((_, fact)) => Some(Cow::Borrowed(&**fact)),
            None if order.more_amendments > 0 => match self.loose.get(&*key) {
                Some(entry) => Some(Cow::Owned(entry.encode())),
                None => shelf.get(&key)?.map(Cow::Owned),
            },
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
            self.loose.insert(key.into(), LooseEntry::new(Loose::Fact(fact)));
        }
        order.amend(revision, terms);
        self.changed(at.entries);
        Ok(Verdict::Applied)
    }

    fn closed<E>(&mut self, at: Place, fact: Fact, cancel: bool) -> Result<Verdict, Trouble<E>> {
        let order = &mut self.orders[at.entries.order()];
        let (known, kind) = if cancel {
            (&mut order.cancelled, "order_cancelled")
        } else {
            (&mut order.rejected, "order_rejected")
        };
        if let Some(known) = known {
            return Self::compare(&mut self.conflict, Shape::Closed, known, &fact, kind);
        }
        *known = Some(fact);
        self.changed(at.entries);
        Ok(Verdict::Applied)
    }

    fn filled<S: Shelf>(&mut self, at: Place, event: &Filled, shelf: &S) -> Found<Verdict, S> {
        let index = at.entries.order();
        let keeping = self.locate(index, at.account, event.order_id, event.fill_id, shelf)?;
        let fact = fact::filled(at.stated, event);
        let known = self.execution(index, &keeping);
        if let Some(stored) = known.and_then(|execution| execution.fill.as_ref()) {
            let stored = stored.clone();
            return Self::compare(&mut self.conflict, Shape::Fill, &stored, &fact, "order_filled");
        }
        let is_busted = known.is_some_and(|execution| execution.bust.is_some());
        let trade = Trade::of_event(event);
        let mut entry = trade.entry();
        self.post(at.entries, &entry, shelf)?;
        if is_busted {
            journal::reverse(&mut entry);
            self.post(at.entries, &entry, shelf)?;
        } else {
            let order = &mut self.orders[index];
            if order.counts(&trade) {
                order.count(&trade);
            }
        }
        self.keep(at, event.order_id, event.fill_id, keeping, |execution| {
            execution.fill = Some(fact);
        });
        self.changed(at.entries);
        Ok(Verdict::Applied)
    }

    fn busted<S: Shelf>(&mut self, at: Place, event: &Busted, shelf: &S) -> Found<Verdict, S> {
        let index = at.entries.order();
        let keeping = self.locate(index, at.account, event.order_id, event.fill_id, shelf)?;
        let fact = fact::busted(at.stated, event);
        let known = self.execution(index, &keeping);
        if let Some(stored) = known.and_then(|execution| execution.bust.as_ref()) {
            let stored = stored.clone();
            return Self::compare(&mut self.conflict, Shape::Bust, &stored, &fact, "fill_busted");
        }
        if let Some(fill) = known.and_then(|execution| execution.fill.clone()) {
            let texts = readable(fact::texts(&fill), &fill)?;
            let trade = readable(Trade::of_texts(&texts), &fill)?;
            let mut entry = trade.entry();
            journal::reverse(&mut entry);
            self.post(at.entries, &entry, shelf)?;
            let order = &mut self.orders[index];
            if order.counts(&trade) {
                order.discount(&trade);
            }
        }
        self.keep(at, event.order_id, event.fill_id, keeping, |execution| {
            execution.bust = Some(fact);
        });
        self.changed(at.entries);
        Ok(Verdict::Applied)
    }

    fn transferred<S: Shelf>(
        &mut self,
        at: Place,
        event: &Transfer,
        shelf: &S,
    ) -> Found<Verdict, S> {
        let fact = fact::transfer(at.stated, event);
        let key = keys::transfer(at.account, event.transfer_id);
        if let Some(entry) = self.loose.get(&*key) {
            let (shape, known) = (Shape::Transfer, entry.encode());
            return Self::compare(&mut self.conflict, shape, &known, &fact, event.kind);
        }
        self.loose.insert(key.into(), LooseEntry::new(Loose::Fact(fact)));
        self.post(at.entries, &journal::transfer_entry(event), shelf)?;
        Ok(Verdict::Applied)
    }

    // -- entries in memory

    fn post<S: Shelf>(&mut self, entries: Entries, entry: &Entry, shelf: &S) -> Found<(), S> {
        for pair in entry {
            let asset = Sought::new(pair.asset);
            let index = self.account_of(pair.debit, entries, shelf)?;
            let row = self.changing(index).row(asset);
            row.debits.increase(&pair.amount);
            let index = self.account_of(pair.credit, entries, shelf)?;
            let row = self.changing(index).row(asset);
            row.credits.increase(&pair.amount);
        }
        Ok(())
    }

    fn account_of<S: Shelf>(
        &mut self,
        party: Party,
        entries: Entries,
        shelf: &S,
    ) -> Found<usize, S> {
        if party == Party::Customer {
            return Ok(entries.account);
        }
        if let Some(index) = self.system[party as usize] {
            return Ok(index);
        }
        let name = party.name("");
        let index = match self.accounts.get_index_of(name) {
            Some(index) => index,
            None => {
                let key = keys::balances(name);
                let account = match shelf.get(&key)? {
                    Some(value) => readable(Account::stored(&key, &value), &key)?,
                    None => Account::default(),
                };
                self.accounts.insert_full(name.into(), account).0
            }
        };
        self.system[party as usize] = Some(index);
        Ok(index)
    }

    /// Returns an account that is about to change.
    fn changing(&mut self, index: usize) -> &mut Account {
        let account = &mut self.accounts[index];
        if !account.dirty {
            account.dirty = true;
            self.dirty_accounts.push(index);
        }
        account
    }

    /// Notes that an order changed, and lets its account's hold follow.
    fn changed(&mut self, entries: Entries) {
        let index = entries.order();
        let order = &mut self.orders[index];
        if !order.dirty {
            order.dirty = true;
            self.dirty_orders.push(index);
        }
        if order.placed.is_none() {
            return;
        }
        let hold = order.hold();
        let change = hold.subtract(order.held());
        if change.is_zero() {
            return;
        }
        order.set_held(hold);
        let asset = order.hold_asset().expect("a placed order holds an asset").to_owned();
        let row = self.changing(entries.account).row(Sought::new(&asset));
        row.hold.increase(&change);
    }

    /// Returns where an order keeps a fill and its bust.
    fn locate<S: Shelf>(
        &mut self,
        index: usize,
        account: &str,
        order_id: &str,
        fill_id: &str,
        shelf: &S,
    ) -> Found<Keeping, S> {
        let order = &self.orders[index];
        if let Some(place) = order.fills.iter().position(|(known, _)| **known == *fill_id) {
            return Ok(Keeping::Inline(place));
        }
        if order.more_fills == 0 {
            return Ok(Keeping::Nowhere);
        }
        let key = keys::fill(account, order_id, fill_id);
        if !self.loose.contains_key(&*key) {
            let Some(value) = shelf.get(&key)? else {
                return Ok(Keeping::Nowhere);
            };
            let execution = readable(Execution::decode(&value), &key)?;
            let entry = LooseEntry {
                value: Loose::Execution(execution),
                element: Some(Box::new(Sum::of_entry(&key, &value))),
                dirty: false,
            };
            self.loose.insert(key.clone().into(), entry);
        }
        Ok(Keeping::Loose(key.into()))
    }

    fn execution(&self, index: usize, keeping: &Keeping) -> Option<&Execution> {
        match keeping {
            Keeping::Inline(place) => Some(&self.orders[index].fills[*place].1),
            Keeping::Loose(key) => match &self.loose[key].value {
                Loose::Execution(execution) => Some(execution),
                Loose::Fact(_) => None,
            },
            Keeping::Nowhere => None,
        }
    }

    /// Changes an execution where it is kept, and finds a place for one that is new.
    fn keep(
        &mut self,
        at: Place,
        order_id: &str,
        fill_id: &str,
        keeping: Keeping,
        change: impl FnOnce(&mut Execution),
    ) {
        let order = &mut self.orders[at.entries.order()];
        match keeping {
            Keeping::Inline(place) => change(&mut order.fills[place].1),
            Keeping::Loose(key) => {
                let entry = &mut self.loose[&key];
                if let Loose::Execution(execution) = &mut entry.value {
                    change(execution);
                }
                entry.dirty = true;
            }
            Keeping::Nowhere => {
                let mut execution = Execution::default();
                change(&mut execution);
                if order.fills.len() < INLINE {
                    order.fills.push((fill_id.into(), execution));
                } else {
                    order.more_fills += 1;
                    let key = keys::fill(at.account, order_id, fill_id);
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
                let order = match shelf.get(&key)? {
                    Some(value) => readable(Order::stored(&key, &value), &key)?,
                    None => Order::default(),
                };
                self.orders.insert_full(key.into(), order.into()).0
            }
        };
        let keeping = self.locate(index, account, order_id, fill_id, shelf)?;
        Ok(self.execution(index, &keeping).map(|execution| {
            let mut out = Vec::new();
            execution.write(&mut out);
            out
        }))
    }

    // -- freezing and settling

    /// Returns what changed since the last freeze; `settle` has to come before the next.
    ///
    /// What is not `whole` leaves out accounts, as far as there is room for them in memory.
    pub fn freeze(&mut self, whole: bool) -> Frozen {
        let mut dirty_accounts = Vec::new();
        if whole || self.dirty_accounts.len() > self.cached_entries {
            dirty_accounts = std::mem::take(&mut self.dirty_accounts);
        }
        let are_kept = self.accounts.len() <= self.cached_entries; // else all are let go of
        let count = dirty_accounts.len() + self.dirty_orders.len() + self.loose.len();
        let mut frozen = Frozen {
            data: Vec::with_capacity(count * 320),
            changes: Vec::with_capacity(count),
            total: self.total,
            hashed: OnceLock::new(),
            sorted: OnceLock::new(),
        };
        for index in dirty_accounts {
            let (name, account) = self.accounts.get_index_mut(index).expect("dirty ones stay");
            account.dirty = false;
            let (key, element) = (keys::balances(name), account.element.take());
            frozen.add(&key, |out| account.write(out), element, Slot::Account(index), are_kept);
        }
        for index in self.dirty_orders.drain(..) {
            let (key, order) = self.orders.get_index_mut(index).expect("dirty ones stay");
            order.dirty = false;
            let (element, is_kept) = (order.element.take(), !order.held().is_zero());
            frozen.add(key, |out| order.write(out), element, Slot::Order(index), is_kept);
        }
        for (index, (key, entry)) in self.loose.iter_mut().enumerate() {
            if entry.dirty {
                entry.dirty = false;
                let element = entry.element.take();
                frozen.add(key, |out| entry.write(out), element, Slot::Loose(index), false);
            }
        }
        frozen
    }

    /// Takes in what a freeze came to, which is in the store, and forgets what need not be kept.
    pub fn settle(&mut self, frozen: &Frozen) {
        let hashed = frozen.hashed();
        self.total = hashed.total;
        for (change, element) in frozen.changes.iter().zip(&hashed.elements) {
            let (is_dirty, entry) = match change.slot {
                Slot::Account(index) => {
                    let account = &mut self.accounts[index];
                    (account.dirty, &mut account.element)
                }
                Slot::Order(index) => {
                    let order = &mut self.orders[index];
                    (order.dirty, &mut order.element)
                }
                Slot::Loose(index) => {
                    let loose = &mut self.loose[index];
                    (loose.dirty, &mut loose.element)
                }
            };
            if change.is_kept {
                entry.clone_from(element);
            } else if is_dirty {
                // It was not expected to stay, but has changed again meanwhile.
                let written = frozen.written(change);
                *entry = change.value.map(|_| Box::new(Sum::of_written(written)));
            }
        }
        self.evict();
    }

    fn evict(&mut self) {
        self.system = [None; Party::SYSTEM];
        self.loose.retain(|_, entry| entry.dirty);
        self.orders.retain(|_, order| order.dirty || !order.held().is_zero());
        if self.orders.len() > self.cached_entries {
            self.orders.retain(|_, order| order.dirty);
        }
        if self.accounts.len() > self.cached_entries {
            self.accounts.retain(|_, account| account.dirty);
        }
        let dirty = |(index, is_dirty): (usize, bool)| is_dirty.then_some(index);
        self.dirty_orders =
            self.orders.values().map(|order| order.dirty).enumerate().filter_map(dirty).collect();
        self.dirty_accounts =
            self.accounts.values().map(|found| found.dirty).enumerate().filter_map(dirty).collect();
    }
}

/// Returns so many places in order of their keys.
pub fn sorted_places<'a>(count: usize, key: impl Fn(usize) -> &'a [u8]) -> Vec<usize> {
    // Where keys begin tells most of them apart, without a look at where they are.
    let mut places: Vec<_> = (0..count).map(|place| (prefix_of(key(place)), place)).collect();
    places.sort_unstable_by(|(prefix, place), (other_prefix, other)| {
        prefix.cmp(other_prefix).then_with(|| key(*place).cmp(key(*other)))
    });
    places.into_iter().map(|(_, place)| place).collect()
}

/// Returns how a key begins, as a number that sorts as the key does: quicker to compare.
fn prefix_of(key: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    let length = key.len().min(16);
    bytes[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(bytes)
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
